"""checkpoint.pt of a run: everything that a resumed run needs to be the same run, on a CPU bit for
bit."""

import json
import re
import time
from pathlib import Path

import torch
from torch import Tensor

from ..draws import Draws
from ..errors import UserError, in_words, writing
from ..files.checks import clipped, is_whole
from ..files.reading import read_metadata, save_pickled

CHECKPOINT, LOG = "checkpoint.pt", "log.jsonl"
OF_A_RUN = r"checkpoint\.pt|adapter(-\d{6,})?\.safetensors|sheet-\d{6,}\.(png|gif)"
OTHERS = {"base_weights": "another model", "data_sha256": "other data or prompts"}


class State:
    """Where a run (loop.py) stands: steps done and skipped, optimizer, scaler, random streams."""

    def __init__(self, run, scaler: torch.amp.GradScaler, draws: Draws, device: torch.device):
        self.run, self.scaler, self.draws = run, scaler, draws
        self.device, self.step, self.skipped = device, 0, 0
        self.saved, self.saved_at = None, time.monotonic()      # the last step that was, and when

    def described(self) -> dict:
        """What a resumed run must share with the one before it (but for the steps)."""
        return self.run.metadata | self.run.settings | {
            "seed": self.run.seed, "precision": self.run.precision,
            "optimizer": type(self.run.optimizer).__name__,
            "device": self.device.type, "base_weights": self.run.base_checksum}

    def save(self) -> None:
        """Write the checkpoint, and beside it what is trained so far."""
        self.run.save(self.run.folder / f"adapter-{self.step:06}.safetensors",
                      self.run.metadata | {"step": self.step})
        cuda = self.device.type == "cuda"
        content = {
            "step": self.step, "skipped": self.skipped, "run": self.described(),
            "parameters": {key: p.detach() for key, p in self.run.parameters.items()},
            "optimizer": self.run.optimizer.state_dict(), "scaler": self.scaler.state_dict(),
            "draws": self.draws.state(), "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(self.device) if cuda else None}
        save_pickled(content, self.run.folder / CHECKPOINT)
        self.saved, self.saved_at = self.step, time.monotonic()

    def load(self) -> None:
        """Put everything back as after the checkpoint's step. UserError for that of another run."""
        folder, now = self.run.folder, self.described()
        content = read_checkpoint(folder / CHECKPOINT)
        before = content["run"]
        # Not compared: steps, which may grow; the recipe, whose settings are compared one by one;
        # the model's name and its motion module's version, since base_weights tells the model; and
        # the frame rate of stage ttt, which is the temporal LoRA's.
        free = {"steps", "recipe", "base_model", "motion_version"} | ({"fps"} - before.keys())
        changed = [key for key in now if key not in free and before.get(key) != now[key]]
        if changed:
            key = changed[0]
            other = (f"another --{key.removesuffix('_sha256')}" if key.endswith("_sha256") else
                     f"{key} = {before.get(key)!r:.99}, not {now[key]!r:.99}")
            raise UserError(f"--resume: {folder} was started with {OTHERS.get(key, other)}; give "
                            f"the same")
        if content["step"] > self.run.settings["steps"]:
            raise UserError(f"--steps {self.run.settings['steps']}: the run in {folder} has done "
                            f"{content['step']} already; give at least as many to --resume")
        if self.run.parameters.keys() != content["parameters"].keys():
            raise UserError(f"--resume: the checkpoint in {folder} is of another model")
        try:
            self._restore(content)
        except Exception as error:      # whatever is not as `save` writes it
            raise _unreadable(folder / CHECKPOINT, error) from error
        cut_log(folder / LOG, self.step)

    @torch.no_grad()
    def _restore(self, content: dict) -> None:
        for key, parameter in self.run.parameters.items():
            stored = content["parameters"][key]
            if stored.shape != parameter.shape or not stored.isfinite().all():
                raise ValueError(f"{key} is not as it was saved")
            parameter.copy_(stored)
        optimizer = self.run.optimizer      # its rates stay this run's, which are the same
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict(content["optimizer"] | {"param_groups": groups})
        good = [each.shape == (() if key == "step" else parameter.shape) and each.isfinite().all()
                and not (key in ("step", "exp_avg_sq") and (each < 0).any())    # AdamW's
                for parameter, state in optimizer.state.items() for key, each in state.items()]
        if not all(good) or content["step"] and not good:
            raise ValueError("the optimizer's state is not as it was saved")
        self.scaler.load_state_dict(content["scaler"])
        self.draws.set_state(content["draws"])
        torch.set_rng_state(content["cpu"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(content["cuda"], self.device)
        self.step, self.skipped = int(content["step"]), int(content["skipped"])
        self.saved = self.step


def read_checkpoint(path: Path) -> dict:
    """What `save` wrote: of types that the rest relies on. Raises UserError."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        json.dumps(content["run"])      # no tensors: each is compared
        if not all(is_whole(steps, 0, 2 ** 63)
                   for steps in (content["step"], content["skipped"], content["run"]["steps"])):
            raise ValueError("its number of steps is none")
        if not all(isinstance(each, Tensor) for each in content["parameters"].values()):
            raise ValueError("its parameters are no tensors")
        return content
    except Exception as error:      # a file that is cut, empty, or of something else
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"{path}: not a checkpoint of train.py that can be read ({in_words(error)}); "
                     f"give another --output, or remove it to start afresh")


def check_folder(folder: Path, kind: str, resume: bool) -> None:
    """Raise UserError, before any work, if a run of this kind cannot be resumed from the folder, or
    if one that starts there would throw away an unfinished one or one of another kind."""
    path, trained = folder / CHECKPOINT, folder / "adapter.safetensors"
    if not path.exists():
        if resume:
            raise UserError(f"--resume: no {CHECKPOINT} in {folder}; leave --resume out to start")
        if trained.exists() and (there := read_metadata(trained).get("kind", "foreign")) != kind:
            raise UserError(f"{trained}: a {clipped(there)} LoRA, not a {kind} one, which would "
                            f"take its place; give another --output")
        if folder.is_dir() and not trained.exists() and not _is_log(folder / LOG):
            for file in sorted(folder.iterdir()):
                if is_of_a_run(file) or file.name in (LOG, "data.png"):
                    raise UserError(f"{file}: would be replaced or removed, and no LoRA, "
                                    f"{CHECKPOINT} or {LOG} of a run is beside it; move it, or "
                                    f"give another --output")
        return
    content = read_checkpoint(path)
    done, steps, there = content["step"], content["run"]["steps"], content["run"].get("kind")
    if there != kind:
        raise UserError(f"{folder}: holds a {there!s:.40} run, not a {kind} one; give another "
                        f"--output")
    if not resume and done < steps:
        raise UserError(f"{folder}: an unfinished run (step {done} of {steps}); go on with "
                        f"--resume, or give another --output")


def _is_log(path: Path) -> bool:
    """Whether a run that began left it: empty, or with a line a step, of which a kill may have cut
    the first."""
    try:
        with path.open("rb") as file:
            return b'{"step": '.startswith(file.read(9))
    except OSError:
        return False


def start_afresh(folder: Path) -> None:
    """An empty log, and nothing left of an earlier run."""
    with writing(folder / LOG):
        pass
    for old in folder.iterdir():
        if is_of_a_run(old):
            old.unlink()


def is_of_a_run(path: Path) -> bool:
    """Whether a run gives its files such names, and so removes or replaces what has one."""
    return re.fullmatch(OF_A_RUN, path.name) is not None


def cut_log(path: Path, lines: int) -> None:
    """Keep so many: those after them are of steps that are run again."""
    found = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    with writing(path) as temporary:
        temporary.write_bytes(b"".join(found[:lines]))
