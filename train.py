"""Train CustomTTT: the subject, the motion, and the two joined by test-time training.

  python train.py                  all three stages, on the tiny model and its own examples
  python train.py --stage spatial  --data IMAGE_OR_FOLDER... --prompt "a teddy bear"
  python train.py --stage temporal --data VIDEO... --prompt "a man is lifting weights"
  python train.py --stage ttt      --prompt "a teddy bear is lifting weights"

Stage ttt finds what the other two wrote to output/. Every setting of the recipe is a flag, shown
with its source by `python train.py --stage STAGE --help`.
"""

import argparse
from functools import partial
from pathlib import Path

import torch

from customttt.draws import stream_seed
from customttt.errors import UserError, run
from customttt.paper.systems import COMPARED
from customttt.run.checkpoint import CHECKPOINT, check_folder
from customttt.run.data import OUTPUT
from customttt.run.lock import locked
from customttt.run.loop import Run, fit
from customttt.run.options import add_model_flags, add_recipe_flags, chosen_settings, open_model
from customttt.run.sheet import sheet_drawer
from customttt.run.stage import Stage
from customttt.stages import STAGES


def train(stage: Stage, args: argparse.Namespace) -> bool:
    """One stage, from its data to its LoRA file. Returns False if Ctrl-C ended it early."""
    check_folder(args.output, stage.kind, args.resume)
    model, precision = open_model(args)
    settings = chosen_settings(args, stage.recipe, model)
    torch.manual_seed(stream_seed(args.seed, "lora"))
    job = stage.prepare(model, settings, args)
    model.unet.gradient_checkpointing = args.gradient_checkpointing
    draw_sheet = sheet_drawer(model, job.prompt, settings, args.seed, stage.rows, job.above,
                              stage.motion)
    model.text_encoder = model.vae.encoder = None       # their work is done: free the memory

    metadata = job.metadata | {"kind": stage.kind, "prompt": job.prompt, "base_model": model.name,
                               "scale": 1, "recipe": settings}
    parameters = stage.parameters(model)
    finished = fit(Run(
        args.output, model.unet, parameters,
        step=partial(stage.step, model.unet, *job.inputs, settings),
        save=partial(stage.save, model), draw_sheet=draw_sheet, settings=settings,
        metadata=metadata, precision=precision, seed=args.seed,
        checkpoint_every=args.checkpoint_every, sheet_every=args.sheet_every,
        groups=stage.groups(parameters, settings)), args.resume)
    print(f"trained: {args.output / 'adapter.safetensors'}" if finished else
          "stopped and saved; go on with the same command and --resume")
    return finished


def parser_of(stage: Stage | None) -> argparse.ArgumentParser:
    """The flags of a stage; None: those that all stages share."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=[*STAGES, *COMPARED], metavar="STAGE",
                        help=f"{', '.join(STAGES)} (default: all, one after the other); or of the "
                        f"systems that the paper compares with: {', '.join(COMPARED)}")
    add_model_flags(parser)
    parser.add_argument("--output", type=Path, help="folder (default: output/STAGE)")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--checkpoint-every", type=int, default=100, metavar="STEPS",
                        help="default: %(default)s")
    parser.add_argument("--sheet-every", type=int, default=100, metavar="STEPS",
                        help="draw a contact sheet of samples every so many steps and at the end; "
                        "0: never (default: %(default)s)")
    parser.add_argument("--gradient-checkpointing", action="store_true",
                        help="less memory, more time: each block runs again on the way back")
    if stage is not None:
        stage.add_flags(parser.add_argument_group(f"stage {stage.name}"))
        add_recipe_flags(parser.add_argument_group(f"recipe of stage {stage.name}"), stage.recipe)
    return parser


def parse(stage: Stage | None) -> argparse.Namespace:
    args, unknown = parser_of(stage).parse_known_args()
    if unknown:
        raise UserError(f"{unknown[0]}: goes with --stage; see python train.py --stage STAGE --help"
                        if stage is None else
                        f"{unknown[0]}: not a flag of --stage {stage.name}; leave it out, or see "
                        f"python train.py --stage {stage.name} --help")
    for flag, least in (("checkpoint_every", 1), ("sheet_every", 0)):
        if getattr(args, flag) < least:
            raise UserError(f"--{flag.replace('_', '-')}: must be at least {least}")
    return args


def main() -> None:
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--stage", choices=[*STAGES, *COMPARED])
    chosen = first.parse_known_args()[0].stage
    if chosen is None and parse(None).output is not None:       # flags that all stages share, only
        raise UserError("--output: goes with --stage")
    for stage in STAGES.values() if chosen is None else [(STAGES | COMPARED)[chosen]]:
        args = parse(stage)
        if args.output is None:
            args.output = OUTPUT / stage.name
        if chosen is None:
            print(f"\nstage {stage.name}")
            args.resume &= (args.output / CHECKPOINT).exists()
        with locked(args.output):
            finished = train(stage, args)
        if not finished:
            return


if __name__ == "__main__":
    run(main)
