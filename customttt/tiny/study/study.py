"""What each stage does in the tiny world; and the paper's tables there, with the truth beside.

  python -m customttt.tiny.study                what each stage does: the rows below
  python -m customttt.tiny.study 1              a table of the paper: 1, 3 or 4

The protocol is protocol.py's; the cache, the processes and the flags are customttt.paper.tables'.
To the paper's scores come those of a world whose truth is known (scores.py):

  true identity, true motion    of the subject's colours; of the path, measured in the frames
  another's identity, motion    the same, held against what was not learned
  words                         of subject and scene, the share that CLIP chooses right
  CLIP-T (truth)                against the truth's caption, with the colours that no prompt says
"""

import argparse
from dataclasses import replace
from pathlib import Path

from torch import Generator, Tensor

from ...errors import command_parser
from ...paper import tables
from ...paper.clip import clip_fingerprint
from ...paper.rows import Group, Row, Scorer, Unit, paper_scorer
from ..pretraining.judge import Judge
from ..world.clips import make_clip, render
from ..world.motions import HELD_OUT_MOTIONS
from ..world.subjects import HELD_OUT_SUBJECTS
from .protocol import combination_of, write_protocol
from .scores import Combination, judged, measured, other_motion, other_subject

PROTOCOL = "tiny-protocol"      # its folder in --output


def rendered(combination: Combination, seed: int) -> Tensor:
    """uint8 (f H W 3): the subject on the path, at a place of the seed's."""
    return render(make_clip(HELD_OUT_SUBJECTS[combination.subject],
                            HELD_OUT_MOTIONS[combination.motion], combination.scene,
                            Generator().manual_seed(seed)))


def truth(group: Group, prompt: str, seed: int) -> Tensor:
    return rendered(combination_of(group, prompt), seed)


SAMPLED_ROWS = (
    Row("base", (), ()), Row("subject only", motion=()), Row("motion only", subject=()),
    Row("joined, no ttt"), Row("joined, ttt", ttt=()))
ROWS = (Row("rendered truth", clip=truth), *SAMPLED_ROWS)
DIFFERENCES = (("subject only", "base"), ("motion only", "base"), ("joined, ttt", "joined, no ttt"))


def truth_scorer(args: argparse.Namespace) -> Scorer:
    judge = Judge(args.model)

    def scores(clip: Tensor, unit: Unit, loras: dict[str, Path]) -> dict[str, float]:
        right = combination_of(unit.group, unit.prompt)
        wrong = replace(right, subject=other_subject(right.subject),
                        motion=other_motion(right.motion))
        own, another = (measured(each, clip, args.seed) for each in (right, wrong))
        by_clip = judged(judge, right, clip)
        return {"true identity": own["identity"], "true motion": own["motion"],
                "another's identity": another["identity"], "another's motion": another["motion"],
                "words": by_clip["words"], "CLIP-T (truth)": by_clip["CLIP-T"]}
    told = {"judge": clip_fingerprint(Path(args.model) / "clip"),
            "CLIP-T (truth)": "the caption with the subject's colours"}
    return Scorer("truth", told, scores)


def scorers(args: argparse.Namespace) -> list[Scorer]:
    return [paper_scorer(args), truth_scorer(args)]


def main() -> None:
    parser = command_parser(__doc__)
    parser.add_argument("table", type=int, nargs="?", choices=list(tables.TABLES))
    tables.add_flags(parser)
    args = parser.parse_args()
    tables.check(args)
    groups = write_protocol(args.output / PROTOCOL)
    if args.table is None:
        tables.make(args, "stages", tables.units_of(ROWS, groups), scorers(args), DIFFERENCES,
                    "customttt.tiny.study")
    else:
        tables.make_table(args, args.table, groups, scorers(args), "customttt.tiny.study")
