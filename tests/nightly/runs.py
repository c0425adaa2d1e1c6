"""train.py and sample.py in child processes that begin where the imports are done."""

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

import sample
import train
from customttt.errors import run_command
from customttt.media.clips import write_frames

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "weights" / "tiny"
STAGES = ("spatial", "temporal", "ttt")
SMALL = ["--size", "64", "--frames", "2", "--sampling-steps", "2", "--steps", "6",
         "--checkpoint-every", "2", "--sheet-every", "3"]


class Child:
    """A command in a forked process; what it says goes to a file."""

    def __init__(self, arguments: list, said: Path, before: Callable[[], None] = lambda: None):
        self.said, self.pid = said, os.fork()
        if self.pid == 0:
            code = 1
            try:
                out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(out, 1)
                os.dup2(out, 2)
                sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))
                sys.argv = [str(argument) for argument in arguments]
                before()
                run_command(sample.main if arguments[0] == "sample" else train.main)
                code = 0
            except SystemExit as end:
                code = end.code
            except BaseException:
                import traceback
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code or 0)

    def wait(self) -> int:
        """The exit code; minus the signal, of one that was killed."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def done(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def text(self) -> str:
        return self.said.read_text(errors="replace")


def stage(name: str, place: Path, output: Path, *flags) -> list:
    """The arguments of one stage on small data below `place`."""
    given = {"spatial": ["--data", place / "bear.png", "--prompt", "a bear"],
             "temporal": ["--data", place / "clip.mp4", "--prompt", "a bear is jumping"],
             "ttt": ["--spatial", place / "whole" / "spatial", "--temporal",
                     place / "whole" / "temporal", "--reference-steps", "1"]}[name]
    return ["train", "--stage", name, "--model", TINY, "--output", output, *SMALL, *given, *flags]


def prepare(place: Path, stages: tuple[str, ...] = STAGES) -> None:
    """Data below `place`, and whole runs of the stages in place/whole."""
    torch.manual_seed(0)
    Image.effect_noise((80, 64), 60).convert("RGB").save(place / "bear.png")
    write_frames(torch.randint(255, (4, 64, 64, 3), dtype=torch.uint8), place / "clip.mp4", 8)
    for name in stages:
        child = Child(stage(name, place, place / "whole" / name), place / "said")
        if child.wait() != 0:
            raise RuntimeError(child.text())


def lines(folder: Path) -> list[str]:
    """Of a log, without what the clock and the machine put into it."""
    import json
    kept = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [str((line["step"], line["loss"])) for line in kept]


def differences(folder: Path, whole: Path) -> list[str]:
    """What of a finished run is not as in the run that nothing disturbed, byte for byte."""
    there, right = ({p.name for p in f.iterdir()} for f in (folder, whole))
    wrong = [f"{name} is there" for name in sorted(there - right)]
    wrong += [f"{name} is not there" for name in sorted(right - there)]
    wrong += [f"{name} differs" for name in sorted(there & right)
              if name.endswith((".safetensors", ".png"))
              and (folder / name).read_bytes() != (whole / name).read_bytes()]
    return wrong + ["log.jsonl differs"] * (not wrong and lines(folder) != lines(whole))


def half_written(folder: Path, whole: Path) -> list[str]:
    """What of an interrupted run is neither as in the whole one nor marked as unfinished."""
    wrong = []
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.suffix in (".safetensors", ".png") and not path.name.startswith("."):
            if path.read_bytes() != (whole / path.name).read_bytes():
                wrong.append(f"{path.name} is half written")
        if path.name == "checkpoint.pt":
            try:
                torch.load(path, weights_only=True)
            except Exception as error:
                wrong.append(f"checkpoint.pt cannot be read ({error})")
    return wrong


def wait_for(condition: Callable[[], bool], seconds: float, step: float = 0.0003) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(step)
    return False


def fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    return folder
