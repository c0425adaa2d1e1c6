"""Does each stage do its work? The three stages on held-out subjects and motions, scored.

  python -m customttt.tiny.study --combinations 20 [--output output/study]
      [--stages spatial] [--spatial="--learning-rate 1e-3"] [--ttt="--steps 60" --name longer]

It runs train.py itself, as a user would, skips what is already there (so it resumes), and prints a
table: one row a condition, mean and 95% interval over the combinations. --spatial, --temporal and
--ttt take flags for that stage; --name keeps the results of one ttt setting apart from another's.

  identity   how much of the subject's colours is right: 1 - half the L1 distance between two
             palettes (share of the subject's pixels nearest to each colour), the clip's and the
             rendered truth's
  motion     agreement of the measured trajectory with the held-out one
             (world.trajectory_agreement)
  CLIP-T     cosine of the tiny CLIP's text and mean frame embeddings; CLIP-I the same with images
             of the subject; consistency the mean cosine of consecutive frames
"""

import argparse
import math
import shlex
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Generator, Tensor
from tqdm import tqdm

from ..errors import UserError, run
from ..lora import active
from ..lora_files import load_lora
from ..model import Model, load_model
from ..recipes import STAGES, recipe, recipe_name
from ..sampling import sample_video
from ..video import contact_sheet, write_video
from .judge import as_pixels
from .parts import load_clip
from .measure import find_subject, measure_trajectory
from .motions import HELD_OUT_MOTIONS, Motion, trajectory_agreement
from .subjects import COLOURS, HELD_OUT_SUBJECTS, Subject
from .world import FRAMES, SCENES, Clip, make_clip, render

CONDITIONS = {      # name: adapters that are on
    "base": (),
    "subject only": ("spatial",),
    "motion only": ("temporal",),
    "joined, no ttt": ("spatial", "temporal"),
    "joined, ttt": ("joined",),
}
METRICS = ("identity", "motion", "CLIP-T", "CLIP-I", "consistency")
STILL = Motion("standing still", "standing still")


@dataclass(frozen=True)
class Combination:
    """A held-out subject, a held-out motion, and the scene of the target prompt."""

    subject: str
    motion: str
    scene: str

    @property
    def prompt(self) -> str:
        subject, motion = HELD_OUT_SUBJECTS[self.subject], HELD_OUT_MOTIONS[self.motion]
        return f"a {subject.kind} is {motion.word} {SCENES[self.scene]}"

    @property
    def folder(self) -> str:
        return f"{self.subject} + {self.motion}".replace(" ", "-")


