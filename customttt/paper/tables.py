"""Tables 1, 3 and 4 of the paper: which systems, which layers, how many reference steps.

  python -m customttt.paper.tables 4 --protocol protocol.json [--output output/tables]
  torchrun --standalone --nproc-per-node 2 -m customttt.paper.tables 4 --protocol protocol.json

The protocol names groups: a subject, a motion, and prompts that join them (the paper has ten
groups of five prompts of different scenes: 50 videos). Paths are relative to its file.

  {"groups": [{"images": "bear/", "subject": "a teddy bear", "video": "lifting.mp4",
               "motion": "a man is lifting weights",
               "prompts": ["a teddy bear is lifting weights on the snow"]}]}

Every LoRA and clip is kept under --output and shared by the tables, so that the same command goes
on where it was stopped. Under torchrun each process takes its share of the groups. When all clips
are there, the table is printed, mean and 95% interval, and written, with all scores (table-4.json).
It runs train.py, so it is called where that is.
"""

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from ..draws import stream_seed
from ..errors import UserError, run, writing
from ..files.load import load_model
from ..files.lora_files import load_lora
from ..files.reading import read_json, write_json
from ..media.clips import contact_sheet, to_images, write_video
from ..media.find import IMAGE_ENDINGS, find_files
from ..recipes import SAMPLING
from ..sampling import sample_video
from .cache import Cache
from .clip import Embedder, load_clip
from .dreamvideo import WORD, load_dreamvideo, sample_dreamvideo
from .metrics import clip_scores, fidelity_scores, open_image, reference_tracks
from .probe import shown
from .systems import SYSTEMS
from .tracks import TRACKERS, evaluation_package

GROUP = {"images", "subject", "video", "motion", "prompts"}


@dataclass(frozen=True)
class Row:
    """What learns a subject, what learns a motion, and what joins them."""

    name: str
    subject: tuple[str, ...] = ("spatial",)     # stages; a later one gets the one before it
    motion: tuple[str, ...] = ("temporal",)
    subject_flags: tuple[str, ...] = ()
    motion_flags: tuple[str, ...] = ()
    ttt: tuple[str, ...] | None = None          # its flags; None: joined as they are


def placed(spatial: Sequence[int], temporal: Sequence[int]) -> Row:
    return Row(f"W_s {spatial}, W_t {temporal}",
               subject_flags=("--spatial-layers", *map(str, spatial)),
               motion_flags=("--temporal-layers", *map(str, temporal)))


TABLES = {
    1: [*(Row(name, tuple(stage.name for stage in subject), tuple(stage.name for stage in motion))
          for name, (subject, motion) in SYSTEMS.items()), Row("CustomTTT", ttt=())],
    3: [*(placed(s, t) for t in ((1, 7), (2, 5)) for s in ((0, 1), (2, 6))),
        Row("the model's recipe")],
    4: [Row("without test-time training"),
        *(Row(f"{n} reference steps", ttt=("--reference-steps", str(n))) for n in (1, 3, 5, 10))],
}


def read_protocol(path: Path) -> list[dict]:
    groups = read_json(path).get("groups")
    if not isinstance(groups, list) or not groups or not all(
            isinstance(group, dict) and group.keys() == GROUP and group["prompts"]
            for group in groups):
        raise UserError(f"--protocol {path}: must have \"groups\", each with "
                        f"{', '.join(sorted(GROUP))}")
    return [group | {key: path.parent / group[key] for key in ("images", "video")}
            for group in groups]


def train_row(cache: Cache, row: Row, group: dict, prompt: str) -> list[Path]:
    """The LoRA files of a row, for one prompt of a group: subject's and motion's, or joined."""
    files: dict[str, Path] = {}
    for stages, flags, data, words in (
            (row.subject, row.subject_flags, group["images"], group["subject"]),
            (row.motion, row.motion_flags, group["video"], group["motion"])):
        for stage in stages:
            word = {"--word": files["dreamvideo-word"]} if stage == "dreamvideo-identity" else {}
            files[stage] = cache.train(stage, ("--prompt", words, *flags), {"--data": data} | word)
    if row.ttt is None:
        return list(files.values())
    return [cache.train("ttt", ("--prompt", prompt, *row.ttt),
                        {f"--{kind}": files[kind] for kind in ("spatial", "temporal")})]


