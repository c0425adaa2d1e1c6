"""Where the tiny recipe's numbers come from: settings of a stage, scored side by side.

  python -m customttt.tiny.study.search spatial "--spatial-layers 1 7" "--spatial-layers 2 6"
  python -m customttt.tiny.study.search temporal "--learning-rate 1e-4" "--learning-rate 3e-4"
  python -m customttt.tiny.study.search joined 0.6 0.8 1 --spatial="--steps 300"
  python -m customttt.tiny.study.search ttt "" "--learning-rate 3e-5 --motion-prompt {prompt}"
  python -m customttt.tiny.study.search dreamvideo "" "--learning-rate 1e-4"

spatial, temporal: train.py's stage under each setting (its flags), on a few held-out subjects or
motions, with the motion modules in. joined: scales of the spatial LoRA beside the temporal one,
both as --spatial and --temporal say, without test-time training. ttt: settings of test-time
training on the same two; in them {prompt} and {doing} are the combination's "a fish is moving up in
the sea" and "moving up in the sea". dreamvideo: settings of both stages that learn its subject,
beside its motion as --temporal says. A setting of one word needs a space before it: " --debiased".
One row a setting: mean and 95% interval over the combinations, which are not those that the study
reports; then what each setting gains over the first (of ttt: over the two joined as they are).
"""

import argparse
import math
import shlex
from dataclasses import replace

from ...errors import UserError, command_parser, run_command
from ...paper import tables
from ...paper.rows import Group, Row
from ...paper.systems import SYSTEMS
from .protocol import TRIED, write_group
from .scores import combinations
from .study import scorers

JOINED = "joined, no ttt"
# The flags of what a search's settings are beside, and the searches that have it.
BESIDE = {"spatial": ("joined", "ttt"), "temporal": ("joined", "ttt", "dreamvideo")}


def flags_of(text: str, of: str = "settings") -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise UserError(f"{of} {text}: not flags as a shell reads them ({error})") from error


def rows_of(what: str, settings: list[str], spatial: str = "", temporal: str = "") -> list[Row]:
    """A row for each setting; of ttt also the two joined as they are."""
    joined = Row(JOINED, subject_flags=flags_of(spatial, "--spatial"),
                 motion_flags=flags_of(temporal, "--temporal"))
    if what == "joined":
        try:
            scales = [float(each) for each in settings]
        except ValueError as error:
            raise UserError(f"settings {shlex.join(settings)}: scales are numbers") from error
        if not all(map(math.isfinite, scales)):
            raise UserError(f"settings {shlex.join(settings)}: scales are finite numbers")
        return [replace(joined, name=f"scale {each}", scales=(scale, 1.0))
                for each, scale in zip(settings, scales)]
    named = [(each.strip() or "as it is", flags_of(each)) for each in settings]
    if what == "spatial":
        return [Row(name, motion=(), subject_flags=flags) for name, flags in named]
    if what == "temporal":
        return [Row(name, subject=(), motion_flags=flags) for name, flags in named]
    if what == "dreamvideo":
        subject, motion = (tuple(stage.name for stage in some) for some in SYSTEMS["DreamVideo"])
        return [Row(name, subject, motion, flags, joined.motion_flags) for name, flags in named]
    return [joined, *(replace(joined, name=name, ttt=flags) for name, flags in named)]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Which combinations; and the tables' flags."""
    parser.add_argument("--start", type=int, default=0, help="the first combination")
    parser.add_argument("--combinations", type=int, default=6)
    tables.add_flags(parser)
    parser.set_defaults(seed=5)     # what is tried shares no draw with what is reported


def groups_of(args: argparse.Namespace) -> list[Group]:
    """One a combination, of one prompt."""
    if args.start < 0 or args.start + args.combinations > TRIED:
        raise UserError(f"--start {args.start}, --combinations {args.combinations}: those that may "
                        f"be tried are 0 to {TRIED - 1}; the study reports others")
    return [write_group(args.output / "tiny-search", [each])
            for each in combinations(args.start, args.combinations)]


def main() -> None:
    parser = command_parser(__doc__)
    parser.add_argument("what", choices=["spatial", "temporal", "joined", "ttt", "dreamvideo"])
    parser.add_argument("settings", nargs="*", help="flags of the stage, or scales")
    for kind, used in BESIDE.items():
        parser.add_argument(f"--{kind}", default="", metavar="FLAGS",
                            help=f"the {kind} stage's flags, in {', '.join(used)}")
    add_flags(parser)
    args = parser.parse_args()
    if not args.settings:
        raise UserError("settings: give at least one")
    for kind, used in BESIDE.items():
        if getattr(args, kind) and args.what not in used:
            raise UserError(f"--{kind}: goes with {', '.join(used)}; leave it out")
    tables.check(args)
    rows = rows_of(args.what, args.settings, args.spatial, args.temporal)
    pairs = [(row.name, rows[0].name) for row in rows[1:]]
    tables.make(args, f"search-{args.what}", tables.units_of(rows, groups_of(args)),
                scorers(args), pairs, "customttt.tiny.study.search")


if __name__ == "__main__":
    run_command(main)
