"""Full disks and folders that may not be written to: one sentence, nothing half-written, and with
room made the run goes on to the same bytes."""

import resource
import subprocess
import tempfile
from pathlib import Path

from .runs import STAGES, TINY, Child, differences, fresh, half_written, prepare, stage

OUTPUTS = ("a.mp4", "a.gif", "a.webp", "a.png")


def mounted(folder: Path, options: str) -> bool:
    """Mount a small file system of its own there; False where that is not allowed."""
    folder.mkdir(exist_ok=True)
    return subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)],
                          capture_output=True).returncode == 0


def refused(child: Child, words: str) -> list[str]:
    """What is wrong with a command that had to end with one sentence."""
    code, said = child.wait(), child.text()
    errors = [line for line in said.replace("\r", "\n").splitlines() if line.startswith("error: ")]
    right = code == 2 and len(errors) == 1 and words in errors[0] and "Traceback" not in said
    return [] if right else [f"exit code {code}: {said[-500:]}"]


def full(name: str, place: Path, folder: Path, whole: Path, before=lambda: None) -> tuple:
    """Run a stage where there is too little room. (whether it was refused, what is wrong)."""
    child = Child(stage(name, place, folder), place / "said", before)
    wrong = refused(child, "annot be written")
    if wrong and wrong[0].startswith("exit code 0:"):
        return False, differences(folder, whole)
    left = [p.name for p in folder.glob(".writing-*")] if folder.is_dir() else []
    return True, [*wrong, *half_written(folder, whole), *(f"{each} is left" for each in left)]


def go_on(name: str, place: Path, folder: Path, whole: Path) -> list[str]:
    """With room, to the end."""
    resume = ["--resume"] if (folder / "checkpoint.pt").exists() else []
    child = Child(stage(name, place, folder, *resume), place / "said")
    return differences(folder, whole) if child.wait() == 0 else [child.text()[-500:]]


def disk(sizes: int, stages: tuple[str, ...] = STAGES) -> tuple[dict, list]:
    """`sizes` steps from an empty disk to one that is large enough, for each stage."""
    figures, faults = {"full": 0, "file too large": 0, "read-only": 0}, []
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        prepare(place, stages)
        for name in stages:
            whole = place / "whole" / name
            most = sum(p.stat().st_size for p in whole.iterdir())
            for k in range(sizes):
                size = (k + 1) * most // (sizes + 1)
                folder = place / "disk" / "run"
                if mounted(place / "disk", f"size={size // 1024 + 4}k"):
                    try:
                        was_full, wrong = full(name, place, folder, whole)
                        subprocess.run(["mount", "-o", "remount,size=1g", place / "disk"])
                        wrong += go_on(name, place, folder, whole) if was_full else []
                    finally:
                        subprocess.run(["umount", place / "disk"], check=True)
                    figures["full"] += was_full
                    faults += [f"{name}, {size} bytes: {each}" for each in wrong]
                largest = max(p.stat().st_size for p in whole.iterdir())
                limit = (k + 1) * largest // (sizes + 1)
                folder = fresh(place / "limited")
                was_full, wrong = full(name, place, folder, whole, lambda: resource.setrlimit(
                    resource.RLIMIT_FSIZE, (limit, limit)))
                wrong += go_on(name, place, folder, whole) if was_full else []
                figures["file too large"] += was_full
                faults += [f"{name}, files of {limit} bytes: {each}" for each in wrong]
        figures["read-only"], wrong = read_only(place)
    return figures, faults + wrong


def read_only(place: Path) -> tuple[int, list[str]]:
    """Every command, into a folder that may not be written to."""
    count, faults, folder = 0, [], place / "disk"
    if not mounted(folder, "ro"):
        return 0, []
    try:
        commands = [stage(name, place, folder / "run") for name in STAGES]
        commands += [["sample", "--lora", "--model", TINY, "--prompt", "a bear",
                      "--output", folder / name] for name in OUTPUTS]
        for command in commands:
            faults += refused(Child(command, place / "said"), str(folder))
            count += 1
    finally:
        subprocess.run(["umount", folder], check=True)
    return count, faults
