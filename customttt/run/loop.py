"""The loop that all three stages share: steps, log, contact sheets, checkpoints, resume."""

import contextlib
import io
import json
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor, nn
from tqdm import tqdm

from ..errors import UserError, writing
from ..files.lora_files import save_lora
from ..lion import Lion
from ..lora import adapted
from ..model.unet import UNet

MOST_SKIPPED = 20       # non-finite steps in a row that end a run
CHECKPOINT = "checkpoint.pt"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Run:
    """One training run and what it leaves in its folder.

    adapter.safetensors, adapter-000100.safetensors, ...: the LoRA; log.jsonl: one line a step;
    sheet-000100.png, ...: samples; checkpoint.pt: all that `--resume` needs.
    """

    folder: Path
    unet: UNet
    names: tuple[str, ...]      # of the adapters that are trained
    losses: Callable[[Generator], Iterator[Tensor]]
    settings: dict              # the recipe, as it is used
    metadata: dict              # of the adapter files
    precision: str              # "fp32", "bf16" or "fp16"
    seed: int
    checkpoint_every: int
    sheet_every: int            # 0: never
    draw: Callable[[Path], None]        # writes a contact sheet of what the adapters do by now

    @property
    def checkpoint(self) -> Path:
        return self.folder / CHECKPOINT

    @property
    def described(self) -> dict:
        """What a resumed run must share with the one that it goes on with (but for `steps`)."""
        told = self.metadata | self.settings | {"seed": self.seed, "precision": self.precision}
        told.pop("recipe", None)
        return json.loads(json.dumps(told))


def fit(run: Run, resume: bool) -> bool:
    """Train to `steps`. Returns False if Ctrl-C ended it early (everything is saved then)."""
    check_folder(run.folder, run.metadata["kind"], resume)
    device = next(run.unet.parameters()).device
    parameters = trainable(run.unet, run.names)
    optimizer = Lion(parameters, run.settings["learning_rate"], run.settings["betas"],
                     run.settings["weight_decay"])
    scaler = torch.amp.GradScaler(device.type, enabled=run.precision == "fp16")
    torch.manual_seed(run.seed)                             # dropout
    generator = Generator().manual_seed(run.seed)           # images, timesteps, noise
    state = {"optimizer": optimizer, "scaler": scaler, "generator": generator}
    step, skipped = _load_checkpoint(run, state, device) if resume else _start_afresh(run)

    in_a_row, steps, saved = 0, run.settings["steps"], step if resume else None
    run.unet.train()
    with _until_interrupted() as interrupted, tqdm(
            total=steps, initial=step, desc=run.folder.name, unit="step") as bar:
        while step < steps and not interrupted():
            start = time.perf_counter()
            loss, finite = _train_step(run, parameters, optimizer, scaler, generator, device)
            step += 1
            skipped, in_a_row = skipped + (not finite), 0 if finite else in_a_row + 1
            if in_a_row == MOST_SKIPPED:
                raise UserError(f"the loss or its gradient was not finite for {in_a_row} steps in "
                                f"a row; try --precision fp32 or a smaller --learning-rate")
            line = {"step": step, "loss": loss if math.isfinite(loss) else None,
                    "learning_rate": run.settings["learning_rate"],
                    "seconds": round(time.perf_counter() - start, 4),
                    "memory_gb": round(peak_memory(device), 3), "skipped": skipped}
            _append(run.folder / "log.jsonl", line)
            bar.set_postfix({"loss": f"{loss:.4f}"} | ({"skipped": skipped} if skipped else {}))
            bar.update()
            if step % run.checkpoint_every == 0 or step == steps:
                _save(run, state, step, skipped)
                saved = step
            if run.sheet_every and (step % run.sheet_every == 0 or step == steps):
                _draw(run, step, device)
        if saved != step:       # Ctrl-C
            _save(run, state, step, skipped)
    if step == steps:
        save_lora(run.unet, run.folder / "adapter.safetensors", run.metadata | {"step": step},
                  run.names)
    return step == steps


def _train_step(run: Run, parameters: list[nn.Parameter], optimizer: Lion,
                scaler: torch.amp.GradScaler, generator: Generator,
                device: torch.device) -> tuple[float, bool]:
    """One update. Returns the loss, and whether it and its gradient were finite; else no update."""
    optimizer.zero_grad()
    total = 0.0
    terms = run.losses(generator)
    while (loss := _next_term(terms, device, run.precision)) is not None:
        scaler.scale(loss).backward()
        total += loss.item()
    scaler.unscale_(optimizer)
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    finite = math.isfinite(total) and math.isfinite(norm.item())
    if finite:
        scaler.step(optimizer)
    scaler.update()
    return total, finite


def _next_term(terms: Iterator[Tensor], device: torch.device, precision: str) -> Tensor | None:
    """The next loss to go backward from; autocast is for the way forward only."""
    with autocast(device, precision):
        return next(terms, None)


def trainable(unet: UNet, names: tuple[str, ...]) -> list[nn.Parameter]:
    """The parameters of the adapters of these names; they alone get gradients."""
    unet.requires_grad_(False)
    parameters = [p for _, module in adapted(unet) for name in names if name in module.adapters
                  for p in module.adapters[name].parameters()]
    for parameter in parameters:
        parameter.requires_grad_(True)
    return parameters


