"""The probe of the layers (supplement, section 3; Table 2, Figures 1 and 2): which layer's prompt
decides what is seen, and which how it moves?

  python -m customttt.paper.probe subject [--number 100] [--output output/probe]
  python -m customttt.paper.probe motion  --pairs FILE --model M --motion-module FILE --clip M
  torchrun --standalone --nproc-per-node 2 -m customttt.paper.probe subject

The prompt p goes into all layers but one, and p* into that one, i = 0..8; then p* into two, the
most important one and i. The score is CLIP-T of the clip and p*. Layers 3 and 5 read no text, so
they score as no probe does. Each line of --pairs is "p | p*"; without it, the tiny world's words
are paired. A pair's scores and clips stay in --output, so that the same command goes on where it
was stopped; under torchrun each process takes its share of the pairs. When all are there, the table
is printed and written, with a heat map (heat.png) and the clips of the first pairs (grid-000.png).
"""

import argparse
import itertools
import json
import math
import os
import statistics
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from ..draws import stream_seed
from ..errors import UserError, run, writing
from ..files.reading import read_json, write_json
from ..media.clips import contact_sheet, to_images, write_video
from ..model.model import Model
from ..recipes import SAMPLING
from ..run.data import require_motion
from ..run.options import add_model_flags, add_recipe_flags, chosen_settings, open_model
from ..sampling import sample_video
from .clip import Embedder, load_clip
from .metrics import clip_t
from .tracks import evaluation_package

LAYERS = range(9)
FIRST = {"subject": 6, "motion": 2}         # the most important layer, which the second probe keeps
PAPER = {"subject": (.109, .109, .153, .109, .112, .109, .200, .108, .108),     # Table 2
         "motion": (.232, .231, .239, .231, .237, .231, .234, .231, .232)}
SUBJECTS = ("teddy bear", "rabbit", "robot", "fish", "red ball", "blue star", "yellow moon")
MOTIONS = ("moving left", "moving right", "moving up", "moving down", "circling", "bouncing")
PLACES = ("on the grass", "on the snow", "on the sand", "in the night", "in the sea")


def tiny_pairs(kind: str) -> list[tuple[str, str]]:
    """Prompts of the tiny world that differ in subject or in motion, in a mixed order."""
    others = {"subject": SUBJECTS, "motion": MOTIONS}[kind]
    pairs = []
    for shift, place in itertools.product(range(1, len(others)), PLACES):
        for k, word in enumerate(others):
            star = others[(k + shift) % len(others)]
            if kind == "subject":
                motion = MOTIONS[(k + shift) % len(MOTIONS)]
                pairs.append(tuple(f"a {each} is {motion} {place}" for each in (word, star)))
            else:
                subject = SUBJECTS[(k + shift) % len(SUBJECTS)]
                pairs.append(tuple(f"a {subject} is {each} {place}" for each in (word, star)))
    return [pairs[(k * 37) % len(pairs)] for k in range(len(pairs))]    # 37: no divisor of either


def read_pairs(path: Path) -> list[tuple[str, str]]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--pairs {path}: cannot be read as text ({error})") from error
    pairs = [tuple(part.strip() for part in line.split("|")) for line in lines if line]
    if not pairs or any(len(pair) != 2 or not all(pair) for pair in pairs):
        raise UserError(f"--pairs {path}: each line must be two prompts, \"p | p*\"")
    return pairs


def conditions(first: int) -> dict[str, tuple[int, ...]]:
    """Name of a condition -> the layers that read p*."""
    return {"none": ()} | {str(i): (i,) for i in LAYERS} | {
        f"{first} and {i}": (first, i) for i in LAYERS if i != first} | {"all": tuple(LAYERS)}


def probed(model: Model, pair: tuple[str, str], layers: Sequence[int], settings: dict,
           seed: int) -> Tensor:
    """uint8 (f H W 3): p* in these layers, p in the others."""
    p, star = pair
    return sample_video(model, [star if i in layers else p for i in LAYERS],
                        steps=settings["sampling_steps"], guidance=settings["guidance"],
                        frames=settings["frames"], size=settings["size"], seed=seed)


def probe_pair(model: Model, embedder: Embedder, pair: tuple[str, str], first: int, settings: dict,
               seed: int) -> tuple[dict, list[Tensor]]:
    """CLIP-T against p* and against p of each condition, all from one noise; and the clips."""
    scores, clips = {}, []
    texts = embedder.embed_texts(pair)
    for name, layers in conditions(first).items():
        frames = probed(model, pair, layers, settings, seed)
        embedded = embedder.embed_images(to_images(frames))
        scores[name] = {"p*": clip_t(embedded, texts[1]), "p": clip_t(embedded, texts[0])}
        clips.append(frames)
    return scores, clips


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half of the 95% interval (normal)."""
    half = 1.96 * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return statistics.mean(values), half


def shown(values: Sequence[float], form: str = "{:.4f}") -> str:
    """Mean and half of the 95% interval; of one value there is none."""
    mean, half = interval(values)
    return form.format(mean) + ("" if math.isnan(half) else f" ± {half:.4f}")


def table(kind: str, results: list[dict]) -> str:
    """One row a condition: CLIP-T against p*, what it gains over no probe, the paper's figure."""
    lines = ["| p* in layer | CLIP-T(p*) | minus none | the paper |", "|---|---|---|---|"]
    for name in results[0]:
        score = shown([each[name]["p*"] for each in results])
        gain = shown([each[name]["p*"] - each["none"]["p*"] for each in results], "{:+.4f}")
        paper = f"{PAPER[kind][int(name)]:.3f}" if name.isdigit() else ""
        lines.append(f"| {name} | {score} | {gain} | {paper} |")
    return "\n".join(lines)


