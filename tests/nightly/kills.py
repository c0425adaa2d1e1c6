"""SIGKILL at every kind of moment; a resumed run ends as one that nothing disturbed, in bytes.

Three kinds: before one of the run's own file operations (an audit hook counts them), while a file
is being written, and at any time.
"""

import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from .runs import STAGES, Child, differences, fresh, half_written, prepare, stage, wait_for

OPERATIONS = {"open", "os.rename", "os.remove", "os.mkdir", "os.chmod"}


def die_before(operation: int, folder: Path):
    """Kill this process before its n-th file operation in the folder."""
    count = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal count
        if event in OPERATIONS and str(folder) in str(arguments[0]):
            count += 1
            if count == operation:
                os.kill(os.getpid(), signal.SIGKILL)
    return lambda: sys.addaudithook(hook)


def unfinished(folder: Path) -> bool:
    """Whether a file is being written there, and something is in it by now."""
    try:
        return any(p.name.startswith(".writing-") and p.stat().st_size for p in folder.iterdir())
    except FileNotFoundError:
        return False


def killed(name: str, place: Path, folder: Path, how: str, rng: random.Random) -> bool:
    """Start or resume the run and kill it. False if it ended before that."""
    resume = ["--resume"] if (folder / "checkpoint.pt").exists() else []
    arguments, before = stage(name, place, folder, *resume), lambda: None
    if how == "operation":
        before = die_before(rng.randint(1, 40), folder)
    child = Child(arguments, place / "said", before)
    if how == "writing":
        files = rng.randint(1, 8)           # the n-th file that is seen half-written
        for _ in range(files):
            wait_for(lambda: unfinished(folder) or child.done(), 60)
            if _ < files - 1:
                wait_for(lambda: not unfinished(folder) or child.done(), 60)
        child.kill() if not child.done() else None
    elif how == "time":
        time.sleep(rng.uniform(0.2, 3.0))
        child.kill() if not child.done() else None
    code = child.wait()
    if code not in (0, -signal.SIGKILL):
        raise RuntimeError(child.text()[-2000:])
    return code != 0


def kills(count: int, stages: tuple[str, ...] = STAGES, seed: int = 0) -> tuple[dict, list]:
    """At least `count` kills, in as many runs as that takes. Returns the figures and the faults."""
    done, faults, runs = {"operation": 0, "writing": 0, "time": 0}, [], 0
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        prepare(place)
        while sum(done.values()) < count:
            name = stages[runs % len(stages)]
            folder, whole, runs = fresh(place / "killed"), place / "whole" / name, runs + 1
            try:
                for how in rng.choices(list(done), k=4):
                    if killed(name, place, folder, how, rng):
                        done[how] += 1
                        faults += [f"{name} killed ({how}): {each}"
                                   for each in half_written(folder, whole)]
                resume = ["--resume"] if (folder / "checkpoint.pt").exists() else []
                child = Child(stage(name, place, folder, *resume), place / "said")
                code = child.wait()
                wrong = differences(folder, whole) if code == 0 else [child.text()[-1000:]]
            except RuntimeError as error:
                wrong = [str(error)]
            faults += [f"{name} run {runs}: {each}" for each in wrong]
    return {"kills": sum(done.values()), **{f"kills ({how})": n for how, n in done.items()},
            "runs": runs}, faults