def autocast(device: torch.device, precision: str):
    """Mixed precision: the UNet in fp16 or bf16, LoRA weights and the optimizer in fp32."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, DTYPES[precision])


def peak_memory(device: torch.device) -> float:
    """GB at the most so far: the GPU's, or the process's on a CPU (0 where that is not known)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    try:
        import resource     # not on Windows
    except ImportError:
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def _draw(run: Run, step: int, device: torch.device) -> None:
    run.unet.eval()
    with torch.no_grad(), autocast(device, run.precision):
        run.draw(run.folder / f"sheet-{step:06}.png")
    run.unet.train()


@contextlib.contextmanager
def _until_interrupted() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether Ctrl-C (or SIGTERM) came; a second one stops at once."""
    came = []

    def note(number, frame):
        if came:
            raise KeyboardInterrupt
        came.append(number)
        print("\nfinishing this step; once more to stop at once", file=sys.stderr)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _append(path: Path, line: dict) -> None:
    try:
        with open(path, "a") as log:
            log.write(json.dumps(line) + "\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); make room") from error


def _adapter_tensors(run: Run) -> dict[str, Tensor]:
    return {f"{name}.{on}.{part}": p for name, module in adapted(run.unet) for on in run.names
            if on in module.adapters for part, p in module.adapters[on].named_parameters()}


def _save(run: Run, state: dict, step: int, skipped: int) -> None:
    save_lora(run.unet, run.folder / f"adapter-{step:06}.safetensors",
              run.metadata | {"step": step}, run.names)
    device = next(run.unet.parameters()).device
    content = {"step": step, "skipped": skipped, "run": json.dumps(run.described),
               "adapters": {key: p.detach() for key, p in _adapter_tensors(run).items()},
               "optimizer": state["optimizer"].state_dict(), "scaler": state["scaler"].state_dict(),
               "generator": state["generator"].get_state(), "cpu": torch.get_rng_state(),
               "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None}
    buffer = io.BytesIO()       # on a full disk torch.save would not say that it is full
    torch.save(content, buffer)
    with writing(run.checkpoint) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def _read_checkpoint(path: Path) -> dict:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        return content | {"run": json.loads(content["run"])}
    except Exception as error:
        raise UserError(f"{path}: not a checkpoint of train.py that can be read "
                        f"({str(error).splitlines()[0]}); give another --output") from error


def check_folder(folder: Path, kind: str, resume: bool) -> None:
    """Raise UserError, before any work, if a run of this kind cannot be resumed from the folder, or
    if one that starts there would throw away an unfinished one or one of another kind."""
    checkpoint = folder / CHECKPOINT
    if not checkpoint.exists():
        if resume:
            raise UserError(f"--resume: no {CHECKPOINT} in {folder}; leave --resume out to start")
        return
    content = _read_checkpoint(checkpoint)
    done, steps, there = content["step"], content["run"]["steps"], content["run"]["kind"]
    if there != kind:
        raise UserError(f"{folder}: holds a {there} run, not a {kind} one; give another --output")
    if not resume and done < steps:
        raise UserError(f"{folder}: an unfinished run (step {done} of {steps}); go on with "
                        f"--resume, or give another --output")


def _start_afresh(run: Run) -> tuple[int, int]:
    """Step 0, none skipped, in a clean folder."""
    with writing(run.folder / "log.jsonl"):     # an empty log
        pass
    for old in (run.checkpoint, run.folder / "adapter.safetensors",
                *run.folder.glob("adapter-[0-9]*.safetensors"),
                *run.folder.glob("sheet-[0-9]*.png")):
        old.unlink(missing_ok=True)
    return 0, 0


def _load_checkpoint(run: Run, state: dict, device: torch.device) -> tuple[int, int]:
    """Put everything back as after the checkpoint's step; returns it, and the steps skipped."""
    content = _read_checkpoint(run.checkpoint)
    before, now = content["run"], run.described
    changed = [key for key in now if key != "steps" and before.get(key) != now[key]]
    if changed:
        raise UserError(f"--resume: {run.folder} was started with {changed[0]} = "
                        f"{before.get(changed[0])!r}, not {now[changed[0]]!r}; give the same")
    if content["step"] > now["steps"]:
        raise UserError(f"--steps {now['steps']}: the run in {run.folder} has done "
                        f"{content['step']} already; give at least as many to --resume")
    parameters = _adapter_tensors(run)
    if parameters.keys() != content["adapters"].keys():
        raise UserError(f"--resume: the checkpoint in {run.folder} is of another model")
    with torch.no_grad():
        for key, parameter in parameters.items():
            parameter.copy_(content["adapters"][key])
    state["optimizer"].load_state_dict(content["optimizer"])
    state["scaler"].load_state_dict(content["scaler"])
    state["generator"].set_state(content["generator"])
    torch.set_rng_state(content["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(content["cuda"], device)
    _cut_log(run.folder / "log.jsonl", content["step"])
    return content["step"], content["skipped"]


def _cut_log(path: Path, step: int) -> None:
    """Drop the lines of steps that are run again."""
    lines = path.read_text().splitlines() if path.exists() else []
    with writing(path) as temporary:
        temporary.write_text("".join(line + "\n" for line in lines[:step]))
