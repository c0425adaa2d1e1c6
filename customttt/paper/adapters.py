"""What DreamVideo (Wei et al. 2023) trains, as VGen's code has it: a learned word, adapters.

  adapter(x, a) = W_up gelu(W_down (x + W_a a) + b_down) + b_up,   x of the residual stream

Axes: b batch, f frames, n tokens, h w rows and columns, d width.
"""

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..model.blocks import SpatialBlock
from ..model.motion import TemporalBlock
from ..model.unet import UNet


class LearnedWord(nn.Module):
    """An embedding of tokens in which one token's vector is learned (Gal et al. 2022)."""

    def __init__(self, base: nn.Embedding, token: int, vector: Tensor):
        super().__init__()
        self.base, self.token = base, token
        self.vector = nn.Parameter(vector.detach().float().clone())

    def forward(self, ids: Tensor) -> Tensor:
        y = self.base(ids)
        return torch.where((ids == self.token)[..., None], self.vector.to(y.dtype), y)


class Adapter(nn.Module):
    """A bottleneck of half the width, that starts as nothing. `condition`: a, (b d_a) or None."""

    def __init__(self, width: int, condition_width: int | None = None):
        super().__init__()
        self.down, self.up = nn.Linear(width, width // 2), nn.Linear(width // 2, width)
        self.condition_linear = None if condition_width is None else nn.Linear(condition_width,
                                                                               width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        self.condition: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(b' n d), b' a multiple of b -> what is added to x."""
        y = x.to(self.down.weight.dtype)
        if self.condition is not None:
            a = self.condition_linear(self.condition)
            y = y + a.repeat_interleave(len(x) // len(a), dim=0)[:, None]
        return self.up(F.gelu(self.down(y))).to(x.dtype)


class AdaptedSpatial(nn.Module):
    """A SpatialBlock with an adapter beside its cross-attention."""

    def __init__(self, base: SpatialBlock):
        super().__init__()
        self.base, self.adapter = base, Adapter(base.norm1.normalized_shape[0])

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        """As SpatialBlock's: ((b f) (h w) c), (b n d) -> ((b f) (h w) c)."""
        base = self.base
        x = x + base.attn1(base.norm1(x))
        queries = rearrange(base.norm2(x), "(b f) n c -> b (f n) c", b=len(text))
        attended = rearrange(base.attn2(queries, text), "b (f n) c -> (b f) n c", n=x.shape[1])
        x = x + attended + self.adapter(x)
        return x + base.ff(base.norm3(x))


class AdaptedTemporal(nn.Module):
    """A TemporalBlock with an adapter beside each of its parts."""

    def __init__(self, base: TemporalBlock, condition_width: int):
        super().__init__()
        self.base = base
        self.adapters = nn.ModuleList(Adapter(base.norm1.normalized_shape[0], condition_width)
                                      for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """As TemporalBlock's: ((b h w) f c) -> the same shape."""
        base, (first, second, third) = self.base, self.adapters
        position = base.positions(x)
        x = x + base.attn1(base.norm1(x) + position) + first(x)
        x = x + base.attn2(base.norm2(x) + position) + second(x)
        return x + base.ff(base.norm3(x)) + third(x)


def put_identity(unet: UNet) -> None:
    for layer in unet.layers:
        for transformer in layer.spatial_transformers:
            transformer.block = AdaptedSpatial(transformer.block)
    _to_device(unet)


def put_motion(unet: UNet, condition_width: int) -> None:
    for layer in unet.layers:
        for module in layer.motion_modules:
            module.block = AdaptedTemporal(module.block, condition_width)
    _to_device(unet)


def _to_device(unet: UNet) -> None:
    for adapter in adapters(unet):
        adapter.to(unet.conv_in.weight.device)      # in fp32, whatever the UNet is in


def adapters(unet: UNet) -> list[Adapter]:
    return [module for module in unet.modules() if isinstance(module, Adapter)]


def adapter_parameters(unet: UNet, kind: str) -> dict[str, nn.Parameter]:
    """Those of the identity adapters or of the motion adapters, by name."""
    part = {"identity": ".adapter.", "motion": ".adapters."}[kind]
    return {name: p for name, p in unet.named_parameters() if part in name}


@contextlib.contextmanager
def appearance(unet: UNet, a: Tensor) -> Iterator[None]:
    """Inside the `with`, a (b d_a) is the condition of the motion adapters, one a clip of the
    batch; with guidance the batch is twice as long, and zeros come first."""
    conditioned = [each for each in adapters(unet) if each.condition_linear is not None]
    for each in conditioned:
        each.condition = a
    try:
        yield
    finally:
        for each in conditioned:
            each.condition = None
