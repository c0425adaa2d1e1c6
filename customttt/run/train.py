"""One stage, from its flags to its LoRA file: what train.py runs, and the paper's tables."""

import argparse
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import torch

from ..draws import stream_seed
from ..errors import UserError
from ..media.clips import write_frames
from .checkpoint import start_afresh
from .loop import Run, fit
from .options import add_model_flags, add_recipe_flags, chosen_settings, open_model
from .sheet import sheet_writer
from .stage import Stage, train_only


def train(stage: Stage, args: argparse.Namespace, outdated: Iterable[Path] = ()) -> bool:
    """One stage, from its data to its LoRA file. `outdated`: checkpoints of finished runs of later
    stages, which a later --resume must not find; removed once nothing can be wrong any more with
    this stage's flags. Returns False if Ctrl-C came."""
    model, precision = open_model(args, stage.motion)
    # Elsewhere a dropout that is computed again (model/frozen.py) would differ.
    if model.device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {args.device}: training is for cpu and cuda; give one of them")
    settings = chosen_settings(args, stage.recipe, model)
    base_checksum = model.checksum()
    torch.manual_seed(stream_seed(args.seed, "lora"))
    job = stage.prepare(model, settings, args)
    model.unet.gradient_checkpointing = args.gradient_checkpointing
    write_sheet = sheet_writer(model, job.prompt, job.metadata | settings, args.seed, stage.rows,
                               job.above, stage.motion)
    model.text_encoder = model.vae.encoder = None       # their work is done: free the memory

    metadata = {"kind": stage.kind, "prompt": job.prompt, "base_model": model.name, "scale": 1,
                "recipe": settings} | job.metadata
    if (motion := model.unet.config.motion) is not None:
        metadata["motion_version"] = motion.version
    parameters = stage.parameters(model)
    train_only(model.unet, parameters)
    for each in outdated:
        each.unlink(missing_ok=True)
    if job.data is not None and not args.resume:
        start_afresh(args.output)       # the log first: by it the folder is known as a run's
        write_frames(job.data, args.output / "data.png")
    finished, stopped = fit(Run(
        args.output, model.unet, parameters, stage.optimizer(parameters, settings),
        step=partial(stage.step, model.unet, *job.inputs, settings),     # stages.py
        save=partial(stage.save, model), write_sheet=write_sheet, settings=settings,
        metadata=metadata, precision=precision, seed=args.seed, base_checksum=base_checksum,
        checkpoint_every=args.checkpoint_every, sheet_every=args.sheet_every), args.resume)
    print(f"trained: {args.output / 'adapter.safetensors'}" if finished else
          "stopped and saved; go on with the same command and --resume")
    return not stopped


def add_training_flags(parser: argparse.ArgumentParser, stage: Stage | None) -> None:
    """All that `train` reads of its arguments; without a stage, what all stages share."""
    add_model_flags(parser)
    parser.add_argument("--output", type=Path, help="folder (default: output/STAGE)")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--checkpoint-every", type=int, default=100, metavar="STEPS",
                        help="also every ten minutes, before each sheet and at the end (default: "
                        "%(default)s)")
    parser.add_argument("--sheet-every", type=int, default=250, metavar="STEPS",
                        help="draw a contact sheet of samples every so many steps and at the end; "
                        "0: never (default: %(default)s)")
    parser.add_argument("--gradient-checkpointing", action="store_true",
                        help="less memory, more time: the backward pass runs each block again")
    if stage is not None:
        stage.add_flags(parser.add_argument_group(f"stage {stage.name}"))
        add_recipe_flags(parser.add_argument_group(f"recipe of stage {stage.name}"), stage.recipe)
