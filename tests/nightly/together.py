"""Two commands at once in one place: one run has the folder, the other says so."""

import tempfile
from pathlib import Path

from .runs import STAGES, TINY, Child, differences, fresh, prepare, stage


def together(rounds: int, stages: tuple[str, ...] = STAGES) -> tuple[dict, list]:
    """Of each stage twice in one folder, and of sample.py twice into one file."""
    faults, pairs = [], 0
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        prepare(place)
        for name in stages * rounds:
            folder, pairs = fresh(place / "both"), pairs + 1
            both = [Child(stage(name, place, folder), place / f"said {k}") for k in range(2)]
            codes = sorted(child.wait() for child in both)
            said = next((c.text() for c in both if "error: " in c.text()), "")
            if codes != [0, 2] or f"{folder}: " not in said or "Traceback" in said:
                faults.append(f"{name} twice: exit codes {codes}: {said[-300:]}")
            else:
                faults += [f"{name} twice: {each}"
                           for each in differences(folder, place / "whole" / name)]
        for ending in ("mp4", "gif"):
            outputs, pairs = [place / f"one.{ending}", place / f"two.{ending}"], pairs + 1
            command = ["sample", "--model", TINY, "--prompt", "a bear", "--frames", "2",
                       "--sampling-steps", "2", "--lora", "--output"]
            both = [Child([*command, path], place / f"said {path.name}")
                    for path in (outputs[0], outputs[1], outputs[1])]
            if [child.wait() for child in both] != [0, 0, 0]:
                faults.append(f"sample.py twice: {[child.text()[-200:] for child in both]}")
            elif outputs[0].read_bytes() != outputs[1].read_bytes():
                faults.append(f"sample.py twice: {outputs[1].name} is not as alone")
    return {"pairs": pairs}, faults