def combinations(count: int) -> list[Combination]:
    """Every subject and every motion about equally often, scenes in turn.

    "pendulum" is left out: its trajectory stands still, so that its agreement says nothing.
    """
    motions = [name for name in HELD_OUT_MOTIONS if name != "pendulum"]
    subjects, scenes = list(HELD_OUT_SUBJECTS), list(SCENES)
    return [Combination(subjects[k % len(subjects)],
                        motions[(k + k // len(subjects)) % len(motions)],
                        scenes[(k + 2) % len(scenes)]) for k in range(count)]


def write_data(folder: Path) -> None:
    """Five images of each held-out subject, a clip of each held-out motion, with captions."""
    generator = Generator().manual_seed(11)
    for name, subject in HELD_OUT_SUBJECTS.items():
        for k, scene in enumerate(SCENES):
            clip = make_clip(subject, STILL, scene, generator)
            write_video(render(clip, [0]), folder / name.replace(" ", "-") / f"{k}.png")
    for name, motion in HELD_OUT_MOTIONS.items():
        clip = make_clip(Subject("ball", ("red",)), motion, "grass", generator)
        write_video(render(clip), folder / f"{name.replace(' ', '-')}.mp4")
        (folder / f"{name.replace(' ', '-')}.txt").write_text(clip.caption + "\n")


def train(stage: str, output: Path, *flags) -> Path:
    """Run train.py unless its adapter is there; returns the adapter."""
    adapter = output / "adapter.safetensors"
    if not adapter.exists():
        resume = ["--resume"] if (output / "checkpoint.pt").exists() else []
        command = [sys.executable, "train.py", "--stage", stage, "--output", output, *flags,
                   *resume]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"{output}: {done.stderr.strip().splitlines()[-1]}")
    return adapter


def prepare(args: argparse.Namespace, combination: Combination) -> dict[str, Path]:
    """The adapters of one combination, trained where they are missing."""
    output, common = args.output, ("--model", args.model, "--seed", args.seed)
    subject, motion = combination.subject.replace(" ", "-"), combination.motion.replace(" ", "-")
    adapters = {}
    if "spatial" in args.stages:
        kind = HELD_OUT_SUBJECTS[combination.subject].kind
        adapters["spatial"] = train(
            "spatial", output / "spatial" / subject, *common, "--data", output / "data" / subject,
            "--prompt", f"a {kind}", *shlex.split(args.spatial))
    if "temporal" in args.stages:
        adapters["temporal"] = train(
            "temporal", output / "temporal" / motion, *common, "--data",
            output / "data" / f"{motion}.mp4", *shlex.split(args.temporal))
    if "ttt" in args.stages:
        adapters["joined"] = train(
            "ttt", output / args.name / combination.folder, *common, "--spatial",
            adapters["spatial"], "--temporal", adapters["temporal"], "--prompt",
            combination.prompt, *shlex.split(args.ttt))
    return adapters


def sample(args: argparse.Namespace, model: Model, combination: Combination,
           on: tuple[str, ...]) -> Tensor:
    settings = recipe("sampling", recipe_name(model.unet))
    with active(model.unet, *on):
        return sample_video(model, combination.prompt, steps=settings["sampling_steps"],
                            guidance=settings["guidance"], size=settings["size"],
                            seed=args.seed + 1)


def palette(frames: Tensor) -> Tensor:
    """(f H W 3) uint8 -> the share of the subject's pixels that is nearest to each colour word."""
    pixels = frames[find_subject(frames)].float() / 255
    colours = torch.tensor([rgb for rgb in COLOURS.values()])
    if not len(pixels):
        return torch.zeros(len(colours))
    bright = pixels[pixels.amax(1) > 0.3]       # the outline and the eyes are dark on every subject
    nearest = torch.cdist(bright, colours).argmin(1)
    return torch.bincount(nearest, minlength=len(colours)) / max(len(bright), 1)


def score(args: argparse.Namespace, combination: Combination, frames: Tensor) -> dict[str, float]:
    clip, tokenizer = load_clip(args.model)
    subject, motion = HELD_OUT_SUBJECTS[combination.subject], HELD_OUT_MOTIONS[combination.motion]
    generator = Generator().manual_seed(args.seed)
    truth = [make_clip(subject, STILL, combination.scene, generator) for _ in range(4)]
    rendered = torch.cat([render(each, [0]) for each in truth])
    true_palette = torch.stack([palette(render(each, [0])) for each in truth]).mean(0)
    path = Clip(subject, motion, combination.scene, (32.0, 32.0), 14.0, 0.0, 0, False).trajectory()
    assert len(path) == FRAMES
    with torch.no_grad():
        embedded = clip.embed_images(as_pixels(frames))
        text = clip.embed_text(tokenizer([combination.prompt]), tokenizer.end)
        images = clip.embed_images(as_pixels(rendered))
    return {"identity": 1 - (palette(frames) - true_palette).abs().sum().item() / 2,
            "motion": trajectory_agreement(measure_trajectory(frames), path[:, :3]),
            "CLIP-T": (embedded @ text.T).mean().item(),
            "CLIP-I": (embedded @ images.T).mean().item(),
            "consistency": (embedded[1:] * embedded[:-1]).sum(1).mean().item()}


def interval(values: list[float]) -> str:
    """Mean and half of the 95% interval (normal)."""
    half = 1.96 * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{statistics.mean(values):.3f} ± {half:.3f}"


def table(rows: dict[str, list[dict[str, float]]]) -> str:
    lines = ["| condition | " + " | ".join(METRICS) + " |", "|---" * (len(METRICS) + 1) + "|"]
    for name, scores in rows.items():
        cells = (interval([each[metric] for each in scores]) for metric in METRICS)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    if "joined, ttt" in rows:
        pairs = zip(rows["joined, ttt"], rows["joined, no ttt"])
        differences = [{m: a[m] - b[m] for m in METRICS} for a, b in pairs]
        cells = (interval([each[metric] for each in differences]) for metric in METRICS)
        lines.append("| ttt minus no ttt, paired | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def relative_change(before: Path, after: Path) -> float:
    """||joined - trained|| / ||trained|| over the tensors of one adapter file."""
    with safe_open(before, "pt") as old, safe_open(after, "pt") as new:
        pairs = [(old.get_tensor(key), new.get_tensor(key)) for key in old.keys()]
    return math.sqrt(sum((b - a).square().sum().item() for a, b in pairs)
                     / sum(a.square().sum().item() for a, _ in pairs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("weights/tiny"))
    parser.add_argument("--output", type=Path, default=Path("output/study"))
    parser.add_argument("--name", default="ttt", help="folder of these ttt runs and sheets")
    parser.add_argument("--combinations", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES),
                        help="ttt needs the other two")
    for stage in STAGES:
        parser.add_argument(f"--{stage}", default="", metavar="FLAGS", help="of that stage")
    args = parser.parse_args()

    write_data(args.output / "data")
    rows: dict[str, list] = {}
    moved = []
    for combination in tqdm(combinations(args.combinations), desc="combinations"):
        adapters = prepare(args, combination)
        if "joined" in adapters:
            moved += [relative_change(adapters[kind], adapters["joined"])
                      for kind in ("spatial", "temporal")]
        model = load_model(args.model)
        for name, file in adapters.items():
            load_lora(model.unet, file, name=name)
        clips = []
        for name, on in CONDITIONS.items():
            if adapters.keys() >= set(on):
                clips.append(sample(args, model, combination, on))
                rows.setdefault(name, []).append(score(args, combination, clips[-1]))
        write_video(contact_sheet([clip[::2] for clip in clips]),
                    args.output / args.name / f"{combination.folder}.png")
    print(table(rows))
    if moved:
        print(f"the student moved by {interval(moved)} of its weights' norm")


if __name__ == "__main__":
    run(main)
