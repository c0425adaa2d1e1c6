"""Does each stage do its work? The three stages on held-out subjects and motions, scored.

  python -m customttt.tiny.study [--start 40 --seed 1] [--output output/study]
      [--stages spatial] [--spatial="--learning-rate 1e-3"] [--ttt="--steps 60" --name longer]
      [--compare ttt longer]

It runs train.py itself, as a user would, two runs at a time, skips what is already there (so it
resumes), and prints a table: one row a condition, mean and 95% interval over the combinations, and
paired differences. --spatial, --temporal and --ttt take flags for that stage; in those of ttt,
{prompt} and {doing} are the combination's "a fish is moving up in the sea" and "moving up in the
sea". --name keeps the results of one ttt setting apart from another's, --output those of the other
two stages; every seed has a folder of its own there. --compare runs nothing and prints a row for
each --name that was run. `scores.py` says what the columns are.
"""

import argparse
import json
import math
import os
import shlex
import statistics
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Generator, Tensor
from tqdm import tqdm

from ...draws import Draws
from ...errors import UserError, writing
from ...files.load import load_model
from ...files.lora_files import load_lora
from ...files.reading import read_json, read_metadata
from ...lora import lora_on
from ...media.clips import contact_sheet, write_video
from ...model.model import Model
from ...recipes import SAMPLING
from ...run.data import Texts
from ...sampling import decode_frames, latent_shape, sample_video
from ...stages import STAGES, TEACHERS, ttt_step
from ..pretraining.judge import Judge
from ..world.clips import SCENES, make_clip, render
from ..world.motions import HELD_OUT_MOTIONS
from ..world.subjects import HELD_OUT_SUBJECTS, Subject
from .scores import METRICS, STILL, Combination, combinations, other_motion, other_subject, score
from .student import STUDENT, UNSEEN_SEED, change, noise_change, preservation

CONDITIONS = {      # name: LoRAs that are on
    "base": (),
    "subject only": TEACHERS[:1],
    "motion only": TEACHERS[1:],
    "joined, no ttt": TEACHERS,
    "joined, ttt": STUDENT,
}
TRUTH = "rendered truth"        # the subject on the path: what could be reached
REFERENCES = ("appearance reference", "motion reference")       # of test-time training
CONTROLS = {        # name: whose clip is held against a truth that it did not learn
    "subject only, held against another subject": "subject only",
    "motion only, held against another motion": "motion only",
}
DIFFERENCES = [("subject only", "base"), ("subject only", list(CONTROLS)[0]),
               ("motion only", "base"), ("motion only", list(CONTROLS)[1]),
               ("joined, ttt", "joined, no ttt")]


def write_data(folder: Path) -> None:
    """Five images of each held-out subject, a clip of each held-out motion, with captions."""
    generator = Generator().manual_seed(11)
    for name, subject in HELD_OUT_SUBJECTS.items():
        for k, scene in enumerate(SCENES):
            clip = make_clip(subject, STILL, scene, generator)
            write_video(render(clip, [0]), folder / dashed(name) / f"{k}.png")
    for name, motion in HELD_OUT_MOTIONS.items():
        clip = make_clip(Subject("ball", ("red",)), motion, "grass", generator)
        write_video(render(clip), folder / f"{dashed(name)}.mp4")
        (folder / f"{dashed(name)}.txt").write_text(clip.caption + "\n")


def dashed(name: str) -> str:
    return name.replace(" ", "-")


def train(args: argparse.Namespace, stage: str, output: Path, *flags) -> Path:
    """Run train.py unless its LoRA is there; returns the LoRA file."""
    lora = output / "adapter.safetensors"
    if not lora.exists():
        resume = ["--resume"] if (output / "checkpoint.pt").exists() else []
        command = [sys.executable, "train.py", "--stage", stage, "--output", output, "--model",
                   args.model, "--seed", args.seed, "--sheet-every", 0, *flags,
                   *resume]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"{output}: {done.stderr.strip().splitlines()[-1]}")
    return lora


