"""The probe of the layers (supplement, section 3; Table 2, Figures 1 and 2): which layer's prompt
decides what is seen, and which how it moves?

  python -m customttt.paper.probe subject [--number 100] [--output output/paper]
  python -m customttt.paper.probe motion  --pairs FILE --model M --motion-module FILE --clip M
  torchrun --standalone --nproc-per-node 2 -m customttt.paper.probe subject

The prompt p goes into all layers but one, and p* into that one, i = 0..8; then p* into two, the
most important one and i. The score is CLIP-T of the clip and p*. That is blind to motion, so pairs
of motions have a second one, which is not in the paper: motion fidelity to the clip of p* in all
layers, from the same noise; 0 where no point can be followed. Layers 3 and 5 read no text, so a
probe there scores what none does. Each line of --pairs is "p | p*"; without it, the tiny world's
words are paired. A pair's scores stay in --output, so that the same command goes on where it was
stopped; processes share the pairs as in tables.py. When all are there, the table is printed and
written (probe-subject-seed-0.json), with heat maps of the gains and the clips of the first pairs
(.png).
"""

import argparse
import contextlib
import io
import itertools
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from torch import Tensor

from ..draws import stream_seed
from ..errors import UserError, command_parser, run_command
from ..files.reading import read_json, write_json
from ..media.clips import contact_sheet, to_images, write_frames
from ..model.model import Model
from ..run.options import chosen_settings, open_model
from ..sampling import sample_video
from .cache import Cache, intact, open_cache, write_result
from .clip import Embedder, clip_fingerprint, load_clip
from .figures import draw_grid, draw_heat_map
from .flags import SAMPLED, add_shared_flags, check_shared
from .intervals import interval, markdown, shown, zeros_text
from .metrics import clip_t, motion_fidelity
from .ranks import shared, start_ranks
from .tracks import TRACKERS, check_tracker, evaluation_package, told_of_tracks

NUMBER = 100                                # of pairs, the paper's
GRIDS, COLUMNS = 2, 4                       # pairs whose clips are drawn, frames of each
LAYERS = range(9)
FIRST = {"subject": 6, "motion": 2}         # the most important layer, which the second probe keeps
SCORES = {"subject": {"CLIP-T(p*)": 0},     # in the table, and their places; 1 is CLIP-T(p)
          "motion": {"CLIP-T(p*)": 0, "motion fidelity": 2}}
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
    # 11 divides neither number of pairs, and the first 14 have each subject, motion and place.
    return [pairs[(k * 11) % len(pairs)] for k in range(len(pairs))]


def read_pairs(path: Path) -> list[tuple[str, str]]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--pairs {path}: cannot be read as text ({error})") from error
    pairs = [tuple(part.strip() for part in line.split("|")) for line in lines if line]
    if not pairs or any(len(pair) != 2 or not all(pair) for pair in pairs):
        raise UserError(f"--pairs {path}: each line must be two prompts, \"p | p*\"")
    return pairs


def chosen_pairs(args: argparse.Namespace) -> list[tuple[str, str]]:
    """The first --number of them. Raises UserError for more than there are."""
    pairs = tiny_pairs(args.kind) if args.pairs is None else read_pairs(args.pairs)
    number = args.number or (NUMBER if args.pairs is None else len(pairs))
    if number > len(pairs):
        raise UserError(f"--number {number}: there are {len(pairs)} pairs; give at most as many")
    return pairs[:number]


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
               seed: int, tracker: str | None) -> tuple[dict[str, list[float]], list[Tensor]]:
    """Of each condition, all from one noise: CLIP-T against p* and against p; with a tracker, also
    motion fidelity to the clip of p* in all layers. And the clips."""
    clips = {name: probed(model, pair, layers, settings, seed)
             for name, layers in conditions(first).items()}
    texts, scores = embedder.embed_texts(pair), {}
    for name, clip in clips.items():
        embedded = embedder.embed_images(to_images(clip))
        scores[name] = [clip_t(embedded, texts[k]) for k in (1, 0)]
    if tracker is not None:
        tracks = {name: TRACKERS[tracker](to_images(clip)) for name, clip in clips.items()}
        for name, each in tracks.items():
            followed = len(each) and len(tracks["all"])
            scores[name].append(motion_fidelity(each, tracks["all"]) if followed else 0.0)
    return ({name: [round(value, 5) for value in values] for name, values in scores.items()},
            list(clips.values()))


