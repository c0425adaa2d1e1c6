"""The motion module of AnimateDiff (Guo et al. 2023): attention along time at every pixel.

Where the temporal LoRA lives. Axes: b batch, f frames, c channels, h w rows and columns.
"""

import math

import torch
from einops import rearrange
from torch import Tensor, nn

from .blocks import Attention, FeedForward, Linear
from .config import MotionConfig


def positional_encoding(frames: int, channels: int, device: torch.device | None = None) -> Tensor:
    """Sinusoids (f c), sine and cosine interleaved, base 10000 (Vaswani et al. 2017, section 3.5).

    The `pe` tables of public files hold exactly this, so they are dropped and recomputed.
    """
    position = torch.arange(frames, dtype=torch.float32, device=device)[:, None]
    k = torch.arange(0, channels, 2, dtype=torch.float32, device=device)
    angles = position * torch.exp(k * (-math.log(10000) / channels))    # AnimateDiff's to the bit
    return rearrange([angles.sin(), angles.cos()], "two f k -> f (k two)")


class FramePositions(nn.Module):
    """((b h w) f c) -> the sinusoids of frames 0, 1, ..., f - 1: (f c). A module, so that
    pretraining can hook it."""

    def forward(self, x: Tensor) -> Tensor:
        return positional_encoding(x.shape[1], x.shape[2], x.device).to(x.dtype)


class TemporalBlock(nn.Module):
    """Two self-attentions along time and a feed-forward, pre-norm.

    The frame's position is added inside each attention, after its LayerNorm: to q, k and v.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.positions = FramePositions()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.attn1 = Attention(width, heads)
        self.attn2 = Attention(width, heads)
        self.ff = FeedForward(width)

    def forward(self, x: Tensor) -> Tensor:
        """((b h w) f c) -> the same shape."""
        position = self.positions(x)
        x = x + self.attn1(self.norm1(x) + position)
        x = x + self.attn2(self.norm2(x) + position)
        return x + self.ff(self.norm3(x))


class MotionModule(nn.Module):
    """One TemporalBlock between linear projections, residual.

    GroupNorm is per frame, as in the original code in every version. diffusers' UNetMotionModel
    shares its statistics among the frames of a clip, so the more frames differ, the more its output
    differs: by 2% for noise, 13% for a fading clip (random weights; tests/test_parity.py).
    """

    def __init__(self, channels: int, config: MotionConfig, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = Linear(channels, channels)
        self.block = TemporalBlock(channels, config.heads)
        self.proj_out = Linear(channels, channels)

    def forward(self, x: Tensor, clips: int) -> Tensor:
        """((b f) c h w), b = `clips` -> the same shape."""
        y = rearrange(self.norm(x), "(b f) c h w -> (b h w) f c", b=clips)
        y = y.contiguous()      # else PyTorch's Linear copies its weight for every pixel
        y = self.proj_out(self.block(self.proj_in(y)))
        return x + rearrange(y, "(b h w) f c -> (b f) c h w", h=x.shape[2], w=x.shape[3])


def check_clip_length(motion: MotionConfig, frames: int) -> None:
    """Raise ValueError for more frames than the motion module has positions for."""
    if frames > motion.max_frames:
        raise ValueError(f"{frames} frames, but this motion module (version {motion.version}) has "
                         f"positions for at most {motion.max_frames}: ask for fewer frames")