def train_subject(args: argparse.Namespace, name: str) -> Path:
    return train(args, "spatial", args.output / "spatial" / dashed(name), "--data",
                 args.output / "data" / dashed(name), "--prompt",
                 f"a {HELD_OUT_SUBJECTS[name].kind}", *shlex.split(args.spatial))


def train_motion(args: argparse.Namespace, name: str) -> Path:
    return train(args, "temporal", args.output / "temporal" / dashed(name), "--data",
                 args.output / "data" / f"{dashed(name)}.mp4", *shlex.split(args.temporal))


def said(flags: str, combination: Combination) -> list[str]:
    """The flags of ttt with the combination's words in them."""
    prompt, doing = combination.prompt, combination.prompt.partition(" is ")[2]
    return [flag.replace("{prompt}", prompt).replace("{doing}", doing)
            for flag in shlex.split(flags)]


def results_of(args: argparse.Namespace, name: str, combination: Combination) -> Path:
    return args.output / name / f"{combination.name}.json"


def examine(args: argparse.Namespace, combination: Combination) -> dict[str, dict[str, float]]:
    """Join and score one combination, unless that was done: scores by condition."""
    results = results_of(args, args.name, combination)
    if results.exists():
        return read_json(results)
    loras = {}
    if "spatial" in args.stages:
        loras["spatial_teacher"] = spatial = train_subject(args, combination.subject)
    if "temporal" in args.stages:
        loras["temporal_teacher"] = temporal = train_motion(args, combination.motion)
    if "ttt" in args.stages:
        loras["joined"] = joined = train(
            args, "ttt", args.output / args.name / combination.name, "--spatial", spatial,
            "--temporal", temporal, "--prompt", combination.prompt, *said(args.ttt, combination))

    model, judge = load_model(args.model), Judge(args.model)
    clips = {TRUTH: truth(combination, args.seed)}
    scores = {TRUTH: score(judge, combination, clips[TRUTH], args.seed)}
    for name, file in loras.items():
        load_lora(model.unet, file, name=name)
    for name, on in CONDITIONS.items():
        if loras.keys() >= set(on):
            clips[name] = sample(args, model, combination, on)
            scores[name] = score(judge, combination, clips[name], args.seed)
    wrong = replace(combination, subject=other_subject(combination.subject),
                    motion=other_motion(combination.motion))
    for name, condition in CONTROLS.items():
        if condition in clips:
            scores[name] = score(judge, wrong, clips[condition], args.seed)
    if "joined" in loras:
        told = read_metadata(joined)
        settings = json.loads(told["recipe"])
        texts = Texts(*model.encode_text([combination.prompt, told["appearance_prompt"],
                                          told["motion_prompt"], ""]).split(1))
        shape = latent_shape(model, settings["frames"], settings["size"])
        with torch.no_grad():
            drawn = ttt_step(model.unet, texts, shape, settings, Draws(UNSEEN_SEED),
                             backward=lambda loss: None)
        if settings["reference_timestep"] == "uniform":     # clean
            for name, z_ref in zip(REFERENCES, drawn):
                scores[name] = score(judge, combination, decode_frames(model, z_ref), args.seed)
        scores["student"] = {
            "change of spatial weights": change(spatial, joined),
            "change of temporal weights": change(temporal, joined),
            "change of predicted noise": noise_change(model, combination, clips["joined, no ttt"]),
            **preservation(model.unet, texts, shape, settings)}
    write_video(contact_sheet([clip[::2] for clip in clips.values()]), results.with_suffix(".png"))
    with writing(results) as temporary:
        temporary.write_text(json.dumps(scores, indent=1))
    return scores


def truth(combination: Combination, seed: int) -> Tensor:
    """(f H W 3) uint8: the rendered clip of the subject on the path, at a place of the seed's."""
    return render(make_clip(HELD_OUT_SUBJECTS[combination.subject],
                            HELD_OUT_MOTIONS[combination.motion], combination.scene,
                            Generator().manual_seed(seed + 7)))


