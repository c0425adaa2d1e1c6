"""Train CustomTTT: the subject, the motion, and the two joined by test-time training.

  python train.py                  all three stages, on the tiny model and its own examples
  python train.py --stage spatial  --data IMAGE_OR_FOLDER... --prompt "a teddy bear"
  python train.py --stage temporal --data VIDEO... --prompt "a man is lifting weights"
  python train.py --stage ttt      --prompt "a teddy bear is lifting weights"

Stage ttt finds what the other two wrote to output/. Every setting of the recipe is a flag, shown
with its source by `python train.py --stage STAGE --help`.
"""

import argparse
import contextlib
import os

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")      # before torch is imported: run/memory.py

from customttt.errors import STOPPED, UserError, command_parser, flag, run_command
from customttt.paper.systems import COMPARED
from customttt.run.checkpoint import CHECKPOINT, check_folder
from customttt.run.data import OUTPUT
from customttt.run.lock import locked
from customttt.run.memory import keep_freed_memory
from customttt.run.stage import Stage
from customttt.run.train import add_training_flags, train
from customttt.stages import STAGES


def parser_of(stage: Stage | None) -> argparse.ArgumentParser:
    """The flags of a stage; None: those that all stages share."""
    parser = command_parser(__doc__)
    parser.add_argument("--stage", choices=[*STAGES, *COMPARED], metavar="STAGE",
                        help=f"{', '.join(STAGES)} (default: all, one after the other); or of the "
                        f"systems that the paper compares with: {', '.join(COMPARED)}")
    add_training_flags(parser, stage)
    return parser


def parse(stage: Stage | None) -> argparse.Namespace:
    args, unknown = parser_of(stage).parse_known_args()
    if unknown:
        if not unknown[0].startswith("-"):
            hint = (f"give --stage {unknown[0]}" if unknown[0] in STAGES | COMPARED else
                    "if it belongs to a text, put that into quotes")
            raise UserError(f"{unknown[0]}: not a flag; {hint}")
        raise UserError(f"{unknown[0]}: goes with --stage; see python train.py --stage STAGE --help"
                        if stage is None else
                        f"{unknown[0]}: not a flag of --stage {stage.name}; leave it out, or see "
                        f"python train.py --stage {stage.name} --help")
    for name, least in (("checkpoint_every", 1), ("sheet_every", 0)):
        if getattr(args, name) < least:
            raise UserError(f"{flag(name)}: must be at least {least}")
    return args


def main() -> int:
    """Returns the exit code."""
    first = command_parser(add_help=False)
    first.add_argument("--stage", choices=[*STAGES, *COMPARED])
    chosen = first.parse_known_args()[0].stage
    if chosen is None:
        shared = parse(None)        # raises for a flag that one stage alone has
        if shared.output is not None:
            raise UserError("--output: goes with --stage")
    runs = []
    for stage in STAGES.values() if chosen is None else [(STAGES | COMPARED)[chosen]]:
        args = parse(stage)
        if args.output is None:
            args.output = OUTPUT / stage.name
        if chosen is None:
            args.resume &= (args.output / CHECKPOINT).exists()
        runs.append((stage, args))

    with contextlib.ExitStack() as held:
        for stage, args in runs:        # the last folder, too, before the first stage trains
            held.enter_context(locked(args.output))
            check_folder(args.output, stage.kind, args.resume)
        for k, (stage, args) in enumerate(runs):
            if chosen is None:
                print(f"\nstage {stage.name}")
            outdated = [later.output / CHECKPOINT for _, later in runs[k + 1:] if not later.resume]
            if not train(stage, args, outdated):
                return STOPPED
    return 0


if __name__ == "__main__":
    keep_freed_memory()
    run_command(main)
