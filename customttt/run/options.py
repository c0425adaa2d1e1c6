"""What both command lines share: flags for the model and for every number of a recipe."""

import argparse
import math
from pathlib import Path

import torch

from ..diffusion import STEPS
from ..errors import UserError
from ..files.load import load_model
from ..model.model import Model
from ..model.unet import check_clip_length
from ..recipes import Recipe, is_full_size
from ..sampling import latent_shape
from .loop import DTYPES

DEFAULT_MODEL = Path("weights/tiny")    # the embedded miniature
MAY_BE_ZERO = {"dropout", "weight_decay", "betas", "guidance", "reference_guidance",
               "spatial_layers", "temporal_layers", "least_timestep"}
BELOW = {"dropout": 1, "betas": 1} | dict.fromkeys(
    ("sampling_steps", "reference_steps", "least_timestep"), STEPS)
CHOICES = {"reference_noise": ["independent", "one"], "reference_timestep": ["uniform", "next"]}


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=DEFAULT_MODEL, metavar="M",
                        help="model folder or single-file checkpoint (default: %(default)s)")
    parser.add_argument("--motion-module", metavar="FILE",
                        help="AnimateDiff motion module (default: M/motion_adapter)")
    parser.add_argument("--vae", metavar="FILE_OR_FOLDER", help="in place of the model's own VAE")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu",
                        help="cpu, cuda, cuda:1, ... (default: %(default)s)")
    parser.add_argument("--precision", choices=list(DTYPES),
                        help="default: fp16 on a GPU, fp32 on a CPU")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")


def add_recipe_flags(parser: argparse.ArgumentParser, recipe: Recipe) -> None:
    """One flag per number; its default is the recipe's, which the model decides."""
    for name, setting in recipe.full.items():
        value, text = setting.value, f"{_shown(setting.value)} ({setting.source})"
        if name in recipe.tiny:
            text += f"; {_shown(recipe.tiny[name].value)} ({recipe.tiny[name].source})"
        text = text.replace("%", "%%")
        if isinstance(value, bool):
            parser.add_argument(_flag(name), action=argparse.BooleanOptionalAction, help=text)
        elif isinstance(value, tuple):
            parser.add_argument(_flag(name), type=type(value[0]), nargs="+", metavar="N", help=text)
        else:
            parser.add_argument(_flag(name), type=type(value), choices=CHOICES.get(name),
                                metavar=None if name in CHOICES else "N", help=text)


def _shown(value) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def open_model(args: argparse.Namespace) -> tuple[Model, str]:
    """Load the model that the flags name. Returns it with the precision that is used."""
    try:
        device = torch.device(args.device)
        torch.empty(0, device=device)
    except Exception as error:
        raise UserError(f"--device {args.device}: not to be had here "
                        f"({str(error).splitlines()[0]})") from error
    if not 0 <= args.seed < 2 ** 63:
        raise UserError(f"--seed {args.seed}: must be 0 or more, and less than 2^63")
    precision = args.precision or ("fp32" if device.type == "cpu" else "fp16")
    if precision == "fp16" and device.type == "cpu":
        raise UserError("--precision fp16: needs a GPU; on a CPU use fp32 or bf16")
    model = load_model(args.model, args.motion_module, device, DTYPES[precision], args.vae)
    if (motion := model.unet.config.motion) is not None:
        print(f"motion module: version {motion.version}, at most {motion.max_frames} frames")
    return model, precision


def chosen_settings(args: argparse.Namespace, recipe: Recipe, model: Model) -> dict:
    """The recipe's values for this model, overridden by the flags that were given; says where they
    differ from the full-size recipe's."""
    settings = {}
    print("recipe: " + ("full size" if is_full_size(model.unet) else "tiny"))
    for name, (value, source) in recipe.of(model.unet).items():
        given = getattr(args, name)
        if given is not None:
            value, source = tuple(given) if isinstance(given, list) else given, "given"
        settings[name], full = value, recipe.full[name]
        if value != full.value:
            print(f"  {name} {_shown(value)} ({source}); full size: {_shown(full.value)} "
                  f"({full.source})")
    check_numbers(settings)
    check_size(model, settings)
    return settings


def check_numbers(settings: dict) -> None:
    for key, value in settings.items():
        numbers = value if isinstance(value, tuple) else (value,)
        given = f"{_flag(key)} {_shown(value)}"
        for number in numbers:
            if isinstance(number, (bool, str)):
                continue
            if key in MAY_BE_ZERO and not 0 <= number < math.inf:
                raise UserError(f"{given}: must be positive or 0")
            if key not in MAY_BE_ZERO and not 0 < number < math.inf:
                raise UserError(f"{given}: must be positive")
            if number >= BELOW.get(key, math.inf):
                raise UserError(f"{given}: must be less than {BELOW[key]}")
        if key == "betas" and len(numbers) != 2:
            raise UserError(f"{given}: give two")
        if "layers" in key and len(set(numbers)) < len(numbers):
            raise UserError(f"{given}: give each layer once")
    if settings.get("reference_timestep") == "next" and (
            settings["reference_steps"] >= settings["sampling_steps"]):
        raise UserError(f"--reference-steps {settings['reference_steps']}: must be less than "
                        f"--sampling-steps with --reference-timestep next")


def _flag(key: str) -> str:
    return "--" + key.replace("_", "-")


def check_size(model: Model, settings: dict) -> None:
    """A clip of that size and length must suit the VAE and the motion module."""
    try:
        latent_shape(model, settings["frames"], settings["size"])
        if model.unet.config.motion is not None:
            check_clip_length(model.unet.config.motion, settings["frames"])
    except ValueError as error:
        raise UserError(f"--size {settings['size']}, --frames {settings['frames']}: "
                        f"{error}") from error
