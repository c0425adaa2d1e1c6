"""LoRAs, clips and scores, each in a folder named by the hash of what makes it: made once, shared
by all tables. Any number of processes may work in one cache, and one that is stopped goes on there.
"""

import argparse
import contextlib
import hashlib
import json
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import UserError, flag, in_words, writing
from ..errors.command import Parser
from ..files.reading import read_json, write_json
from ..media.find import CAPTIONS, IMAGE_ENDINGS, VIDEO_ENDINGS, find_files
from ..recipes import Recipe
from ..run.checkpoint import CHECKPOINT
from ..run.data import fingerprint
from ..run.lock import AtWork, locked
from ..run.options import add_recipe_flags
from ..run.stage import Stage
from ..run.train import add_training_flags, train
from .clip import clip_fingerprint

OUTPUT = Path("output/paper")
ADAPTER, MADE = "adapter.safetensors", "made-of.json"
MODEL_FLAGS = ("model", "motion_module", "motion_version", "vae", "device", "precision", "seed")
PARTS = ("tokenizer", "text_encoder", "vae", "unet", "motion_adapter")      # of a model folder
BESIDE = ("tokenizer", "config.json")       # that are read beside a single file
WAIT = 2.0      # seconds between two looks at what another process is making


@dataclass(frozen=True)
class Cache:
    """A folder, and what all that is made in it shares."""

    folder: Path
    flags: tuple[str, ...]      # of train.py, whatever the stage
    told: dict                  # what makes a difference in them

    def made(self, name: str, told: dict, make: Callable[[Path], None]) -> Path:
        """The folder of what `told` makes: `make` fills it, unless that is done. If another process
        is at it, wait."""
        told = self.told | told
        digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
        folder = self.folder / f"{name}-{digest[:16]}"
        while not (folder / MADE).exists():
            try:
                with locked(folder):
                    if not (folder / MADE).exists():
                        start = time.perf_counter()
                        make(folder)
                        seconds = round(time.perf_counter() - start, 1)
                        write_json(told | {"seconds": seconds}, folder / MADE)
            except AtWork:
                time.sleep(WAIT)
        return folder

    def lora(self, stage: Stage, flags: Sequence[str], of: dict[str, Path]) -> Path:
        """The LoRA file that a stage of train.py trains, with these flags; `of`: what it learns
        from, data and other LoRAs (flag -> file or folder), which counts by its content. A flag
        that gives the recipe's own value, the same at every size, makes no difference."""
        data = [str(each) for pair in of.items() for each in pair]

        def make(folder: Path) -> None:
            resume = ["--resume"] if (folder / CHECKPOINT).exists() else []
            args = parsed(stage, ["--output", str(folder), "--sheet-every", "0", *self.flags,
                                  *flags, *data, *resume])
            if not train(stage, args):
                raise KeyboardInterrupt
        parser = Parser(prog=f"--stage {stage.name}", allow_abbrev=False)
        add_recipe_flags(parser, stage.recipe)
        given, others = parser.parse_known_args(flags)
        told = {"stage": stage.name, "recipe": values_of(stage.recipe, given), "flags": others,
                "of": {name: clip_fingerprint(path) if name == "--clip" else
                       fingerprint(learned_from(path)) for name, path in of.items()}}
        folder = self.made(f"loras/{stage.name}", told, make)
        for each in (folder / CHECKPOINT, *folder.glob("adapter-[0-9]*")):      # large
            each.unlink(missing_ok=True)
        return folder / ADAPTER


def parsed(stage: Stage, flags: Sequence[str]) -> argparse.Namespace:
    """As train.py's parser reads them. UserError for a flag that it does not know."""
    parser = Parser(prog=f"--stage {stage.name}", allow_abbrev=False)
    add_training_flags(parser, stage)
    return parser.parse_args(flags)