def sample_row(args: argparse.Namespace, files: list[Path], group: dict, prompt: str,
               embedder: Embedder, seed: int) -> Tensor:
    """uint8 (f H W 3)."""
    model = load_model(args.model, args.motion_module, args.device)
    settings = SAMPLING.values(model.unet) | {
        name: value for name, value in vars(args).items()
        if name in SAMPLING.full and value is not None}
    arguments = {"steps": settings["sampling_steps"], "guidance": settings["guidance"],
                 "frames": settings["frames"], "size": settings["size"], "seed": seed}
    if len(files) == 3:
        image = open_image(find_files([group["images"]], IMAGE_ENDINGS, "image")[0])
        load_dreamvideo(model, *files)
        return sample_dreamvideo(model, prompt.replace(group["subject"], f"a {WORD}"),
                                 embedder.embed_images([image]), **arguments)
    for file in files:
        load_lora(model.unet, file)
    return sample_video(model, prompt, **arguments)


def score_clip(args: argparse.Namespace, files: list[Path], group: dict, prompt: str,
               embedder: Embedder, seed: int, picture: Path) -> dict[str, float]:
    """Sample a clip and score it. One in which no point can be followed has no motion fidelity."""
    clip = sample_row(args, files, group, prompt, embedder, seed)
    write_video(contact_sheet([clip[::max(1, len(clip) // 8)]]), picture)
    images = [open_image(file) for file in find_files([group["images"]], IMAGE_ENDINGS, "image")]
    frames = to_images(clip)
    scores = clip_scores(embedder, frames, prompt, images)
    reference = reference_tracks(group["video"], len(frames), args)
    tracks = TRACKERS[args.tracker](frames)
    return scores | (fidelity_scores(tracks, reference) if len(tracks) else
                     dict.fromkeys(("motion fidelity", "motion fidelity (published)"), 0.0))


def run_group(args: argparse.Namespace, cache: Cache, rows: list[Row], group: dict,
              embedder: Embedder) -> list[dict]:
    """One dictionary a clip: row, prompt, scores."""
    results = []
    for row in rows:
        for k, prompt in enumerate(group["prompts"]):
            files = train_row(cache, row, group, prompt)
            seed = stream_seed(args.seed, f"table {k}")         # of all rows
            make = partial(score_clip, args, files, group, prompt, embedder, seed)
            told = {"prompt": prompt, "sampled": {name: vars(args)[name] for name in SAMPLING.full},
                    "clip": args.clip.name, "tracker": args.tracker}
            results.append({"row": row.name, "prompt": prompt,
                            "scores": cache.scored(told, files, make)})
    return results


def table(rows: list[Row], results: list[dict]) -> str:
    columns = list(results[0]["scores"])
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for row in rows:
        cells = (shown([each["scores"][name] for each in results if each["row"] == row.name])
                 for name in columns)
        lines.append(f"| {row.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=int, choices=list(TABLES))
    parser.add_argument("--protocol", type=Path, required=True, metavar="FILE")
    parser.add_argument("--model", default="weights/tiny", metavar="M")
    parser.add_argument("--motion-module", metavar="FILE")
    parser.add_argument("--clip", type=Path, default=Path("weights/tiny/clip"), metavar="M")
    parser.add_argument("--tracker", choices=list(TRACKERS), default="lucas-kanade")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("output/tables"), metavar="FOLDER")
    for name, setting in SAMPLING.full.items():
        parser.add_argument("--" + name.replace("_", "-"), type=type(setting.value), metavar="N",
                            help="default: the model's recipe")
    parser.add_argument("--steps", type=int, metavar="N", help="of each training, to try it out")
    return parser.parse_args()


def main() -> None:
    args = parse()
    if args.tracker == "lucas-kanade":
        evaluation_package("cv2")       # now, and not after hours
    args.fps = 8.0 if args.fps is None else args.fps
    groups, rows, embedder = read_protocol(args.protocol), TABLES[args.table], load_clip(args.clip)
    flags = ["--model", str(args.model), "--device", args.device]
    for name in ("motion_module", "steps", "size", "frames"):
        if vars(args)[name] is not None:
            flags += ["--" + name.replace("_", "-"), str(vars(args)[name])]
    cache = Cache(args.output, tuple(flags), args.seed)
    rank, ranks = (int(os.environ.get(key, i)) for key, i in (("RANK", 0), ("WORLD_SIZE", 1)))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for group in tqdm(groups[rank::ranks], desc=f"table {args.table}, groups"):
        run_group(args, cache, rows, group, embedder)
    if rank:
        return
    results = [each for group in groups for each in run_group(args, cache, rows, group, embedder)]
    text = table(rows, results)
    print(text)
    write_json({"table": args.table, "seed": args.seed, "clip": args.clip.name,
                "clips": results},
               args.output / f"table-{args.table}.json")
    with writing(args.output / f"table-{args.table}.md") as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(main)
