"""A model folder with RANDOM weights, made in a second: it draws noise, not pictures.

  python -m customttt.files.random_model FOLDER [--motion-version 3] [--full-size]

It has Stable Diffusion 1.5's folder layout and the nine layers at small widths; tests use it. With
--full-size it has Stable Diffusion 1.5's own widths (3 GB), to try memory and speed.
"""

from dataclasses import replace
from pathlib import Path

import torch

from ..errors import UserError, command_parser, run_command
from ..model.clip import TextEncoder
from ..model.config import (ANIMATEDIFF, SD15_TEXT, SD15_UNET, SD15_VAE, TextConfig, UNetConfig,
                            VAEConfig)
from ..model.model import Model
from ..model.tokenizer import END, START, Tokenizer, byte_symbols
from ..model.unet import UNet
from ..model.vae import VAE
from .save import save_model


def random_model(motion_version: int | None = 3, full_size: bool = False, seed: int = 0) -> Model:
    """A random model in memory; `motion_version` None leaves the motion modules out."""
    torch.manual_seed(seed)
    motion = None if motion_version is None else ANIMATEDIFF[motion_version]
    symbols = sorted(byte_symbols())
    tokens = [*symbols, *(symbol + "</w>" for symbol in symbols), START, END]
    tokenizer = Tokenizer({token: i for i, token in enumerate(tokens)}, merges=[])
    if full_size:
        text, vae, unet = SD15_TEXT, SD15_VAE, replace(SD15_UNET, motion=motion)
    else:
        text = TextConfig(len(tokens), width=32, layers=2, heads=4, inner_width=64, length=77)
        vae = VAEConfig(channels=(16, 16, 32, 32), resnets=1, latent_channels=4, groups=8,
                        scale=0.18215)
        unet = UNetConfig(channels=(32, 32, 64, 64), latent_channels=4, text_width=32, heads=4,
                          groups=8, motion=motion and replace(motion, heads=4))
    return Model("random", tokenizer, TextEncoder(text).eval(), VAE(vae).eval(), UNet(unet).eval(),
                 torch.device("cpu"), torch.float32)


def main() -> None:
    parser = command_parser(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--motion-version", type=int, choices=[1, 2, 3], default=3)
    parser.add_argument("--full-size", action="store_true", help="Stable Diffusion 1.5's widths")
    args = parser.parse_args()
    if any((args.folder / "unet").glob("*")):       # a full disk leaves it empty
        raise UserError(f"{args.folder}: holds a model already; give another folder, or remove it")
    model = random_model(args.motion_version, args.full_size)
    save_model(model, args.folder, torch.float16 if args.full_size else torch.float32)
    print(f"written: {args.folder} (random weights: it draws noise)")


if __name__ == "__main__":
    run_command(main)