def sample(args: argparse.Namespace, model: Model, combination: Combination,
           on: tuple[str, ...]) -> Tensor:
    """One clip; those without test-time training are kept for the other --name's."""
    kept = args.output / "clips" / "+".join(on or ["base"]) / f"{combination.name}.pt"
    if kept.exists():
        return torch.load(kept, weights_only=True)
    settings = SAMPLING.values(model.unet)
    with lora_on(model.unet, *on):
        frames = sample_video(model, combination.prompt, steps=settings["sampling_steps"],
                              guidance=settings["guidance"], size=settings["size"],
                              seed=args.seed + 1)
    if on != STUDENT:
        with writing(kept) as temporary:
            torch.save(frames, temporary)
    return frames


def interval(values: list[float]) -> str:
    """Mean and half of the 95% interval (normal)."""
    half = 1.96 * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{statistics.mean(values):.3f} ± {half:.3f}"


def table(results: list[dict]) -> str:
    lines = ["| | " + " | ".join(METRICS) + " |", "|---" * (len(METRICS) + 1) + "|"]
    for name in [TRUTH, *CONDITIONS, *CONTROLS, *REFERENCES]:
        if name in results[0]:
            cells = (interval([scores[name][m] for scores in results]) for m in METRICS)
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    for a, b in DIFFERENCES:
        if a in results[0] and b in results[0]:
            cells = (interval([scores[a][m] - scores[b][m] for scores in results])
                     for m in METRICS)
            lines.append(f"| *{a}* minus *{b}* | " + " | ".join(cells) + " |")
    for name in results[0].get("student", ()):
        percent = interval([100 * scores["student"][name] for scores in results])
        lines.append(f"\nstudent's {name}: {percent} %")
    return "\n".join(lines)


def comparison(runs: dict[str, list[dict]]) -> str:
    """One row a --name: joined with test-time training minus without, and the student's changes."""
    gained = ("identity", "motion", "CLIP-T", "words")
    changes = list(next(iter(runs.values()))[0]["student"])
    lines = ["| | " + " | ".join([*gained, *(f"{name}, %" for name in changes)]) + " |",
             "|---" * (len(gained) + len(changes) + 1) + "|"]
    for name, results in runs.items():
        cells = [interval([scores["joined, ttt"][m] - scores["joined, no ttt"][m]
                           for scores in results]) for m in gained]
        cells += [interval([100 * scores["student"][m] for scores in results]) for m in changes]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("weights/tiny"))
    parser.add_argument("--output", type=Path, default=Path("output/study"))
    parser.add_argument("--name", default="ttt", help="folder of these ttt runs and results")
    parser.add_argument("--start", type=int, default=40, help="the first combination")
    parser.add_argument("--combinations", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES),
                        help="ttt needs the other two")
    parser.add_argument("--compare", nargs="+", metavar="NAME", help="print these, run nothing")
    for stage in STAGES:
        parser.add_argument(f"--{stage}", default="", metavar="FLAGS", help="of that stage")
    args = parser.parse_args()
    args.output /= f"seed-{args.seed}"
    if "ttt" in args.stages and len(set(args.stages)) < len(STAGES):
        raise UserError("--stages: ttt joins what the other two have trained; give all three")
    if "ttt" not in args.stages:
        args.name = "+".join(args.stages) + "-only"
    chosen = combinations(args.start, args.combinations)
    if args.compare:
        files = {name: [results_of(args, name, each) for each in chosen] for name in args.compare}
        for name, each in files.items():
            if missing := [file for file in each if not file.exists()]:
                raise UserError(f"--compare {name}: no {missing[0]}; run it with --name {name}")
        print(comparison({name: list(map(read_json, each)) for name, each in files.items()}))
        return

    write_data(args.output / "data")
    os.environ["OMP_NUM_THREADS"] = "1"     # a process for each core is faster than shared ones
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        if "spatial" in args.stages:
            names = dict.fromkeys(each.subject for each in chosen)
            list(tqdm(pool.map(partial(train_subject, args), names), "subjects", len(names)))
        if "temporal" in args.stages:
            names = dict.fromkeys(each.motion for each in chosen)
            list(tqdm(pool.map(partial(train_motion, args), names), "motions", len(names)))
        results = list(tqdm(pool.map(partial(examine, args), chosen), "combinations", len(chosen)))
    print(table(results))
