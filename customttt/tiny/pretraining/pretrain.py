"""Pretrain the tiny model in the order of the real ones: CLIP, VAE, image UNet, motion modules.

    python -m customttt.tiny.pretraining all --output weights/tiny      (or one stage: clip, ...)

A stage reads what the stages before it wrote to --output (frozen, in fp16, as it is shipped) and
writes its own part there: an exponential average of the weights. Run again after an interruption,
it goes on from its last checkpoint in --work. Every step draws from a generator seeded by --seed,
the stage and the step, so a resumed run is the same run. `objectives.py`, `images.py` and
`videos.py` say what each stage minimises.

On two cores two processes of one thread are faster than one of two; they share each batch:

    OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node 2 -m customttt.tiny.pretraining unet

On a GPU a step is so quick that other processes must draw its batch, and larger ones cost little:

    python -m customttt.tiny.pretraining unet --device cuda --workers 14 --batch 256
"""

import json
import math
import os
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Generator, Tensor, nn
from tqdm import tqdm

from ...errors import UserError, command_parser, in_words
from ...files.reading import save_pickled
from ...model import frozen
from ...paper.ranks import own_device, rank_of_ranks
from ...run.checkpoint import cut_log
from ...run.options import device_named
from . import images, objectives, videos
from .data import Machine
from .muon import Muon
from .objectives import RECIPES, Recipe, Stage

STAGES = {"clip": objectives.clip_stage, "vision": objectives.vision_stage,
          "tune": objectives.tune_stage, "vae": objectives.vae_stage,
          "sharpen": objectives.sharpen_stage, "whole": objectives.whole_stage,
          "crops": images.crops_stage, "unet": images.unet_stage, "few": videos.few_stage,
          "half": videos.half_stage, "motion": videos.motion_stage}

SAVE_EVERY = 60     # seconds between checkpoints
LOG_EVERY = 20      # steps between lines of the log


