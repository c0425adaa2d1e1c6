"""The training loop: steps, log, checkpoints, contact sheets, Ctrl-C. It knows no stage."""

import contextlib
import json
import math
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from ..draws import Draws, stream_seed
from ..errors import UserError, full_memory, in_words
from . import checkpoint

MOST_SKIPPED = 20       # non-finite steps in a row that end a run
MOST_LOST = 600         # seconds of training that a kill may cost, beside the step that it falls in
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Run:
    """One training run and what it leaves in its folder.

    adapter.safetensors, adapter-000100.safetensors, ...: what was trained; log.jsonl: one line a
    step; sheet-000250.png, ...: samples; checkpoint.pt: all that `--resume` needs.
    """

    folder: Path
    module: nn.Module           # in training mode during a step; its device is the run's
    parameters: dict[str, nn.Parameter]             # what is trained
    optimizer: Optimizer        # of the parameters
    step: Callable[[Draws, Callable[[Tensor], None]], None]     # draws, backward: one step
    save: Callable[[Path, dict], None]              # writes what is trained, with metadata
    write_sheet: Callable[[Path], None]             # writes samples of what it does by now
    settings: dict              # the recipe, as it is used
    metadata: dict              # of the files; "kind" says what is trained
    precision: str              # "fp32", "bf16" or "fp16"
    seed: int
    base_checksum: str          # a checksum of the model that it starts from
    checkpoint_every: int
    sheet_every: int            # 0: never


def fit(run: Run, resume: bool) -> tuple[bool, bool]:
    """Train to `steps`. Returns whether all are done, and whether Ctrl-C came (everything is saved
    then)."""
    device = next(run.module.parameters()).device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)      # of this run alone
    scaler = torch.amp.GradScaler(device.type, enabled=run.precision == "fp16")
    torch.manual_seed(stream_seed(run.seed, "dropout"))
    state = checkpoint.State(run, scaler, Draws(run.seed), device)
    steps = run.settings["steps"]
    if resume:
        state.load()
        if state.step < steps:      # if it was finished, it is unfinished from here on
            state.save()
            (run.folder / "adapter.safetensors").unlink(missing_ok=True)
        else:
            _save_trained(run)
        if sheet_is_due(run, state.step) and not sheet_path(run, state.step).exists():
            _write_sheet(run, state.step, device)       # a kill came before it
    else:
        checkpoint.start_afresh(run.folder)

    in_a_row, mean = 0, None        # steps that were not finite; running mean of the loss
    run.module.train()
    with _until_interrupted() as interrupted, tqdm(
            total=steps, initial=state.step, desc=run.folder.name, unit="step") as bar:
        while state.step < steps and not interrupted():
            start = time.perf_counter()
            loss, finite = update(run, scaler, state.draws, device)
            if not finite:      # no step was made: another one is tried
                state.skipped, in_a_row = state.skipped + 1, in_a_row + 1
                if in_a_row == MOST_SKIPPED:
                    raise UserError(f"the loss or its gradient was not finite for {in_a_row} steps "
                                    f"in a row; try --precision fp32 or a smaller --learning-rate")
                continue
            state.step, in_a_row = state.step + 1, 0
            _append(run.folder / "log.jsonl", {
                "step": state.step, "loss": loss, "learning_rate": run.settings["learning_rate"],
                "seconds": round(time.perf_counter() - start, 4),
                "memory_gb": round(peak_memory(device), 3), "skipped": state.skipped})
            mean = loss if mean is None else 0.95 * mean + 0.05 * loss
            skipped = {"skipped": state.skipped} if state.skipped else {}
            bar.set_postfix({"loss": f"{mean:.4f}"} | skipped, refresh=False)
            bar.update()
            sheet_due = sheet_is_due(run, state.step)       # it takes long: all is saved before it
            if (state.step % run.checkpoint_every == 0 or state.step == steps or sheet_due
                    or time.monotonic() - state.saved_at > MOST_LOST):
                state.save()
            if state.step == steps:
                _save_trained(run)
            if sheet_due and (state.step == steps or not interrupted()):
                _write_sheet(run, state.step, device)       # else as the run is resumed
                state.saved_at = time.monotonic()
        if state.saved != state.step:       # Ctrl-C
            state.save()
    return state.step == steps, interrupted()


def _save_trained(run: Run) -> None:
    run.save(run.folder / "adapter.safetensors", run.metadata | {"step": run.settings["steps"]})


def update(run: Run, scaler: torch.amp.GradScaler, draws: Draws, device: torch.device,
           ) -> tuple[float, bool]:
    """One step. Returns its loss, and whether that and its gradient were finite: else no update."""
    losses = []

    def backward(loss: Tensor) -> None:
        with torch.autocast(device.type, enabled=False):    # that is for the forward pass alone
            scaler.scale(loss).backward()
        losses.append(loss.detach())

    run.optimizer.zero_grad()
    with autocast(device, run.precision):
        run.step(draws, backward)
    scaler.unscale_(run.optimizer)
    norm = nn.utils.get_total_norm([p.grad for p in run.parameters.values() if p.grad is not None])
    total, norm = torch.stack([sum(losses), norm]).tolist()
    finite = math.isfinite(total) and math.isfinite(norm)
    if finite:
        scaler.step(run.optimizer)
    scaler.update()
    return total, finite


def autocast(device: torch.device, precision: str):
    """Mixed precision: the UNet in fp16 or bf16, LoRA weights and the optimizer in fp32."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, DTYPES[precision])


def peak_memory(device: torch.device) -> float:
    """GB at the most so far: of this run on a GPU, or of the process on a CPU (0 where that is not
    known)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    try:
        import resource     # not on Windows
    except ImportError:
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def sheet_is_due(run: Run, step: int) -> bool:
    """Every `sheet_every` steps and after the last one."""
    return bool(run.sheet_every) and step > 0 and (
        step % run.sheet_every == 0 or step == run.settings["steps"])


def sheet_path(run: Run, step: int) -> Path:
    return run.folder / f"sheet-{step:06}.png"


def _write_sheet(run: Run, step: int, device: torch.device) -> None:
    """Where memory does not suffice for a sheet, training goes on without it."""
    run.module.eval()
    try:
        with torch.no_grad(), autocast(device, run.precision):
            run.write_sheet(sheet_path(run, step))
    except (MemoryError, RuntimeError) as error:
        if (full := full_memory(error)) is None:
            raise
        warnings.warn(f"{sheet_path(run, step)}: not drawn, {full} is full; --sheet-every 0 leaves "
                      f"sheets out, with --resume too", stacklevel=2)
    run.module.train()


@contextlib.contextmanager
def _until_interrupted() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether Ctrl-C (or SIGTERM) came; a second one stops at once."""
    came = []

    def note(number, frame):
        if came:
            raise KeyboardInterrupt
        came.append(number)
        with contextlib.suppress(RuntimeError):     # it came in the middle of a line
            print("\nfinishing this step or sheet; once more to stop at once, with what was saved "
                  "before", file=sys.stderr)

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
        raise UserError(f"{path}: cannot be written ({in_words(error)}); make room") from error
