"""checkpoint.pt of a run: everything that a resumed run needs to be the same run, bit for bit."""

import io
import json
from pathlib import Path

import torch

from ..draws import Draws
from ..errors import UserError, writing

CHECKPOINT = "checkpoint.pt"


class State:
    """Where a run (loop.py) stands: steps done and skipped, optimizer, scaler, random streams."""

    def __init__(self, run, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler,
                 draws: Draws, device: torch.device):
        self.run, self.optimizer, self.scaler, self.draws = run, optimizer, scaler, draws
        self.device, self.step, self.skipped = device, 0, 0

    def described(self) -> dict[str, str]:
        """What a resumed run must share with the one before it (but for the steps), as JSON."""
        told = self.run.metadata | self.run.settings | {
            "seed": self.run.seed, "precision": self.run.precision}
        return {key: json.dumps(value) for key, value in told.items() if key != "recipe"}

    def save(self) -> None:
        """Write the checkpoint, and beside it what is trained so far."""
        self.run.save(self.run.folder / f"adapter-{self.step:06}.safetensors",
                      self.run.metadata | {"step": self.step})
        cuda = self.device.type == "cuda"
        content = {
            "step": self.step, "skipped": self.skipped, "run": self.described(),
            "parameters": {key: p.detach() for key, p in self.run.parameters.items()},
            "optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict(),
            "draws": self.draws.state(), "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(self.device) if cuda else None}
        buffer = io.BytesIO()       # on a full disk torch.save would not say that it is full
        torch.save(content, buffer)
        with writing(self.run.folder / CHECKPOINT) as temporary:
            temporary.write_bytes(buffer.getbuffer())

    def load(self) -> None:
        """Put everything back as after the checkpoint's step. UserError for that of another run."""
        folder, now = self.run.folder, self.described()
        content = read_checkpoint(folder / CHECKPOINT)
        before = content["run"]
        changed = [key for key in now if key != "steps" and before.get(key) != now[key]]
        if changed:
            raise UserError(f"--resume: {folder} was started with {changed[0]} = "
                            f"{before.get(changed[0])}, not {now[changed[0]]}; give the same")
        if content["step"] > self.run.settings["steps"]:
            raise UserError(f"--steps {self.run.settings['steps']}: the run in {folder} has done "
                            f"{content['step']} already; give at least as many to --resume")
        if self.run.parameters.keys() != content["parameters"].keys():
            raise UserError(f"--resume: the checkpoint in {folder} is of another model")
        with torch.no_grad():
            for key, parameter in self.run.parameters.items():
                parameter.copy_(content["parameters"][key])
        self.optimizer.load_state_dict(content["optimizer"])
        self.scaler.load_state_dict(content["scaler"])
        self.draws.set_state(content["draws"])
        torch.set_rng_state(content["cpu"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(content["cuda"], self.device)
        self.step, self.skipped = content["step"], content["skipped"]
        _cut_log(folder / "log.jsonl", self.step)


def read_checkpoint(path: Path) -> dict:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        content["run"]["steps"]
        return content
    except Exception as error:
        raise UserError(f"{path}: not a checkpoint of train.py that can be read "
                        f"({(str(error) or type(error).__name__).splitlines()[0]}); give another "
                        f"--output") from error


def check_folder(folder: Path, kind: str, resume: bool) -> None:
    """Raise UserError, before any work, if a run of this kind cannot be resumed from the folder, or
    if one that starts there would throw away an unfinished one or one of another kind."""
    path = folder / CHECKPOINT
    if not path.exists():
        if resume:
            raise UserError(f"--resume: no {CHECKPOINT} in {folder}; leave --resume out to start")
        return
    content = read_checkpoint(path)
    done, steps, there = content["step"], content["run"]["steps"], json.loads(
        content["run"]["kind"])
    if there != kind:
        raise UserError(f"{folder}: holds a {there} run, not a {kind} one; give another --output")
    if not resume and done < int(steps):
        raise UserError(f"{folder}: an unfinished run (step {done} of {steps}); go on with "
                        f"--resume, or give another --output")


def start_afresh(folder: Path) -> None:
    """An empty log, and nothing left of an earlier run."""
    with writing(folder / "log.jsonl"):
        pass
    for old in (folder / CHECKPOINT, folder / "adapter.safetensors",
                *folder.glob("adapter-[0-9]*.safetensors"), *folder.glob("sheet-[0-9]*.*")):
        old.unlink(missing_ok=True)


def _cut_log(path: Path, step: int) -> None:
    """Drop the lines of steps that are run again."""
    lines = path.read_text().splitlines() if path.exists() else []
    with writing(path) as temporary:
        temporary.write_text("".join(line + "\n" for line in lines[:step]))