def train(name: str, folder: Path, work: Path, recipe: Recipe, seed: int, rank: int,
          processes: int, machine: Machine = Machine()) -> None:
    recipe = share_of(recipe, processes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        stage = STAGES[name](folder, work, recipe, machine)
    stage.module.train().to(machine.device)
    weights = [p for p in stage.module.parameters() if p.requires_grad]
    averages = [p.detach().clone() for p in weights]
    optimizers = make_optimizers(weights, recipe)
    checkpoint, log = work / f"{name}.pt", work / f"{name}.log.jsonl"
    done, seconds = resume(checkpoint, weights, averages, optimizers, seed)
    if rank == 0:
        cut_log(log, done // LOG_EVERY)
        if done >= recipe.steps > 0:    # by an earlier command, perhaps to another folder
            save_averages(stage, weights, averages, folder)

    def draw(step: int) -> tuple[Tensor, ...]:
        seed_of_step = zlib.crc32(f"{name} {seed} {step} {rank}".encode())
        return stage.draw(Generator().manual_seed(seed_of_step))

    gradients = partial(gradients_of, stage, weights)
    if stage.alike and machine.device.type == "cuda":
        gradients = Replayed(gradients)
    started = saved = time.monotonic()
    steps = range(done, recipe.steps)
    bar = tqdm(zip(steps, machine.each(draw, steps)), desc=name, initial=done, total=recipe.steps,
               mininterval=5, disable=rank > 0)
    running = None
    for step, batch in bar:
        loss = gradients(*(each.to(machine.device, non_blocking=True) for each in batch))
        if processes > 1:
            average_gradients(weights)
        update(step, recipe, weights, averages, optimizers)
        if rank > 0:
            continue
        running = loss.clone() if running is None else running.lerp(loss, 0.02)
        now = time.monotonic()
        if (step + 1) % LOG_EVERY == 0:
            bar.set_postfix(loss=f"{running.item():.4f}", refresh=False)
            add_line(log, {"step": step + 1, "loss": round(running.item(), 5),
                           "seconds": round(seconds + now - started, 1)})
        if now - saved > SAVE_EVERY or step + 1 == recipe.steps:
            save_pickled({
                "step": step + 1, "seconds": seconds + now - started, "seed": seed,
                "weights": weights, "averages": averages,
                "optimizers": [each.state_dict() for each in optimizers]}, checkpoint)
            save_averages(stage, weights, averages, folder)
            saved = now


def gradients_of(stage: Stage, weights: list[Tensor], *batch: Tensor) -> Tensor:
    """Of a batch's loss; returns it."""
    for p in weights:
        p.grad = None
    loss = stage.loss(*batch)
    loss.backward()
    return loss.detach()


def share_of(recipe: Recipe, processes: int) -> Recipe:
    """The recipe of one of the processes that share each batch."""
    if recipe.batch % processes:
        raise UserError(f"--batch {recipe.batch}: {processes} processes cannot share it evenly")
    return replace(recipe, batch=recipe.batch // processes)


def update(step: int, recipe: Recipe, weights: list[Tensor], averages: list[Tensor],
           optimizers: list[torch.optim.Optimizer]) -> None:
    """The weights by their gradients, at the schedule's rates; then their moving averages."""
    nn.utils.clip_grad_norm_(weights, 1.0)
    for optimizer in optimizers:
        optimizer.param_groups[0]["lr"] = optimizer.defaults["lr"] * schedule(step, recipe)
        optimizer.step()
    decay = min(recipe.average, (1 + step) / (10 + step))
    torch._foreach_lerp_(averages, [p.detach() for p in weights], 1 - decay)


def add_line(log: Path, line: dict) -> None:
    with log.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


class Replayed:
    """A function of tensors of one shape each, recorded as a CUDA graph when first called: started
    one by one, the miniature's kernels would take longer to start than to run."""

    def __init__(self, function: Callable[..., Tensor]):
        self.function, self.graph = function, None

    def __call__(self, *inputs: Tensor) -> Tensor:
        if self.graph is None:
            self.inputs = [each.clone() for each in inputs]
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):          # libraries choose their kernels in first runs
                for _ in range(3):
                    self.function(*self.inputs)
            torch.cuda.current_stream().wait_stream(aside)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
                self.output = self.function(*self.inputs)
        for own, each in zip(self.inputs, inputs, strict=True):
            own.copy_(each, non_blocking=True)
        self.graph.replay()
        return self.output


def make_optimizers(weights: list[Tensor], recipe: Recipe) -> list[torch.optim.Optimizer]:
    matrices = [p for p in weights if p.ndim == 2 and recipe.muon_lr]
    others = [p for p in weights if p.ndim != 2 or not recipe.muon_lr]
    made = [torch.optim.AdamW(others, recipe.lr, (0.9, 0.99), weight_decay=recipe.weight_decay,
                              fused=True)]
    if matrices:
        made.append(Muon(matrices, recipe.muon_lr, recipe.weight_decay))
    return made


def average_gradients(weights: list[Tensor]) -> None:
    """Over the processes."""
    flat = torch.cat([p.grad.flatten() for p in weights])
    dist.all_reduce(flat, dist.ReduceOp.SUM)
    flat /= dist.get_world_size()
    for p, grad in zip(weights, flat.split([p.numel() for p in weights])):
        p.grad.copy_(grad.view_as(p))


def schedule(step: int, recipe: Recipe) -> float:
    """What the learning rate is multiplied by."""
    cosine = 0.5 + 0.5 * math.cos(math.pi * step / recipe.steps)
    return min(1.0, (step + 1) / recipe.warm_up) * max(cosine, 0.01)


@torch.no_grad()
def resume(checkpoint: Path, weights: list[Tensor], averages: list[Tensor],
           optimizers: list[torch.optim.Optimizer], seed: int) -> tuple[int, float]:
    """Fill them all from the checkpoint, if there is one; the steps done and their seconds. Raises
    UserError for that of another seed, or one that cannot be read."""
    if not checkpoint.is_file():
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        return 0, 0.0
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        if state["seed"] != seed:
            raise UserError(f"--seed {seed}: {checkpoint} is of a run with {state['seed']}; give "
                            f"another --work")
        for into, tensors in ((weights, state["weights"]), (averages, state["averages"])):
            for tensor, kept in zip(into, tensors, strict=True):
                tensor.copy_(kept)
        for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        return state["step"], state["seconds"]
    except UserError:
        raise
    except Exception as error:      # a file that is cut, or of something else
        raise UserError(f"{checkpoint}: not a checkpoint of this stage that can be read "
                        f"({in_words(error)}); remove it, or give another --work") from error


@torch.no_grad()
def save_averages(stage: Stage, weights: list[Tensor], averages: list[Tensor],
                  folder: Path) -> None:
    """Write the stage's part with the averages in the place of the weights."""
    kept = [p.clone() for p in weights]
    for p, average in zip(weights, averages):
        p.copy_(average)
    stage.save(folder)
    for p, own in zip(weights, kept):
        p.copy_(own)


def main() -> None:
    parser = command_parser(__doc__)
    parser.add_argument("stage", choices=[*STAGES, "all"])
    parser.add_argument("--output", type=Path, default=Path("weights/tiny"), help="model folder")
    parser.add_argument("--work", type=Path, default=Path("output/tiny"),
                        help="checkpoints and logs")
    parser.add_argument("--steps", type=int, help="in place of the recipe's")
    parser.add_argument("--batch", type=int, help="in place of the recipe's")
    parser.add_argument("--examples", type=int, help="in place of the recipe's")
    parser.add_argument("--seed", type=int, default=0,
                        help="another one where a stage is trained once more, on other draws")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=0,
                        help="processes that draw batches ahead (default: 0, its own)")
    arguments = parser.parse_args()
    for name, least in (("steps", 0), ("batch", 1), ("examples", 1), ("workers", 0)):
        if (value := getattr(arguments, name)) is not None and value < least:
            raise UserError(f"--{name} {value}: must be {least} or more")
    machine = Machine(device_named(own_device(arguments.device)), arguments.workers)
    if machine.device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.cuda.set_device(machine.device.index or 0)    # whose streams and graphs are used
        frozen.LARGE = math.inf         # memory is plenty: nothing is recomputed, or in parts
    if "RANK" in os.environ:                        # started by torchrun
        dist.init_process_group("gloo")
    rank, processes = rank_of_ranks()
    for name in STAGES if arguments.stage == "all" else [arguments.stage]:
        given = {key: value for key in ("steps", "batch", "examples")
                 if (value := getattr(arguments, key)) is not None}
        train(name, arguments.output, arguments.work, replace(RECIPES[name], **given),
              arguments.seed, rank, processes, machine)
        if processes > 1:
            dist.barrier()                          # the next stage reads what rank 0 has written
