"""What both command lines share: flags for the model and for every number of a recipe."""

import argparse
import json
import math
import unicodedata
from pathlib import Path

import torch

from ..errors import UserError, flag, full_memory, in_words
from ..files.checks import clipped
from ..files.load import load_model
from ..media.find import MOST_CHARACTERS
from ..model.model import Model
from ..model.motion import check_clip_length
from ..recipes import Recipe, Setting, is_full_size
from ..sampling import latent_shape
from .loop import DTYPES
from .memory import check_memory

DEFAULT_MODEL = Path("weights/tiny")    # the embedded miniature


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, metavar="M",
                        help="model folder or single-file checkpoint (default: %(default)s)")
    parser.add_argument("--motion-module", type=Path, metavar="FILE_OR_FOLDER",
                        help="AnimateDiff motion module (default: M/motion_adapter)")
    parser.add_argument("--motion-version", type=int, choices=[1, 2, 3],
                        help="of the motion module (default: as it tells; 1 if it does not)")
    parser.add_argument("--vae", type=Path, metavar="FILE_OR_FOLDER",
                        help="in place of the model's own VAE")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu",
                        help="cpu, cuda, cuda:1, ... (default: %(default)s)")
    parser.add_argument("--precision", choices=list(DTYPES),
                        help="default: fp16 on a GPU, fp32 on a CPU")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")


def add_recipe_flags(parser: argparse.ArgumentParser, recipe: Recipe) -> None:
    """One flag a setting; its default is the recipe's, which the model decides."""
    for name, setting in recipe.full.items():
        value, text = setting.value, f"{setting.about}: {_said(setting)}"
        if name in recipe.tiny:
            text += f"; {_said(recipe.tiny[name])}"
        text = text.replace("%", "%%")
        if isinstance(value, bool):
            parser.add_argument(flag(name), action=argparse.BooleanOptionalAction, help=text)
        elif isinstance(value, tuple):
            parser.add_argument(flag(name), type=type(value[0]), nargs="+", metavar="N", help=text)
        else:
            parser.add_argument(flag(name), type=type(value), choices=setting.choices,
                                metavar=None if setting.choices else "N", help=text)


def _said(setting: Setting) -> str:
    return f"{_shown(setting.value)} ({setting.source})"


def _shown(value) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def open_model(args: argparse.Namespace, motion: bool = True) -> tuple[Model, str]:
    """Check device, prompts, seed and precision, and load the model that the flags name, with or
    without its motion modules. Returns it with the precision that is used."""
    device = device_named(args.device)
    check_prompts(args)
    if not 0 <= args.seed < 2 ** 63:
        raise UserError(f"--seed {args.seed}: must be 0 or more, and less than 2^63")
    precision = args.precision or ("fp32" if device.type == "cpu" else "fp16")
    if precision == "fp16" and device.type == "cpu":
        raise UserError("--precision fp16: needs a GPU; on a CPU use fp32 or bf16")
    if precision == "fp32":
        torch.backends.cudnn.allow_tf32 = False     # else a GPU's convolutions round to fp16's bits
    model = load_model(args.model, args.motion_module, device, DTYPES[precision], vae=args.vae,
                       motion_version=args.motion_version, motion=motion)
    if (config := model.unet.config.motion) is not None:
        print(f"motion module: version {config.version}, at most {config.max_frames} frames")
    return model, precision


def say_base(file: Path, metadata: dict, model: Model, settings: dict) -> None:
    """Say where a LoRA was trained on another model than the one that it is used on, with a motion
    module of another version, or at another size or frame rate."""
    base = metadata.get("base_model", model.name)
    if base != model.name:
        print(f"{file}: was trained on {clipped(base)}, is used on {model.name}")
    version, motion = metadata.get("motion_version"), model.unet.config.motion
    if motion is not None and version not in (None, str(motion.version)):
        print(f"{file}: was trained with a motion module of version {clipped(version)}, is used "
              f"with version {motion.version}; give the same with --motion-module or "
              f"--motion-version")
    for name, value in trained_at(metadata).items():
        if settings.get(name, value) != value:
            print(f"{file}: was trained with {flag(name)} {value:g}, is used with "
                  f"{settings[name]:g}")


