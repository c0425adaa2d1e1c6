"""What both halves of the tiny UNet's pretraining share: `images.py` and `videos.py`.

Axes: n images or clips, f frames, c channels, h w latent rows and columns.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from ...diffusion import add_noise, alpha_bar
from ...model.blocks import Attention
from ...model.config import UNetConfig
from ...model.unet import UNet
from ..world import clips as world
from .data import Machine, describe
from .parts import load_text_encoder

UNET = UNetConfig(channels=(32, 64, 96, 96), latent_channels=4, text_width=96, heads=2, groups=8,
                  motion=None)      # 32 groups as in SD 1.5 would be instance norm at width 32


def attend_in_fp32(unet: UNet) -> None:
    """A CPU's bfloat16 kernel of attention is slow in the backward pass."""
    for attention in unet.modules():
        if isinstance(attention, Attention):
            for linear in (attention.to_q, attention.to_k, attention.to_v):
                linear.register_forward_hook(lambda m, inputs, y: y.float())
            attention.to_out.register_forward_pre_hook(
                lambda m, inputs: inputs[0].to(m.weight.dtype))


def asking_heads(unet: UNet, layers: Sequence[int], answers: int,
                 places: int = 1) -> tuple[dict[str, tuple], nn.ModuleDict]:
    """By layer: what it gave in the last forward, and a head that is asked for `answers` of its
    features, at so many places. Only training has them."""
    seen, heads = {}, nn.ModuleDict()
    for i in layers:
        unet.layers[i].register_forward_hook(lambda m, inputs, out, i=str(i): seen.update({i: out}))
        heads[str(i)] = nn.Linear(places * UNET.channels[min(i, 8 - i, 3)], answers)
    return seen, heads


class Captions:
    """Captions of clips, and the frozen text encoder's embeddings of them."""

    def __init__(self, folder: Path, machine: Machine):
        self.text_encoder, self.tokenizer = load_text_encoder(folder)
        self.text_encoder.to(machine.device)

    def draw(self, clips: list[world.Clip], generator: Generator, motion: float) -> list[str]:
        """One in ten is empty, for classifier-free guidance; `motion`: how often a verb is said."""
        texts = [describe(clip, generator, motion)[0] for clip in clips]
        return [text * (torch.rand((), generator=generator).item() > 0.1) for text in texts]

    @torch.no_grad()
    def embed(self, ids: Tensor) -> Tensor:
        """(n 77) -> (n 77 d)"""
        return self.text_encoder(ids)


def noised(z: Tensor, t: Tensor, generator: Generator,
           power: float = 0.5) -> tuple[Tensor, Tensor, Tensor]:
    """x_t, eps (n 4 f h w) and each one's weight (n,), with which all timesteps count about the
    same: unweighted, those with little noise, where only texture is left to decide, make up most of
    the loss (Choi et al. 2022).

    The weight is 1 / SNR^power, signal-to-noise ratio; at power 1, the error is that of z. It is
    limited to 256^power. z (n 4 f h w), t (n,).
    """
    eps = torch.randn(z.shape, generator=generator)
    a = alpha_bar(t)
    return add_noise(z, eps, t), eps, ((1 - a) / a).clamp(max=256) ** power


def weighted_loss(eps_hat: Tensor, eps: Tensor, weight: Tensor) -> Tensor:
    """The mean over the examples of their weighted mean squared errors."""
    return (weight * (eps_hat - eps).square().flatten(1).mean(1)).mean()
