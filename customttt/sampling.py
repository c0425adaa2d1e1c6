"""Sampling: DDIM with classifier-free guidance, latents to frames."""

from collections.abc import Iterator

import torch
from einops import rearrange
from torch import Tensor

from .diffusion import ddim_step, ddim_timesteps
from .media.clips import as_frames
from .model.model import Model
from .model.unet import UNet


@torch.no_grad()
def guided_noise(unet: UNet, x_t: Tensor, t: int, text: Tensor, empty: Tensor, guidance: float,
                 motion: bool) -> Tensor:
    """Classifier-free guidance (Ho & Salimans 2022): eps(empty) + g (eps(text) - eps(empty)).

    Both halves go through the UNet as one batch. x_t (b 4 f h w), text and empty (b n d).
    """
    if guidance == 1:
        return unet(x_t, torch.full((len(x_t),), t, device=x_t.device), text, motion)
    eps_empty, eps_text = unet(torch.cat([x_t, x_t]),
                               torch.full((2 * len(x_t),), t, device=x_t.device),
                               torch.cat([empty, text]), motion).chunk(2)
    return eps_empty + guidance * (eps_text - eps_empty)


def ddim(unet: UNet, x_t: Tensor, text: Tensor, empty: Tensor, timesteps: list[int],
         guidance: float, motion: bool = True, t_end: int = -1) -> Iterator[Tensor]:
    """From noise x_t (b 4 f h w), yield the latents after each of the timesteps.

    The last step ends at `t_end`; -1 is clean. The latents stay in fp32 whatever the UNet's dtype.
    """
    dtype = next(unet.parameters()).dtype
    for t, t_prev in zip(timesteps, [*timesteps[1:], t_end]):
        eps = guided_noise(unet, x_t.to(dtype), t, text, empty, guidance, motion)
        x_t = ddim_step(eps.float(), t, t_prev, x_t)
        yield x_t


def sample_latents(model: Model, prompt: str, steps: int = 25, guidance: float = 9.0,
                   frames: int = 16, size: int = 256, seed: int = 0, negative_prompt: str = "",
                   latents: Tensor | None = None, motion: bool = True) -> Iterator[Tensor]:
    """A generator that yields every x_t, `steps` of them, the last one clean: (1 4 f h w), fp32.

    `size`: pixels along each side. `latents`: the noise to start from, in place of the seed's.
    The noise is drawn on the CPU, so that a seed means the same on every device.
    """
    if latents is None:
        latents = initial_noise(model, frames, size, seed)
    text, empty = model.encode_text([prompt, negative_prompt]).chunk(2)
    copies = (len(latents), 1, 1)
    yield from ddim(model.unet, latents.to(model.device, torch.float32), text.repeat(copies),
                    empty.repeat(copies), ddim_timesteps(steps), guidance, motion)


def initial_noise(model: Model, frames: int, size: int, seed: int) -> Tensor:
    """(1 4 f h w) of standard normal noise. Raises ValueError for a size that does not fit."""
    multiple = 8 * model.vae.factor
    if size % multiple or size <= 0 or frames <= 0:
        raise ValueError(f"size {size}, frames {frames}: the size must be a multiple of {multiple} "
                         f"and both must be positive")
    side = size // model.vae.factor
    return torch.randn((1, model.unet.config.latent_channels, frames, side, side),
                       generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def decode_frames(model: Model, latents: Tensor) -> Tensor:
    """Latents (1 4 f h w) -> uint8 (f H W 3), one frame at a time, so that memory stays bounded."""
    latents = rearrange(latents, "1 c f h w -> f 1 c h w").to(model.device, model.dtype)
    return torch.cat([as_frames(model.vae.decode(z)) for z in latents])


def sample_video(model: Model, prompt: str, **arguments) -> Tensor:
    """The arguments of `sample_latents` -> the sampled clip, uint8 (f H W 3)."""
    *_, z = sample_latents(model, prompt, **arguments)
    return decode_frames(model, z)
