"""What each metric of the paper is worth: how it goes along with the truth, over clips of which the
subject and the path are known.

  python -m customttt.tiny.study.metrics [--sampled 10]

For each prompt of the protocol: the truth, rendered; the same backwards; its first frame alone;
another subject of its kind on the same path; a ball in the body's colour there; the subject on
another path; the truth after the VAE.
With --sampled N also what the model makes of the first prompt of N groups: base, subject only,
motion only, joined. Prints the mean of each metric by kind of clip, then Pearson's and Spearman's
correlation with the true identity and the true motion, with a 95% interval over the groups
(bootstrap), and writes both (metrics-seed-0.json).
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Generator, Tensor

from ...errors import UserError, command_parser, run_command
from ...media.clips import as_frames, as_pixels
from ...paper import tables
from ...paper.rows import Group, Row, Unit
from ..pretraining.parts import load_vae
from ..world.clips import make_clip, render
from ..world.motions import HELD_OUT_MOTIONS
from ..world.subjects import HELD_OUT_SUBJECTS, Subject
from .protocol import combination_of, write_protocol
from .scores import other_motion, other_subject
from .study import PROTOCOL, SAMPLED_ROWS, rendered, scorers, truth


def backwards(group: Group, prompt: str, seed: int) -> Tensor:
    return truth(group, prompt, seed).flip(0)


def still(group: Group, prompt: str, seed: int) -> Tensor:
    frames = truth(group, prompt, seed)
    return frames[:1].expand_as(frames)


def another_subject(group: Group, prompt: str, seed: int) -> Tensor:
    right = combination_of(group, prompt)
    return rendered(replace(right, subject=other_subject(right.subject)), seed)


def plain_ball(group: Group, prompt: str, seed: int) -> Tensor:
    """What the true identity is worth without kind and pattern."""
    right = combination_of(group, prompt)
    ball = Subject("ball", HELD_OUT_SUBJECTS[right.subject].colours[:1])
    return render(make_clip(ball, HELD_OUT_MOTIONS[right.motion], right.scene,
                            Generator().manual_seed(seed)))


def another_path(group: Group, prompt: str, seed: int) -> Tensor:
    right = combination_of(group, prompt)
    return rendered(replace(right, motion=other_motion(right.motion)), seed)


@torch.no_grad()
def after_vae(model: Path, group: Group, prompt: str, seed: int) -> Tensor:
    vae = load_vae(model)
    return as_frames(vae.decode(vae.encode(as_pixels(truth(group, prompt, seed)))))


def spread(model: Path) -> list[Row]:
    """Kinds of clips whose subject and path are known. `model`: its folder."""
    return [Row("rendered truth", clip=truth), Row("backwards", clip=backwards),
            Row("still", clip=still), Row("another subject", clip=another_subject),
            Row("a plain ball", clip=plain_ball), Row("another path", clip=another_path),
            Row("after the VAE", clip=partial(after_vae, model))]


def main() -> None:
    parser = command_parser(__doc__)
    parser.add_argument("--sampled", type=int, default=0, metavar="N",
                        help="groups of which the model's own clips count too (default: none)")
    tables.add_flags(parser)
    args = parser.parse_args()
    if args.sampled < 0:
        raise UserError(f"--sampled {args.sampled}: must be 0 or more")
    tables.check(args)
    groups = write_protocol(args.output / PROTOCOL)
    units = [*tables.units_of(spread(Path(args.model)), groups),
             *(Unit(row, group, 0) for group in groups[:args.sampled] for row in SAMPLED_ROWS)]
    result = tables.make(args, "metrics", units, scorers(args), [], "customttt.tiny.study.metrics",
                         lambda result: {"correlations": tables.correlations(result)})
    if result is not None:
        print("\n" + tables.correlation_text(result))


if __name__ == "__main__":
    run_command(main)
