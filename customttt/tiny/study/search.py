"""Where the tiny recipe's numbers come from: settings of a stage, scored side by side.

  python -m customttt.tiny.study.search probe
  python -m customttt.tiny.study.search spatial "--spatial-layers 1 7" "--spatial-layers 2 6"
  python -m customttt.tiny.study.search temporal "--learning-rate 1e-4" "--learning-rate 3e-4"
  python -m customttt.tiny.study.search joined 0.6 0.8 1 --spatial="--steps 300"

spatial, temporal: train.py's stage under each setting (its flags), on a few held-out subjects or
motions, with the motion modules in. joined: scales of the spatial LoRA beside the temporal one,
both as --spatial and --temporal say, without test-time training. One row a setting: mean and 95%
interval over the combinations. Their range is not the one that `study` reports; what is there
already is not trained again.

probe: the paper's, in a first form. A prompt p* goes into one layer, another p into all others:
which of the two does the picture follow? -1 is p, 1 is p*. Only layers that read text are asked.
"""

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Generator, Tensor
from tqdm import tqdm

from ...errors import UserError, run
from ...files.load import load_model
from ...files.lora_files import load_lora
from ...media.clips import contact_sheet, write_video
from ...model.model import Model
from ...sampling import sample_video
from ...stages import TEACHERS
from ..pretraining.judge import Judge
from ..pretraining.measure import measure_trajectory
from ..world.clips import SIZE, sample_clip
from ..world.motions import MOTIONS, trajectory_agreement
from ..world.subjects import COMPOSED, PLAIN
from .scores import METRICS, Combination, combinations, score
from .study import examine, interval, sample, train_motion, train_subject, write_data

READ_TEXT = (0, 1, 2, 4, 6, 7, 8)
STRAIGHT = MOTIONS[:4]          # left, right, up, down
PROBE_STEPS, GUIDANCE = 12, 3.0
ONLY = {"spatial": "subject only", "temporal": "motion only"}


def searched(args: argparse.Namespace, stage: str, flags: str) -> argparse.Namespace:
    """study's arguments for one setting of one stage, in a folder named after it."""
    name = flags.replace("--", "").strip().replace(" ", "-") or "as-it-is"
    output = args.output / stage / name
    write_data(output / "data")
    return argparse.Namespace(model=args.model, output=output, name="scores", seed=args.seed,
                              stages=[stage], spatial=flags, temporal=flags, ttt="")


def one_stage(args: argparse.Namespace, stage: str, flags: str,
              chosen: list[Combination]) -> list[dict]:
    """Scores of the stage's own clip, by combination."""
    setting = searched(args, stage, flags)
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        results = pool.map(partial(examine, setting), chosen)
        return [scores[ONLY[stage]] for scores in tqdm(results, flags, len(chosen))]


def one_scale(args: argparse.Namespace, scale: float, combination: Combination) -> dict:
    """Scores of the joined clip, the spatial LoRA at this scale."""
    spatial, temporal = (searched(args, stage, vars(args)[stage]) for stage in ONLY)
    files = (train_subject(spatial, combination.subject),
             train_motion(temporal, combination.motion))
    model = load_model(args.model)
    for name, file, size in zip(TEACHERS, files, (scale, 1)):
        load_lora(model.unet, file, size, name=name)
    setting = argparse.Namespace(output=args.output / "joined" / f"{scale:g}", seed=args.seed)
    frames = sample(setting, model, combination, TEACHERS)
    write_video(contact_sheet([frames[::2]]), setting.output / f"{combination.name}.png")
    return score(Judge(args.model), combination, frames, args.seed)


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
    star = replace(own, subject=replace(own.subject, kind=kind)).image_caption
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


def probe_layer(args: argparse.Namespace, layer: int) -> str:
    torch.set_num_threads(1)
    model, judge = load_model(args.model), Judge(args.model)
    appearance = [appearance_follows(model, judge, layer, k, args.seed) for k in range(args.images)]
    motion = [motion_follows(model, layer, k, args.seed) for k in range(args.combinations)]
    return f"| {layer} | {interval(appearance)} | {interval(motion)} |"


def probe(args: argparse.Namespace) -> None:
    print("| layer | appearance follows p* | motion follows p* |\n|---|---|---|")
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        for row in pool.map(partial(probe_layer, args), READ_TEXT):
            print(row, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["probe", *ONLY, "joined"])
    parser.add_argument("settings", nargs="*", help="flags of the stage, or scales")
    parser.add_argument("--model", type=Path, default=Path("weights/tiny"))
    parser.add_argument("--output", type=Path, default=Path("output/search"))
    parser.add_argument("--start", type=int, default=0, help="the first combination")
    parser.add_argument("--combinations", type=int, default=6)
    parser.add_argument("--images", type=int, default=30, help="of the probe, a layer")
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--spatial", default="", metavar="FLAGS", help="of what is joined")
    parser.add_argument("--temporal", default="", metavar="FLAGS")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"     # a process for each core is faster than shared ones
    if args.what == "probe":
        return probe(args)
    if not args.settings:
        raise UserError("settings: give at least one")
    chosen = combinations(args.start, args.combinations)
    print("| | " + " | ".join(METRICS) + " |\n" + "|---" * (len(METRICS) + 1) + "|")
    for setting in args.settings:
        if args.what == "joined":
            with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
                results = list(pool.map(partial(one_scale, args, float(setting)), chosen))
        else:
            results = one_stage(args, args.what, setting, chosen)
        cells = (interval([scores[metric] for scores in results]) for metric in METRICS)
        print(f"| {setting} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    run(main)
