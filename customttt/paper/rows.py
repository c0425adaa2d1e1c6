"""One row of a table for one group: learn its subject and its motion, join them, sample, score.

This is the one place where many combinations are trained and sampled; what cache.py has is not made
again. A group is a subject, a motion and the prompts that join them.
"""

import argparse
import hashlib
import json
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from ..draws import stream_seed
from ..errors import UserError
from ..files.checks import clipped
from ..files.lora_files import load_lora
from ..files.reading import read_json, write_json
from ..media.clips import to_images, write_frames
from ..media.find import IMAGE_ENDINGS, caption_beside, find_files
from ..recipes import SAMPLING
from ..run.data import fingerprint
from ..run.options import chosen_settings, open_model
from ..sampling import sample_video
from ..stages import STAGES
from .cache import Cache, files_of, intact, learned_from, parsed, values_of
from .clip import clip_fingerprint, load_clip
from .dreamvideo import WORD, load_dreamvideo, sample_dreamvideo
from .flags import SAMPLED
from .metrics import clip_scores, fidelity_scores, open_image, reference_tracks
from .systems import COMPARED
from .tracks import TRACKERS, told_of_tracks

FPS = SAMPLING.full["fps"].value


@dataclass(frozen=True)
class Group:
    images: Path                # a folder
    subject: str                # "a teddy bear"
    video: Path
    motion: str                 # "a man is lifting weights"
    prompts: tuple[str, ...]    # "a teddy bear is lifting weights on the snow", ...

    @property
    def name(self) -> str:
        return f"{self.images.name} + {self.video.stem}"

    @property
    def content(self) -> str:
        return fingerprint([*learned_from(self.images), *files_of(self.video)])

    @property
    def words(self) -> re.Pattern:
        """The subject's words in a prompt, with the article before them."""
        return re.compile(rf"(?<!\w)(?:(?i:an?|the) )?{re.escape(self.subject)}(?!\w)")

    def check(self) -> None:
        """Raise UserError for images that cannot be read, or for other words beside a file, which
        stages would learn it under."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")     # of what is left out: training will say so
            self.subject_images()
            images = self.image_files()
        for file, words in (*((each, self.subject) for each in images), (self.video, self.motion)):
            if (beside := caption_beside(file)) not in (None, words):
                raise UserError(f"{file}: the text beside it says \"{clipped(beside)}\", the "
                                f"protocol \"{words}\"; make them the same, or remove the text")

    def image_files(self) -> list[Path]:
        return find_files([self.images], IMAGE_ENDINGS, "image")

    def subject_images(self) -> list[Image.Image]:
        return [open_image(file) for file in self.image_files()]


@dataclass(frozen=True)
class Row:
    """What learns a subject, what learns a motion, and what joins them."""

    name: str
    subject: tuple[str, ...] = ("spatial",)     # stages, one after the other
    motion: tuple[str, ...] = ("temporal",)
    subject_flags: tuple[str, ...] = ()
    motion_flags: tuple[str, ...] = ()
    ttt: tuple[str, ...] | None = None          # its flags; None: joined as they are
    scales: tuple[float, float] = (1.0, 1.0)    # of the subject's and the motion's LoRA
    clip: Callable[[Group, str, int], Tensor] | None = None     # of a prompt and a seed, instead


def check_flags(row: Row) -> None:
    """Its stages know its flags, or the program ends: now, and not after hours."""
    for stages, flags in ((row.subject, row.subject_flags), (row.motion, row.motion_flags),
                          (("ttt",), row.ttt or ())):
        for name in stages:
            parsed((STAGES | COMPARED)[name], flags)


class Unit(NamedTuple):
    """One clip of a table."""

    row: Row
    group: Group
    k: int          # which of the group's prompts

    @property
    def prompt(self) -> str:
        return self.group.prompts[self.k]


class Scorer(NamedTuple):
    """Some scores of a unit's clip, uint8 (f H W 3); it gets the unit's LoRA files, too."""

    name: str
    told: dict      # what makes a difference in them, beside the clip
    score: Callable[[Tensor, Unit, dict[str, Path]], dict[str, float]]
    check: Callable[[Group], None] = lambda group: None     # before any work, what a group gives


class Bench(NamedTuple):
    """A model and a cache: what trains, samples and scores."""

    args: argparse.Namespace
    cache: Cache
    scorers: tuple[Scorer, ...]

    def loras(self, unit: Unit) -> dict[str, Path]:
        """What the stages of a row train, by stage."""
        row, group, files = unit.row, unit.group, {}
        if row.clip is not None:
            return files
        for stages, flags, data, words in (
                (row.subject, row.subject_flags, group.images, group.subject),
                (row.motion, row.motion_flags, group.video, group.motion)):
            for name in stages:
                of = {"--data": data}
                if name == "dreamvideo-identity":
                    of["--word"] = files["dreamvideo-word"]
                elif name == "dreamvideo-motion":
                    of["--clip"] = self.args.clip
                stage = (STAGES | COMPARED)[name]
                files[name] = self.cache.lora(stage, ("--prompt", words, *flags), of)
        if row.ttt is not None:
            flags = [flag.replace("{prompt}", unit.prompt).replace(
                "{doing}", unit.prompt.partition(" is ")[2]) for flag in row.ttt]
            files["ttt"] = self.cache.lora(
                STAGES["ttt"], ("--prompt", unit.prompt, *flags),
                {f"--{kind}": files[kind] for kind in ("spatial", "temporal")})
        return files

    def clip_folder(self, unit: Unit, loras: dict[str, Path]) -> Path:
        """The folder of a unit's clip. Rows share the noise."""
        row, group = unit.row, unit.group
        seed = stream_seed(self.args.seed, f"table {group.name} {unit.k}")
        told = {"prompt": unit.prompt, "noise": seed}
        if row.clip is not None:
            told |= {"row": row.name, "group": group.content}
            clip = partial(row.clip, group, unit.prompt, seed)
        else:
            files = loras if row.ttt is None else {"ttt": loras["ttt"]}
            told |= {"loras": [file.parent.name for file in files.values()], "scales": row.scales,
                     "recipe": values_of(SAMPLED, self.args)}
            clip = partial(self.sampled, unit, files, seed)
        return self.cache.made("clips/clip", told,
                               lambda folder: write_frames(clip(), folder / "clip.png"))

    def sampled(self, unit: Unit, files: dict[str, Path], seed: int) -> Tensor:
        """As `sample` does it; what goes wrong names the row and the group."""
        try:
            return self.sample(unit, files, seed)
        except UserError as error:
            raise UserError(f"{unit.row.name}, {unit.group.name}: {error}") from error

    def sample(self, unit: Unit, files: dict[str, Path], seed: int) -> Tensor:
        """uint8 (f H W 3)."""
        row, group = unit.row, unit.group
        model, _ = open_model(self.args)
        settings = chosen_settings(self.args, SAMPLED, model)
        arguments = {"steps": settings["sampling_steps"], "guidance": settings["guidance"],
                     "frames": settings["frames"], "size": settings["size"], "seed": seed}
        if "dreamvideo-word" in files:
            load_dreamvideo(model, *files.values())
            guide = load_clip(self.args.clip, model.device).embed_images(group.subject_images()[:1])
            worded = group.words.sub(f"a {WORD}", unit.prompt)
            return sample_dreamvideo(model, worded, guide, **arguments)
        scales = (*row.scales[:1] * len(row.subject), *row.scales[1:] * len(row.motion))
        for file, scale in zip(files.values(), scales):
            load_lora(model.unet, file, scale)
        return sample_video(model, unit.prompt, **arguments)

    def scores(self, unit: Unit) -> tuple[dict[str, float], list[Path]]:
        """A unit's scores, and the folders of the cache that they come from."""
        loras = self.loras(unit)
        clip = self.clip_folder(unit, loras)
        scores, made = {}, [clip, *(file.parent for file in loras.values())]
        for scorer in self.scorers:
            told = {"clip": clip.name, "prompt": unit.prompt, "group": unit.group.content}
            folder = self.cache.made(
                f"scores/{scorer.name}", told | scorer.told, lambda folder: write_json(
                    scorer.score(read_clip(clip), unit, loras), folder / "scores.json"))
            with intact(folder):
                scores |= read_json(folder / "scores.json")
            made.append(folder)
        return scores, made