def probe_once(cache: Cache, told: dict, probe: Callable[[], tuple], drawn: bool) -> Path:
    """The folder of a pair's scores; where `drawn`, of its clips, a row a condition."""
    def make(folder: Path) -> None:
        scores, clips = probe()
        if drawn:
            write_frames(contact_sheet([clip[::-(-len(clip) // COLUMNS)] for clip in clips]),
                        folder / "clips.png")
        write_json(scores, folder / "scores.json")
    return cache.made("probes/pair", told | {"drawn": drawn}, make)


def table(result: dict) -> str:
    """One row a condition: each score, what it gains over no probe; the paper's CLIP-T(p*). Of
    motions, below it: the clips in which nothing was followed."""
    kind, every = result["kind"], [scores for _, scores in result["pairs"]]
    head = ["p* in layer", *(each for score in SCORES[kind] for each in (score, "minus none")),
            "the paper's CLIP-T"]
    lines = []
    for name in every[0]:
        cells = [name]
        for place in SCORES[kind].values():
            cells += [shown([scores[name][place] for scores in every], "{:.4f}"),
                      shown(gains(result, name, place), "{:+.4f}")]
        cells.append(f"{PAPER[kind][int(name)]:.3f}" if name.isdigit() else "")
        lines.append(cells)
    text = markdown(head, lines)
    if kind == "motion":
        place = SCORES[kind]["motion fidelity"]
        text += "\n\n" + zeros_text({f"layer {name}": [scores[name][place] for scores in every]
                                     for name in every[0]})
    return text


def gains(result: dict, name: str, place: int) -> list[float]:
    """A condition's score minus that of no probe, a pair each."""
    return [scores[name][place] - scores["none"][place] for _, scores in result["pairs"]]


def parse() -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument("kind", choices=list(FIRST))
    add_shared_flags(parser)
    parser.add_argument("--pairs", type=Path, metavar="FILE", help="lines \"p | p*\"")
    parser.add_argument("--number", type=int, help="of pairs, the first (default: all of --pairs, "
                        f"else {NUMBER})")
    parser.add_argument("--first", type=int, choices=LAYERS, metavar="I",
                        help="layer that the second probe keeps (default: 6, of motions 2)")
    parser.add_argument("--tracker", choices=list(TRACKERS),
                        help="of motions alone (default: lucas-kanade)")
    parser.set_defaults(steps=None, gradient_checkpointing=False)       # nothing is trained
    args = parser.parse_args()
    check_shared(args)
    if args.kind == "motion":
        args.tracker = args.tracker or "lucas-kanade"
        check_tracker(args.tracker, args.device)
    elif args.tracker is not None:
        raise UserError("--tracker: goes with motion; the clips of subjects are not tracked")
    return args


def draw(result: dict, folders: Sequence[Path], output: Path) -> None:
    """A heat map a score, and a grid for each pair whose clips were drawn."""
    first, names = result["first"], list(conditions(result["first"]))
    picture = f"{result['name']}-seed-{result['seed']}"
    for score, place in SCORES[result["kind"]].items():
        means = {name: interval(gains(result, name, place))[0] for name in names}
        slug = score.removesuffix("(p*)").replace(" ", "-")
        draw_heat_map([[means[str(i)] for i in LAYERS],
                       [means[str(i) if i == first else f"{first} and {i}"] for i in LAYERS]],
                      ["i", f"{first} and i"], f"{result['kind']}: gain in {score} over no probe, "
                      f"{len(folders)} pairs", output / f"{picture}-heat-{slug}.png")
    for k, (((p, star), _), folder) in enumerate(zip(result["pairs"][:GRIDS], folders)):
        with intact(folder):
            draw_grid(folder / "clips.png", names, f"p: {p}; p*: {star}",
                      output / f"{picture}-grid-{k}.png")


def main() -> None:
    args = parse()
    first = FIRST[args.kind] if args.first is None else args.first
    pairs = chosen_pairs(args)
    evaluation_package("matplotlib")        # now, and not after hours
    embedder, cache = load_clip(args.clip, args.device), open_cache(args)
    start_ranks(args.device)
    with contextlib.redirect_stdout(io.StringIO()):     # each process would say it
        model, _ = open_model(args)
        settings = chosen_settings(args, SAMPLED, model)

    jobs, judged = [], {"judge": clip_fingerprint(args.clip)} | told_of_tracks(args.tracker)
    for k, pair in enumerate(pairs):
        seed = stream_seed(args.seed, f"probe {k}")
        told = {"pair": pair, "first": first, "noise": seed, "sampled": settings} | judged
        probe = partial(probe_pair, model, embedder, pair, first, settings, seed, args.tracker)
        jobs.append(partial(probe_once, cache, told, probe, k < GRIDS))
    folders = shared(jobs, f"{args.kind} pairs")
    if folders is None:
        return
    scores = []
    for folder in folders:
        with intact(folder):
            scores.append(read_json(folder / "scores.json"))
    result = {"name": f"probe-{args.kind}", "seed": args.seed, "kind": args.kind, "first": first,
              "made of": cache.told | settings, "scored with": judged,
              "pairs": list(zip(pairs, scores))}
    print(table(result))
    write_result(result, args.output, "customttt.paper.probe", folders)
    draw(result, folders, args.output)


if __name__ == "__main__":
    run_command(main)
