"""Where the tiny recipe's numbers come from: settings of a stage, scored side by side.

  python -m customttt.tiny.study.search probe
  python -m customttt.tiny.study.search spatial "--spatial-layers 1 7" "--spatial-layers 2 6"
  python -m customttt.tiny.study.search temporal "--learning-rate 1e-4" "--learning-rate 3e-4"
  python -m customttt.tiny.study.search joined 0.6 0.8 1 --spatial="--steps 300"
  python -m customttt.tiny.study.search ttt "" "--learning-rate 3e-5 --motion-prompt {prompt}"

spatial, temporal: train.py's stage under each setting (its flags), on a few held-out subjects or
motions, with the motion modules in. joined: scales of the spatial LoRA beside the temporal one,
both as --spatial and --temporal say, without test-time training. ttt: settings of test-time
training on the same two; in them {prompt} and {doing} are the combination's "a fish is moving up in
the sea" and "moving up in the sea". A setting of one word needs a space before it: " --debiased".
One row a setting: mean and 95% interval over the combinations, which are not those that the study
reports.

probe: the paper's, in a first form. A prompt p* goes into one layer, another p into all others:
which of the two does the picture follow? -1 is p, 1 is p*. Only layers that read text are asked.
"""

import argparse
import shlex
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import Generator, Tensor

from ...errors import UserError, run
from ...files.load import load_model
from ...files.reading import read_json, write_json
from ...model.model import Model
from ...paper import tables
from ...paper.cache import Cache, open_cache
from ...paper.intervals import shown
from ...paper.ranks import shared, start_ranks
from ...paper.rows import Row
from ...sampling import sample_video
from ..pretraining.judge import Judge, of_kind
from ..pretraining.measure import measure_trajectory
from ..world.clips import SIZE, sample_clip
from ..world.motions import MOTIONS, trajectory_agreement
from ..world.subjects import COMPOSED, PLAIN
from .protocol import write_group
from .scores import combinations
from .study import scorers

READ_TEXT = (0, 1, 2, 4, 6, 7, 8)
STRAIGHT = MOTIONS[:4]          # left, right, up, down
PROBE_STEPS, GUIDANCE = 12, 3.0
JOINED = "joined, no ttt"


def rows_of(what: str, settings: list[str], spatial: list[str], temporal: list[str]) -> list[Row]:
    """A row for each setting; of ttt also the two joined as they are."""
    joined = Row(JOINED, subject_flags=tuple(spatial), motion_flags=tuple(temporal))
    if what == "spatial":
        return [Row(each.strip() or "as it is", motion=(), subject_flags=tuple(shlex.split(each)))
                for each in settings]
    if what == "temporal":
        return [Row(each.strip() or "as it is", subject=(), motion_flags=tuple(shlex.split(each)))
                for each in settings]
    if what == "joined":
        try:
            return [replace(joined, name=f"scale {each}", scales=(float(each), 1.0))
                    for each in settings]
        except ValueError as error:
            raise UserError(f"settings {shlex.join(settings)}: scales are numbers") from error
    return [joined, *(replace(joined, name=each.strip() or "as it is", ttt=tuple(shlex.split(each)))
                      for each in settings)]


# ---------------------------------------------------------------------------------- the probe

def probed(model: Model, p: str, star: str, layer: int, frames: int, seed: int) -> Tensor:
    """(f H W 3) uint8, the prompt `star` in one layer and p in the others."""
    prompts = [star if i == layer else p for i in range(len(model.unet.layers))]
    return sample_video(model, prompts, steps=PROBE_STEPS, guidance=GUIDANCE, frames=frames,
                        size=SIZE, seed=seed, motion=frames > 1)


def appearance_follows(model: Model, judge: Judge, layer: int, k: int, seed: int) -> float:
    """How much an image follows p* (another kind) rather than p, -1 to 1: the difference of its
    cosines with the two captions over their distance."""
    own = sample_clip(Generator().manual_seed(seed + k), kinds=tuple(COMPOSED))
    kind = [kind for kind in COMPOSED if kind != own.subject.kind][k % 3]
    p = own.image_caption
    star = replace(own, subject=of_kind(own.subject, kind)).image_caption
    captions = judge.embed_captions([p, star])
    frames = probed(model, p, star, layer, 1, seed + k)
    a, b = (judge.embed_frames(frames) @ captions.T)[0].tolist()
    return (b - a) / (1 - (captions[0] @ captions[1]).item())


def motion_follows(model: Model, layer: int, k: int, seed: int) -> float:
    """How much a clip follows p* (the straight motion the other way) rather than p, -1 to 1: minus
    the agreement of the measured path with p's."""
    word, opposite = STRAIGHT[k % 4], STRAIGHT[k % 4 ^ 1]
    own = sample_clip(Generator().manual_seed(seed + k), tuple(PLAIN), [word])
    frames = probed(model, own.caption, own.caption.replace(word, opposite), layer, 16, seed + k)
    return -trajectory_agreement(measure_trajectory(frames), own.trajectory()[:, :3])


def probe_layer(args: argparse.Namespace, cache: Cache, layer: int) -> dict:
    def make(folder: Path) -> None:
        model, judge = load_model(args.model), Judge(args.model)
        write_json({
            "appearance": [appearance_follows(model, judge, layer, k, args.seed)
                           for k in range(args.images)],
            "motion": [motion_follows(model, layer, k, args.seed)
                       for k in range(args.combinations)]}, folder / "scores.json")
    told = {"layer": layer, "images": args.images, "clips": args.combinations,
            "steps": PROBE_STEPS, "guidance": GUIDANCE}
    return read_json(cache.made("probes/layer", told, make) / "scores.json")


def probe(args: argparse.Namespace) -> None:
    cache = open_cache(args)
    start_ranks(args.device)
    found = shared([partial(probe_layer, args, cache, layer) for layer in READ_TEXT], "layers")
    if found is None:
        return
    print("| layer | appearance follows p* | motion follows p* |\n|---|---|---|")
    for layer, scores in zip(READ_TEXT, found):
        print(f"| {layer} | {shown(scores['appearance'])} | {shown(scores['motion'])} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["probe", "spatial", "temporal", "joined", "ttt"])
    parser.add_argument("settings", nargs="*", help="flags of the stage, or scales")
    parser.add_argument("--start", type=int, default=0, help="the first combination")
    parser.add_argument("--combinations", type=int, default=6)
    parser.add_argument("--images", type=int, default=30, help="of the probe, a layer")
    parser.add_argument("--spatial", default="", metavar="FLAGS", help="of what is joined")
    parser.add_argument("--temporal", default="", metavar="FLAGS")
    tables.add_flags(parser)
    parser.set_defaults(seed=5)     # what is tried shares no draw with what is reported
    args = parser.parse_args()
    if args.what == "probe":
        return probe(args)
    if not args.settings:
        raise UserError("settings: give at least one")
    tables.check(args)
    rows = rows_of(args.what, args.settings, shlex.split(args.spatial), shlex.split(args.temporal))
    groups = [write_group(args.output / "tiny-search", [each])
              for each in combinations(args.start, args.combinations)]
    pairs = [(row.name, JOINED) for row in rows[1:]] if args.what == "ttt" else []
    tables.make(args, f"search-{args.what}", tables.units_of(rows, groups), scorers(args), pairs,
                "customttt.tiny.study.search")


if __name__ == "__main__":
    run(main)