def trained_at(metadata: dict) -> dict[str, float]:
    """The size, and of a motion the frames a second, that a LoRA file of train.py names."""
    try:
        said = metadata | json.loads(metadata["recipe"])
        found = {name: float(said[name]) for name in ("size", "fps") if name in said}
        return {name: value for name, value in found.items() if math.isfinite(value)}
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError):     # another tool's
        return {}


def require_motion(model: Model, instead: str = "") -> None:
    if model.unet.config.motion is None:
        raise UserError(f"--model {model.name} has no motion module: give one with --motion-module"
                        + (f", {instead}" if instead else ""))


def device_named(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()        # "meta" has shapes alone
    except Exception as error:
        if (full := full_memory(error)) is not None:
            raise UserError(f"--device {name}: {full} is full; wait, or name another") from error
        raise UserError(f"--device {name}: this machine has no such device "
                        f"({in_words(error)})") from error
    return device


def check_prompts(args: argparse.Namespace) -> None:
    """Raise UserError for words that cannot be meant as a prompt."""
    for name, given in vars(args).items():
        if name.endswith("prompt") and given is not None:
            for text in [given] if isinstance(given, str) else given:
                check_prompt(text, flag(name))


def check_prompt(text: str, whose: str) -> None:
    """`whose`: the flag, or the file that it is from."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{whose}: holds bytes that are no UTF-8 text; type it again") from error
    if len(text) > MOST_CHARACTERS:
        raise UserError(f"{whose}: {len(text)} characters; give {MOST_CHARACTERS} at most, of "
                        f"which the model reads the first 75 tokens")
    if any(unicodedata.category(each) == "Cc" and not each.isspace() for each in text):
        raise UserError(f"{whose}: holds control characters; leave them out")


def chosen_settings(args: argparse.Namespace, recipe: Recipe, model: Model) -> dict:
    """The recipe's values for this model, overridden by the flags that were given; says where they
    differ from the full-size recipe's."""
    settings = {}
    print("recipe: " + ("full size" if is_full_size(model.unet) else "tiny"))
    for name, setting in recipe.of(model.unet).items():
        full, given = recipe.full[name], getattr(args, name)
        if given is not None:
            setting = Setting(tuple(given) if isinstance(given, list) else given, "given")
            check_setting(name, setting.value, full)
        if setting.value != full.value:
            print(f"  {name} {_said(setting)}; full size: {_said(full)}")
        settings[name] = setting.value
    check_together(model, settings, getattr(args, "motion", True))
    training = "learning_rate" in settings
    check_memory(model, settings, training, training and args.gradient_checkpointing)
    return settings


def check_setting(name: str, value, setting: Setting) -> None:
    """A given value must be in the setting's range."""
    numbers = value if isinstance(value, tuple) else (value,)
    given = f"{flag(name)} {_shown(value)}"
    for number in numbers:
        if isinstance(number, (bool, str)):
            continue
        if number >= setting.below:
            raise UserError(f"{given}: must be less than {setting.below}")
        if math.isnan(number) or number < 0 or number == 0 and not setting.zero:
            raise UserError(f"{given}: must be {'0 or more' if setting.zero else 'positive'}")
    if name == "betas" and len(numbers) != 2:
        raise UserError(f"{given}: give two")
    if name.endswith("_layers") and len(set(numbers)) < len(numbers):
        raise UserError(f"{given}: give each layer once")


def check_together(model: Model, settings: dict, motion: bool = True) -> None:
    """A clip of that size and length must suit the VAE and, where it is in, the motion module."""
    try:
        latent_shape(model, settings["frames"], settings["size"])
        if motion and model.unet.config.motion is not None:
            check_clip_length(model.unet.config.motion, settings["frames"])
    except ValueError as error:
        raise UserError(f"--size {settings['size']}, --frames {settings['frames']}: "
                        f"{error}") from error
    if settings.get("reference_timestep") == "next" and (
            settings["reference_steps"] >= settings["sampling_steps"]):
        raise UserError(f"--reference-steps {settings['reference_steps']}: must be less than "
                        f"--sampling-steps with --reference-timestep next")
