"""What the UNet's layers are built of: resnet, spatial transformer, attention, resampling.

Axes: b batch, f frames, c channels, h w rows and columns, n tokens, d width.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .frozen import Conv2d, convolve, direct_or_recomputed, is_large

SHORT = 32          # tokens at most, and
MANY = 2 ** 21      # bytes of queries: from there on `attend` is quicker as plain products
PART = 4096         # tokens that a feed-forward takes at once where there are many, for memory
MKL = torch.backends.mkl.is_available()     # PyTorch multiplies by it then, except in 16 bits
ROWS, WIDTH = 1024, 256                     # of a product: from there on a convolution is quicker


class Linear(nn.Linear):
    """y = W x + b; a large one is a 1x1 convolution on a CPU.

    There PyTorch multiplies by MKL and convolves by oneDNN, which was the quicker one where it was
    measured (docs/performance.md). In 16 bits it does both by oneDNN.
    """

    def forward(self, x: Tensor) -> Tensor:
        rows = x.numel() // x.shape[-1]
        large = rows >= ROWS and min(self.weight.shape) >= WIDTH
        by_mkl = MKL and x.device.type == "cpu" and self.weight.dtype.itemsize > 2
        if not (large and by_mkl):
            return super().forward(x)
        pixels = x.reshape(1, rows, 1, -1).permute(0, 3, 1, 2)      # channels-last: no copy
        y = convolve(pixels, self.weight[:, :, None, None], self.bias)
        return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)


class FrameGroupNorm(nn.GroupNorm):
    """GroupNorm per frame, or `across_frames`: the frames of a clip share their statistics.

    AnimateDiff v1 normalised the resnets across the frames of a clip, v2 and v3 (and diffusers,
    for every version) per frame.
    """

    def __init__(self, groups: int, channels: int, eps: float, across_frames: bool):
        super().__init__(groups, channels, eps)
        self.across_frames = across_frames

    def forward(self, x: Tensor, clips: int) -> Tensor:
        """((b f) c h w), b = `clips` -> the same shape."""
        if not self.across_frames:
            return super().forward(x)
        joined = rearrange(x, "(b f) c h w -> b c f h w", b=clips)
        return rearrange(super().forward(joined), "b c f h w -> (b f) c h w")


def norm_silu(norm: FrameGroupNorm, x: Tensor, clips: int) -> Tensor:
    """((b f) c h w), b = `clips` -> the same shape: silu(norm(x))."""
    run = direct_or_recomputed(x, norm.weight)
    return run(lambda x: F.silu(norm(x, clips)), x)


class ResNet(nn.Module):
    """Norm, SiLU, convolution, twice; the time embedding is added in between."""

    def __init__(self, inputs: int, outputs: int, groups: int, eps: float,
                 time_width: int | None = None, across_frames: bool = False):
        super().__init__()
        self.norm1 = FrameGroupNorm(groups, inputs, eps, across_frames)
        self.conv1 = Conv2d(inputs, outputs, 3, padding=1)
        self.time_emb_proj = None if time_width is None else nn.Linear(time_width, outputs)
        self.norm2 = FrameGroupNorm(groups, outputs, eps, across_frames)
        self.conv2 = Conv2d(outputs, outputs, 3, padding=1)
        self.conv_shortcut = Conv2d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """((b f) c h w), (b d) -> ((b f) c h w); the VAE's resnets have no time."""
        clips = len(x if time is None else time)
        y = self.conv1(norm_silu(self.norm1, x, clips))
        if time is not None:
            shift = self.time_emb_proj(F.silu(time))                         # (b c)
            y = y + shift.repeat_interleave(len(y) // len(shift), dim=0)[:, :, None, None]
        y = self.conv2(norm_silu(self.norm2, y, clips))
        return y + (x if self.conv_shortcut is None else self.conv_shortcut(x))


def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    """softmax(q k^T / sqrt(d)) v: (b heads n d), (b heads m d) twice -> (b heads n d)."""
    # PyTorch's kernel for a CPU is made for long sequences; along 16 frames at many pixels plain
    # products are quicker, in bfloat16 above all (docs/performance.md).
    if q.device.type == "cpu" and q.shape[2] <= SHORT and q.nbytes >= MANY and not causal:
        return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(dim=-1) @ v
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal)


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017): of x to itself, or to a context."""

    def __init__(self, width: int, heads: int, context_width: int | None = None,
                 qkv_bias: bool = False):
        super().__init__()
        self.heads = heads
        context_width = width if context_width is None else context_width
        self.to_q = Linear(width, width, bias=qkv_bias)
        self.to_k = Linear(context_width, width, bias=qkv_bias)
        self.to_v = Linear(context_width, width, bias=qkv_bias)
        self.to_out = Linear(width, width)

    def forward(self, x: Tensor, context: Tensor | None = None, causal: bool = False) -> Tensor:
        """(b n d), (b m d') -> (b n d)."""
        context = x if context is None else context
        q, k, v = (rearrange(y, "b n (heads d) -> b heads n d", heads=self.heads)
                   for y in (self.to_q(x), self.to_k(context), self.to_v(context)))
        y = attend(q, k, v, causal)
        return self.to_out(rearrange(y, "b heads n d -> b n (heads d)"))


class FeedForward(nn.Module):
    """GEGLU (Shazeer 2020): value * gelu(gate), inner width 4 d; the gate is the second half."""

    def __init__(self, width: int):
        super().__init__()
        self.value_gate = Linear(width, 8 * width)
        self.out = Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(b n d) -> (b n d). A large x goes in parts, for memory (frozen.py)."""
        if not is_large(x):
            return self.out(self.geglu(x))
        parts = x.flatten(end_dim=-2).split(PART)
        run = direct_or_recomputed(x, self.value_gate.weight)
        return torch.cat([self.out(run(self.geglu, part)) for part in parts]).view_as(x)

    def geglu(self, x: Tensor) -> Tensor:
        """(... d) -> (... 4d)."""
        value, gate = self.value_gate(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class SpatialBlock(nn.Module):
    """Attention among the pixels of a frame, attention to the text, feed-forward; pre-norm."""

    def __init__(self, width: int, heads: int, text_width: int):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.attn1 = Attention(width, heads)
        self.attn2 = Attention(width, heads, context_width=text_width)
        self.ff = FeedForward(width)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        """((b f) (h w) c), (b n d) -> ((b f) (h w) c)."""
        x = x + self.attn1(self.norm1(x))
        # All frames of a clip read one text, so their pixels can be the queries of one attention.
        queries = rearrange(self.norm2(x), "(b f) n c -> b (f n) c", b=len(text))
        x = x + rearrange(self.attn2(queries, text), "b (f n) c -> (b f) n c", n=x.shape[1])
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Where the spatial LoRA lives: one SpatialBlock between 1x1 convolutions, residual.

    Its GroupNorm is per frame in every version of AnimateDiff.
    """

    def __init__(self, channels: int, heads: int, text_width: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = Conv2d(channels, channels, 1)
        self.block = SpatialBlock(channels, heads, text_width)
        self.proj_out = Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        """((b f) c h w), (b n d) -> ((b f) c h w)."""
        y = rearrange(self.proj_in(self.norm(x)), "bf c h w -> bf (h w) c")
        y = self.block(y, text)
        return x + self.proj_out(rearrange(y, "bf (h w) c -> bf c h w", h=x.shape[2]))


class Downsample(nn.Module):
    """((b f) c h w) -> ((b f) c h/2 w/2)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    """((b f) c h w) -> ((b f) c 2h 2w): nearest neighbour, then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
