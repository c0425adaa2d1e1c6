"""Memory in training. All but what is trained is frozen, so most layers only pass a gradient on:
inputs that this does not need are not kept, and cheap activations are computed again.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

LARGE = 2 ** 23     # bytes of activations: below, keeping is cheap, and time counts for more


def is_large(x: Tensor) -> bool:
    return x.nbytes >= LARGE


class Conv2d(nn.Conv2d):
    """A convolution; while its weight is frozen, no input of it is kept for the backward pass."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1, padding: int = 0):
        super().__init__(inputs, outputs, size, stride, padding)     # no dilation, no groups

    def forward(self, x: Tensor) -> Tensor:
        return convolve(x, self.weight, self.bias, self.stride, self.padding)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int] = (1, 1),
             padding: tuple[int, int] = (0, 0)) -> Tensor:
    """F.conv2d; while the weight is frozen, x is not kept for the backward pass."""
    trained = weight.requires_grad or bias is not None and bias.requires_grad
    if trained or not (x.requires_grad and torch.is_grad_enabled()):
        return F.conv2d(x, weight, bias, stride, padding)
    return _FrozenConvolution.apply(x, weight, bias, stride, padding)


class _FrozenConvolution(torch.autograd.Function):
    """The gradient of a convolution's input needs its weight and the gradient of its output."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int],
                padding: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.dtype, ctx.stride, ctx.padding = x.dtype, stride, padding
        sizes = zip(x.shape[2:], weight.shape[2:], stride, padding)
        ctx.output_padding = [      # rows and columns at the end that no window reaches
            (n + 2 * p - k) % s for n, k, s, p in sizes]
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, = ctx.saved_tensors
        gradient = F.conv_transpose2d(gradient, weight.to(gradient.dtype), None, ctx.stride,
                                      ctx.padding, ctx.output_padding)
        return gradient.to(ctx.dtype), None, None, None, None


def recomputed(function: Callable[..., Tensor], *inputs) -> Tensor:
    """function(*inputs): only the inputs are kept, and the rest is recomputed in the backward
    pass (Chen et al. 2016)."""
    return checkpoint(function, *inputs, use_reentrant=False)


def directly(function: Callable[..., Tensor], *inputs) -> Tensor:
    return function(*inputs)


def direct_or_recomputed(x: Tensor, weight: Tensor) -> Callable[..., Tensor]:
    """How a cheap function of x is run: `recomputed` where what it would keep is large, and its
    weight is frozen (in pretraining, at small widths, time counts for more)."""
    passes_on = x.requires_grad and torch.is_grad_enabled() and not weight.requires_grad
    return recomputed if passes_on and is_large(x) else directly
