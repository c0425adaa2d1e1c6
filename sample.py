"""Sample a video: a model, any number of LoRA files, a prompt.

  python sample.py --lora output/ttt --prompt "a teddy bear is lifting weights" --output out.mp4

Without further flags it runs on the embedded tiny model (weights/tiny) with what train.py left in
output/ttt. The ending of --output chooses the format: .mp4, .gif, .webp, or .png (contact sheet).
"""

import argparse
import math
import os
import warnings
from pathlib import Path

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")      # before torch is imported: run/memory.py

from tqdm import tqdm

from customttt.errors import UserError, check_writable, command_parser, run_command
from customttt.files.keys import is_motion
from customttt.files.lora_files import find_lora, load_lora
from customttt.lora import merge_lora
from customttt.media.clips import check_ending, check_fps, write_frames
from customttt.model.model import Model
from customttt.recipes import SAMPLING
from customttt.run.data import OUTPUT
from customttt.run.memory import keep_freed_memory
from customttt.run.options import (add_model_flags, add_recipe_flags, check_prompt,
                                   chosen_settings, open_model, require_motion, say_base)
from customttt.sampling import finite_frames, sample_latents

JOINED = OUTPUT / "ttt"


def parse() -> argparse.Namespace:
    parser = command_parser(__doc__)
    add_model_flags(parser)
    parser.add_argument("--lora", nargs="*", action="extend", metavar="FILE[:SCALE]",
                        help="LoRA files, or folders that train.py wrote (default: output/ttt; "
                        "--lora alone: none)")
    parser.add_argument("--prompt", help="default: the one that the last LoRA was trained for")
    parser.add_argument("--negative-prompt", default="", help="what it is not to show")
    parser.add_argument("--output", type=Path, default=Path("output/sample.mp4"), metavar="FILE",
                        help=".mp4, .gif, .webp or .png (default: %(default)s)")
    parser.add_argument("--motion", action=argparse.BooleanOptionalAction, default=True,
                        help="--no-motion takes the motion modules out: frames are separate images")
    add_recipe_flags(parser, SAMPLING)
    return parser.parse_args()


def main() -> None:
    args = parse()
    check_ending(args.output)
    model, _ = open_model(args)
    settings = chosen_settings(args, SAMPLING, model)
    check_fps(args.output, settings["fps"])
    still = args.output.suffix.lower() == ".png"
    if args.fps is not None and still:
        raise UserError("--fps: does nothing for a .png, a contact sheet; leave it out")
    if args.negative_prompt and settings["guidance"] == 1:
        raise UserError("--negative-prompt: does nothing with --guidance 1; leave it out")
    if settings["guidance"] == 0:
        warnings.warn("--guidance 0: what is sampled does not depend on the prompt", stacklevel=2)
    if args.motion:
        require_motion(model, instead="or sample images with --no-motion")
    loras = args.lora
    if loras is None:
        # A default run that was killed in an earlier stage, or is at work, has none there yet.
        loras = [JOINED] if any(JOINED.glob("[!.]*.safetensors")) else []
        if not loras:
            print(f"no LoRA: there is none in {JOINED}, and no --lora")
    shown = {"size": settings["size"]} | ({} if still else {"fps": settings["fps"]})
    prompt = apply_loras(model, loras, args.motion, shown)
    if args.prompt is not None:
        prompt = args.prompt
    if prompt is None:
        raise UserError("--prompt: say what the video shows")
    check_prompt(prompt, "--lora: the prompt in it")

    print(f"prompt: {prompt}")
    check_writable(args.output)
    latents = sample_latents(model, prompt, settings["sampling_steps"], settings["guidance"],
                             settings["frames"], settings["size"], args.seed, args.negative_prompt,
                             motion=args.motion)
    *_, z = tqdm(latents, desc="sampling", total=settings["sampling_steps"], unit="step")
    write_frames(finite_frames(model, z), args.output, settings["fps"])
    print(f"written: {args.output}")


def apply_loras(model: Model, loras: list[str | Path], motion: bool,
                settings: dict) -> str | None:
    """Merge the files into the model; `motion`: whether its motion modules are in. `settings`: size
    and fps of the video. Returns the prompt that the last file says it is for."""
    prompt = None
    for given in loras:
        path, scale = split_scale(str(given))
        path = find_lora(path, "--lora")
        file = load_lora(model.unet, path, scale, text_encoder=model.text_encoder)
        print(f"{path}: {file.tensors} tensors applied at scale {scale:g}")
        for sentence in file.notes:
            print(f"{path}: {sentence}")
        if not motion and any(map(is_motion, file.unet)):
            print(f"{path}: what it has for the motion modules does nothing with --no-motion")
        say_base(path, file.metadata, model, settings)
        prompt = file.metadata.get("prompt", prompt)
    merge_lora(model.unet)
    merge_lora(model.text_encoder)
    return prompt


def split_scale(text: str) -> tuple[Path, float]:
    """"file.safetensors:0.8" -> the path and 0.8; without a number, 1."""
    if not text:
        raise UserError("--lora: is empty; name a file or a folder")
    if Path(text).exists():             # its name may end in a colon and a number
        return Path(text), 1.0
    path, _, number = text.rpartition(":")
    try:
        scale = float(number)
    except ValueError:
        return Path(text), 1.0
    return (Path(path), scale) if path and math.isfinite(scale) else (Path(text), 1.0)


if __name__ == "__main__":
    keep_freed_memory()
    run_command(main)
