"""A small model folder with RANDOM weights, made in a second: it draws noise, not pictures.

  python -m customttt.random_model FOLDER [--motion-version 3]

It has Stable Diffusion 1.5's folder layout and the nine layers at small widths; tests use it.
"""

import argparse

import torch

from .clip import TextEncoder
from .config import MotionConfig, TextConfig, UNetConfig, VAEConfig
from .errors import run
from .model import Model
from .save import save_model
from .tokenizer import END, START, Tokenizer, byte_symbols
from .unet import UNet
from .vae import VAE


def random_model(motion_version: int | None = 3, seed: int = 0) -> Model:
    """A random model in memory; `motion_version` None leaves the motion modules out."""
    torch.manual_seed(seed)
    symbols = sorted(byte_symbols())
    tokens = [*symbols, *(symbol + "</w>" for symbol in symbols), START, END]
    tokenizer = Tokenizer({token: i for i, token in enumerate(tokens)}, merges=[])
    motion = None if motion_version is None else MotionConfig(
        motion_version, max_frames=24 if motion_version == 1 else 32, heads=4)
    return Model(
        "random", tokenizer,
        TextEncoder(TextConfig(len(tokens), width=32, layers=2, heads=4, inner_width=64, length=77)),
        VAE(VAEConfig(channels=(16, 16, 32, 32), resnets=1, latent_channels=4, groups=8,
                      scale=0.18215)),
        UNet(UNetConfig(channels=(32, 32, 64, 64), latent_channels=4, text_width=32, heads=4,
                        groups=8, motion=motion)),
        torch.device("cpu"), torch.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--motion-version", type=int, choices=[1, 2, 3], default=3)
    args = parser.parse_args()
    save_model(random_model(args.motion_version), args.folder, torch.float32)
    print(f"written: {args.folder} (random weights: it draws noise)")


if __name__ == "__main__":
    run(main)