def open_cache(args: argparse.Namespace) -> Cache:
    """The cache in --output, for the model and the seed that the flags name."""
    flags = []
    for name in (*MODEL_FLAGS, "size", "frames", "steps"):
        if (value := getattr(args, name)) is not None:
            flags += [flag(name), str(value)]
    if args.gradient_checkpointing:     # changes no result
        flags.append("--gradient-checkpointing")
    told = {"model": fingerprint(model_files(args)), "device": torch.device(args.device).type} | {
        name: getattr(args, name)
        for name in ("motion_version", "precision", "seed", "size", "frames", "steps")}
    return Cache(args.output, tuple(flags), told)


def model_files(args: argparse.Namespace) -> list[Path]:
    """All that the model is read from."""
    found = []
    for path in map(Path, filter(None, (args.model, args.motion_module, args.vae))):
        parts = [part for part in map(path.joinpath, PARTS) if part.is_dir()] or [path]
        if path.is_file():
            parts += filter(Path.exists, map(path.with_name, BESIDE))
        found += [file for part in parts for file in files_of(part)]
    return found


def files_of(path: Path) -> list[Path]:
    """The files in a folder, hidden ones aside; a file, and the text beside it."""
    if path.is_dir():
        return sorted(each for each in path.rglob("*") if each.is_file() and not any(
            part.startswith(".") for part in each.relative_to(path).parts))
    if not path.is_file():
        raise UserError(f"{path}: no such file or folder")
    return [path, *filter(Path.is_file, map(path.with_suffix, CAPTIONS))]


def learned_from(path: Path) -> list[Path]:
    """The images and videos in a folder that a stage may read, and the text beside each; else as
    `files_of`."""
    if not path.is_dir():
        return files_of(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")     # of what is left out: reading it will say so
        used = find_files([path], IMAGE_ENDINGS | VIDEO_ENDINGS, "image or video")
    counted = {*used, *(file.with_suffix(ending) for file in used for ending in CAPTIONS)}
    return [file for file in files_of(path) if file in counted]


def values_of(recipe: Recipe, args: argparse.Namespace | None = None) -> dict:
    """All that a recipe says, at full size and at others, but for what the flags say."""
    given = {name: getattr(args, name) for name in recipe.full
             if getattr(args, name, None) is not None}
    return {size: {name: setting.value for name, setting in settings.items()} | given
            for size, settings in (("full", recipe.full), ("tiny", recipe.full | recipe.tiny))}


def seconds_of(folder: Path) -> float:
    """How long what is in a folder of the cache took; a LoRA's steps, those before a stop too."""
    log = folder / "log.jsonl"
    with intact(folder):
        if log.exists():
            return sum(json.loads(line)["seconds"] for line in log.open(encoding="utf-8"))
        return read_json(folder / MADE)["seconds"]


@contextlib.contextmanager
def intact(folder: Path) -> Iterator[None]:
    """While something is read that was made: if it cannot be, say what to do."""
    try:
        yield
    except (OSError, ValueError, KeyError, UserError) as error:
        raise UserError(f"{folder}: is damaged ({in_words(error)}); remove it, and the same "
                        f"command makes it again") from error


def write_result(result: dict, folder: Path, module: str, made: Sequence[Path]) -> None:
    """NAME-seed-S.json, the same whenever it is made, its last entry's items one a line; and beside
    it NAME-seed-S.run.json, how it was made: the command, and the seconds of what it rests on."""
    command = shlex.join(["python", "-m", module, *sys.argv[1:]])
    *head, items = result
    file = folder / f"{result['name']}-seed-{result['seed']}.json"
    lines = [json.dumps(item, ensure_ascii=False) for item in result[items]]
    text = json.dumps({key: result[key] for key in head}, indent=1, ensure_ascii=False)
    with writing(file) as temporary:
        temporary.write_text(text.removesuffix("\n}") + f',\n "{items}": [\n  ' +
                             ",\n  ".join(lines) + "\n ]\n}\n", encoding="utf-8")
    seconds = {}
    for each in sorted(set(made)):
        kind = each.relative_to(folder).parts[0]
        seconds[kind] = round(seconds.get(kind, 0) + seconds_of(each), 1)
    write_json({"command": command, "seconds": seconds}, file.with_suffix(".run.json"))
