"""What the commands of the tables and of the probe share: their flags, and what is wrong with
them."""

import argparse
import contextlib
import io
from pathlib import Path

from ..errors import UserError
from ..recipes import EVERYWHERE, SMALL, Recipe
from ..run.options import (add_model_flags, add_recipe_flags, chosen_settings, device_named,
                           open_model, require_motion)
from .cache import OUTPUT
from .ranks import own_device

SAMPLED = Recipe(EVERYWHERE, SMALL)     # what a clip is sampled with
COUNTS = ("prompts", "number", "combinations", "steps")     # flags, in one or another


def add_shared_flags(parser: argparse.ArgumentParser) -> None:
    add_model_flags(parser)
    parser.add_argument("--clip", type=Path, metavar="M",
                        help="folder or file of the CLIP that judges (default: clip/ in the "
                        "model's folder)")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="FOLDER",
                        help="default: %(default)s")
    add_recipe_flags(parser, SAMPLED)


def check_shared(args: argparse.Namespace) -> None:
    """Raise UserError now, and not after hours of work. Fills in --clip; under torchrun each
    process gets its own GPU."""
    for name in COUNTS:
        value = getattr(args, name, None)
        if value is not None and value < 1:
            raise UserError(f"--{name} {value}: must be positive")
    args.device = own_device(args.device)
    device_named(args.device)
    with contextlib.redirect_stdout(io.StringIO()):     # what it says, each process would say again
        model, _ = open_model(args)
        if chosen_settings(args, SAMPLED, model)["frames"] < 2:
            raise UserError("--frames 1: the scores are of clips; give 2 or more")
    require_motion(model)
    args.clip = args.clip or Path(args.model) / "clip"
