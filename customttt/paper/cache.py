"""LoRAs and clips, each in a folder named by the hash of what makes it: made once, shared by all
tables. Any number of processes may work in one folder.
"""

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from ..files.reading import read_json, write_json
from ..run.data import fingerprint
from ..run.lock import locked

ADAPTER = "adapter.safetensors"
WAIT = 2.0      # seconds between two looks at what another process is making


def name_of(told: dict) -> str:
    """A short hash of what makes something."""
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def files_in(path: Path) -> list[Path]:
    """A file, or the files of a folder."""
    return sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]


def made_once(folder: Path, is_there: Callable[[], bool], make: Callable[[], None]) -> None:
    """Make what is not there, unless another process does; then wait for it."""
    while not is_there():
        try:
            with locked(folder.with_name(folder.name + ".making")):
                if not is_there():
                    make()
        except UserError as error:
            if "another run is at work" not in str(error):
                raise
            time.sleep(WAIT)


@dataclass(frozen=True)
class Cache:
    """Where it is, and what all that is in it shares: the model's flags, and the seed."""

    folder: Path
    model: tuple[str, ...]      # flags of train.py
    seed: int

    def train(self, stage: str, flags: Sequence[str], of: dict[str, Path]) -> Path:
        """The LoRA file of a stage of train.py, with these flags; `of`: what it learns from, data
        and other LoRAs (flag -> file or folder), which counts by its content."""
        told = {"stage": stage, "flags": list(flags), "model": self.model, "seed": self.seed,
                "of": {flag: fingerprint(files_in(path)) for flag, path in of.items()}}
        folder = self.folder / "loras" / f"{stage}-{name_of(told)}"
        file = folder / ADAPTER

        def make() -> None:
            resume = ["--resume"] if (folder / "checkpoint.pt").exists() else []
            given = [str(each) for pair in of.items() for each in pair]
            run_train("--stage", stage, "--output", str(folder), "--seed", str(self.seed),
                      "--sheet-every", "0", *self.model, *flags, *given, *resume)
            write_json(told, folder / "made-of.json")
        made_once(folder, file.exists, make)
        return file

    def scored(self, told: dict, loras: Sequence[Path], make: Callable[[Path], dict]) -> dict:
        """Scores of a clip that these LoRAs and `told` make; `make` gets its picture's path."""
        told = told | {"model": self.model, "seed": self.seed,
                       "loras": [file.parent.name for file in loras]}
        folder = self.folder / "clips" / name_of(told)
        file = folder / "scores.json"
        made_once(folder, file.exists,
                  lambda: write_json({"scores": make(folder / "clip.png")} | told, file))
        return read_json(file)["scores"]


def run_train(*flags: str) -> None:
    """train.py, as a user calls it, from the folder that it is in."""
    done = subprocess.run([sys.executable, "train.py", *flags], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"train.py {' '.join(flags)}: {done.stderr.strip().splitlines()[-1]}")
