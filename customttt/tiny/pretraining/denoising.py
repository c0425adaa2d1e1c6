"""What both halves of the tiny UNet's pretraining share: `images.py` and `videos.py`.

Axes: n images or clips, f frames, c channels, h w latent rows and columns.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Generator, Tensor

from ...diffusion import add_noise, alpha_bar
from ...losses import noise_loss
from ...model.blocks import Attention
from ...model.config import UNetConfig
from ...model.unet import UNet
from ..world import clips as world
from .data import describe
from .parts import load_text_encoder

UNET = UNetConfig(channels=(32, 64, 96, 96), latent_channels=4, text_width=96, heads=2, groups=8,
                  motion=None)      # 32 groups as in SD 1.5 would be instance norm at width 32


def attend_in_fp32(unet: UNet) -> None:
    """A CPU's bfloat16 kernel of attention is slow on the way back."""
    for attention in unet.modules():
        if isinstance(attention, Attention):
            for linear in (attention.to_q, attention.to_k, attention.to_v):
                linear.register_forward_hook(lambda m, inputs, y: y.float())
            attention.to_out.register_forward_pre_hook(
                lambda m, inputs: inputs[0].to(m.weight.dtype))


class Captions:
    """Captions of clips as the frozen text encoder's embeddings, each computed once."""

    def __init__(self, folder: Path):
        self.text_encoder, self.tokenizer = load_text_encoder(folder)
        self.known = {}

    def draw(self, clips: list[world.Clip], generator: Generator, motion: float) -> list[str]:
        """One in ten is empty, for classifier-free guidance; `motion`: how often a verb is said."""
        texts = [describe(clip, generator, motion)[0] for clip in clips]
        return [text * (torch.rand((), generator=generator).item() > 0.1) for text in texts]

    @torch.no_grad()
    def embed(self, captions: list[str]) -> Tensor:
        """(n 77 d)"""
        for text in set(captions) - self.known.keys():
            self.known[text] = self.text_encoder(self.tokenizer([text]))[0]
        return torch.stack([self.known[text] for text in captions])


def denoising_loss(predict: Callable, z: Tensor, text: Tensor, t: Tensor, generator: Generator,
                   power: float = 0.5) -> Tensor:
    """noise_loss, weighted so that all timesteps count about the same: unweighted, those with
    little noise, where only texture is left to decide, make up most of it (Choi et al. 2022).

    The weight is 1 / SNR^power, signal-to-noise ratio; at power 1, the error is that of z. It is
    limited to 256^power. z (n 4 f h w), t (n,); `predict` maps x_t, t, text to eps_hat.
    """
    eps = torch.randn(z.shape, generator=generator)
    eps_hat = predict(add_noise(z, eps, t), t, text)
    a = alpha_bar(t)
    weight = ((1 - a) / a).clamp(max=256) ** power
    errors = torch.stack([noise_loss(*pair) for pair in zip(eps_hat, eps)])
    return (weight * errors).mean()
