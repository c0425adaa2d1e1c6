"""What both command lines share: flags for the model and for every number of the recipe."""

import argparse
import math
from pathlib import Path

import torch

from ..diffusion import STEPS
from ..errors import UserError
from ..files.load import load_model
from ..model.model import Model
from ..recipes import PAPER, WHY_TINY, recipe, recipe_name
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


def add_recipe_flags(parser: argparse.ArgumentParser, stages: tuple[str, ...]) -> None:
    """One flag per number; its default is the recipe's, which the model decides."""
    everything = {name: value for stage in stages for name, value in PAPER[stage].items()}
    for name, value in everything.items():
        values = {stage: _shown(PAPER[stage][name]) for stage in stages if name in PAPER[stage]}
        flag, text = _flag(name), "paper: " + (
            _shown(value) if len(set(values.values())) == 1 and len(values) == len(stages)
            else ", ".join(f"{number} ({stage})" for stage, number in values.items()))
        if isinstance(value, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, help=text)
        elif isinstance(value, tuple):
            parser.add_argument(flag, type=type(value[0]), nargs="+", metavar="N", help=text)
        else:
            parser.add_argument(flag, type=type(value), choices=CHOICES.get(name), help=text)


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


def chosen_settings(args: argparse.Namespace, stage: str, model: Model) -> dict:
    """The recipe for this model, overridden by the flags that were given; says what differs."""
    name = recipe_name(model.unet)
    settings = recipe(stage, name)
    given = {key: tuple(value) if isinstance(value, list) else value
             for key, value in vars(args).items() if key in settings and value is not None}
    settings |= given
    for key in {key for some in PAPER.values() for key in some} - settings.keys():
        if getattr(args, key, None) is not None:
            raise UserError(f"{_flag(key)}: is not for --stage {stage}; leave it out")
    check_numbers(settings)
    print(f"recipe: {name}")
    for key, value in settings.items():
        if value != PAPER[stage][key]:
            why = "given" if key in given else WHY_TINY[key]
            print(f"  {key} {_shown(value)}, the paper has {_shown(PAPER[stage][key])} ({why})")
    check_size(model, settings)
    return settings


def check_numbers(settings: dict) -> None:
    for key, value in settings.items():
        numbers = value if isinstance(value, tuple) else (value,)
        given = f"{_flag(key)} {_shown(value)}"
        for number in numbers:
            if isinstance(number, (bool, str)):
                continue
            if not math.isfinite(number) or number < 0 or number == 0 and key not in MAY_BE_ZERO:
                raise UserError(f"{given}: must be positive" + " or 0" * (key in MAY_BE_ZERO))
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
    multiple = 8 * model.vae.factor
    if settings["size"] % multiple:
        raise UserError(f"--size {settings['size']}: must be a multiple of {multiple}")
    motion = model.unet.config.motion
    if motion is not None and settings["frames"] > motion.max_frames:
        raise UserError(f"--frames {settings['frames']}: this motion module (version "
                        f"{motion.version}) was trained for at most {motion.max_frames}; ask for "
                        f"fewer and join the clips in an editor")