def draw_heat_map(kind: str, first: int, results: list[dict], path: Path) -> None:
    """Gain in CLIP-T(p*) by layer: of i alone, and of the first layer and i."""
    evaluation_package("matplotlib").use("Agg")
    pyplot = evaluation_package("matplotlib.pyplot")
    names = [[str(i) for i in LAYERS],
             [str(first) if i == first else f"{first} and {i}" for i in LAYERS]]
    gains = [[interval([each[name]["p*"] - each["none"]["p*"] for each in results])[0]
              for name in row] for row in names]
    figure, axes = pyplot.subplots(figsize=(8, 2.4), layout="constrained")
    image = axes.imshow(gains, cmap="viridis", aspect="auto")
    axes.set_xticks(list(LAYERS))
    axes.set_yticks([0, 1], ["i", f"{first} and i"])
    axes.set_xlabel("layer i")
    axes.set_title(f"{kind}: gain in CLIP-T(p*) over no probe, {len(results)} pairs")
    figure.colorbar(image)
    with writing(path) as temporary:
        figure.savefig(temporary, dpi=120)
    pyplot.close(figure)


def check_settings(folder: Path, told: dict) -> None:
    """Raise UserError if what is in the folder was made otherwise."""
    file = folder / "settings.json"
    if file.exists() and (before := read_json(file)) != told:
        changed = next(key for key in told if before.get(key) != told[key])
        raise UserError(f"{folder}: was made with {changed} = {before.get(changed)}, not "
                        f"{told[changed]}; give the same, or another --output")
    write_json(told, file)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=list(FIRST))
    add_model_flags(parser)
    parser.add_argument("--clip", type=Path, default=Path("weights/tiny/clip"), metavar="M",
                        help="folder or file of a CLIP (default: %(default)s)")
    parser.add_argument("--pairs", type=Path, metavar="FILE", help="lines \"p | p*\"")
    parser.add_argument("--number", type=int, default=100, help="of pairs (default: %(default)s)")
    parser.add_argument("--first", type=int, choices=LAYERS, metavar="I",
                        help="layer that the second probe keeps (default: 6, of motions 2)")
    parser.add_argument("--grids", type=int, default=4, metavar="N",
                        help="pairs whose clips are drawn (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("output/probe"), metavar="FOLDER")
    add_recipe_flags(parser, SAMPLING)
    return parser.parse_args()


def main() -> None:
    args = parse()
    first = FIRST[args.kind] if args.first is None else args.first
    pairs = (tiny_pairs(args.kind) if args.pairs is None else read_pairs(args.pairs))[:args.number]
    evaluation_package("matplotlib")        # now, and not after hours
    model, _ = open_model(args)
    require_motion(model)
    settings = chosen_settings(args, SAMPLING, model)
    embedder = load_clip(args.clip, args.device)
    folder = args.output / args.kind
    check_settings(folder, json.loads(json.dumps(settings | {
        "model": model.name, "clip": args.clip.name, "first": first, "seed": args.seed})))

    files = [folder / f"{k:03}.json" for k in range(len(pairs))]
    rank, ranks = (int(os.environ.get(key, i)) for key, i in (("RANK", 0), ("WORLD_SIZE", 1)))
    for k in tqdm(range(rank, len(pairs), ranks), desc=f"{args.kind} pairs"):
        if files[k].exists() and read_json(files[k])["pair"] == list(pairs[k]):
            continue
        scores, clips = probe_pair(model, embedder, pairs[k], first, settings,
                                   stream_seed(args.seed, f"probe {k}"))
        if k < args.grids:      # a row a condition, as in the table
            write_video(contact_sheet([clip[::max(1, len(clip) // 8)] for clip in clips]),
                        folder / f"grid-{k:03}.png")
        write_json({"pair": pairs[k], "scores": scores}, files[k])

    if not all(file.exists() for file in files):
        print("the other processes are not done; the last one prints the table")
        return
    results = [read_json(file)["scores"] for file in files]
    text = table(args.kind, results)
    print(text)
    with writing(folder / "table.md") as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    draw_heat_map(args.kind, first, results, folder / "heat.png")


if __name__ == "__main__":
    run(main)