def told_of(units: Sequence[Unit], args: argparse.Namespace) -> str:
    """SHA-256 of all that makes them beside the model and the seed."""
    stages = {stage for unit in units for stage in (*unit.row.subject, *unit.row.motion, "ttt")}
    told = {"recipes": {stage: values_of((STAGES | COMPARED)[stage].recipe) for stage in stages},
            "sampled": values_of(SAMPLED, args),
            "units": [[str(replace(unit.row, clip=None)), unit.group.content, unit.group.subject,
                       unit.group.motion, unit.prompt] for unit in units]}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def read_clip(folder: Path) -> Tensor:
    """uint8 (f H W 3) of a clip's squares in a row."""
    with intact(folder), Image.open(folder / "clip.png") as image:
        pixels = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
        return rearrange(pixels, "(h f w c) -> f h w c", h=image.height, w=image.height, c=3)


def paper_scorer(args: argparse.Namespace) -> Scorer:
    """The paper's four metrics; the last one in both forms."""
    embedder = load_clip(args.clip, args.device)

    def score(clip: Tensor, unit: Unit, loras: dict[str, Path]) -> dict[str, float]:
        """Motion fidelity is 0 where no point can be followed: it counts as a failure."""
        frames = to_images(clip)
        scores = clip_scores(embedder, frames, unit.prompt, unit.group.subject_images())
        reference = reference_tracks(unit.group.video, len(frames), FPS, args.tracker)
        tracks = TRACKERS[args.tracker](frames)
        return scores | (fidelity_scores(tracks, reference) if len(tracks) else
                         dict.fromkeys(("motion fidelity", "motion fidelity (published)"), 0.0))

    def check(group: Group) -> None:
        frames = args.frames or SAMPLED.full["frames"].value
        if not len(reference_tracks(group.video, frames, FPS, args.tracker)):
            raise UserError(f"{group.video}: no point can be followed through it; take another "
                            f"video")
    told = {"judge": clip_fingerprint(args.clip)} | told_of_tracks(args.tracker)
    return Scorer("paper", told, score, check)
