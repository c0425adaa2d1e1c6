"""The tiny CLIP's choice among captions. Axes: n images, H W pixels, m captions."""

import torch
from einops import rearrange
from torch import Tensor

from ..clip import CLIP
from ..tokenizer import Tokenizer


def as_pixels(frames: Tensor) -> Tensor:
    """(n H W 3) uint8 -> (n 3 H W) in [-1, 1]."""
    return rearrange(frames, "n h w c -> n c h w").float() / 127.5 - 1


@torch.no_grad()
def similarities(clip: CLIP, tokenizer: Tokenizer, frames: Tensor, captions: list[str]) -> Tensor:
    """Frames (n H W 3) uint8 and m captions -> cosines (n m)."""
    return clip.embed_images(as_pixels(frames)) @ clip.embed_text(tokenizer(captions), tokenizer.end).T


def choose(clip: CLIP, tokenizer: Tokenizer, frames: Tensor, captions: list[str]) -> int:
    """The index of the caption that fits the frames best on average."""
    return similarities(clip, tokenizer, frames, captions).mean(0).argmax().item()
