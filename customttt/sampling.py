"""Sampling a model: prompts and a seed to latents, latents to frames."""

from collections.abc import Iterator, Sequence

import torch
from einops import rearrange
from torch import Tensor

from .diffusion import ddim, ddim_timesteps
from .errors import UserError
from .media.clips import as_frames
from .model.model import Model


def sample_latents(model: Model, prompt: str | Sequence[str], steps: int = 25,
                   guidance: float = 9.0, frames: int = 16, size: int = 256, seed: int = 0,
                   negative_prompt: str = "", latents: Tensor | None = None,
                   motion: bool = True) -> Iterator[Tensor]:
    """A generator that yields every x_t, `steps` of them, the last one clean: (b 4 f h w), fp32.

    `prompt`: one, or nine, one a layer (the probe of the supplement's section 3). `size`: pixels
    along each side. `latents`: the noise (b 4 f h w) to start from; frames, size and seed then
    count for nothing, and b is 1 without it. The UNet is to be in eval mode, as it was loaded:
    dropout would draw besides. Raises ValueError as the first x_t is asked for.
    """
    if latents is None:
        latents = initial_noise(model, frames, size, seed)
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    *texts, empty = (each.repeat(len(latents), 1, 1)
                     for each in model.encode_text([*prompts, negative_prompt]).split(1))
    yield from ddim(model.unet, latents.to(model.device, torch.float32),
                    texts[0] if isinstance(prompt, str) else texts, empty, ddim_timesteps(steps),
                    guidance, motion)


def initial_noise(model: Model, frames: int, size: int, seed: int) -> Tensor:
    """(1 4 f h w) of standard normal noise, drawn on the CPU: a seed means the same on every device
    and, as in other tools, is PyTorch's own. Raises ValueError for a size that does not fit."""
    generator = torch.Generator().manual_seed(int(seed))
    return torch.randn(latent_shape(model, frames, size), generator=generator, dtype=torch.float32)


def latent_shape(model: Model, frames: int, size: int) -> tuple[int, int, int, int, int]:
    """(1 4 f h w) of a clip of `size` by `size` pixels. Raises ValueError where it cannot be."""
    multiple = 8 * model.vae.factor     # the UNet halves latents three times
    if size % multiple or size <= 0:
        raise ValueError(f"the size must be a positive multiple of {multiple}, not {size}")
    if frames <= 0:
        raise ValueError(f"there must be at least one frame, not {frames}")
    side = size // model.vae.factor
    return 1, model.unet.config.latent_channels, frames, side, side


@torch.no_grad()
def decode_frames(model: Model, latents: Tensor) -> Tensor:
    """Latents (1 4 f h w) -> uint8 (f H W 3), one frame at a time, so that memory stays bounded."""
    return torch.cat([as_frames(pixels) for pixels in decode_each(model, latents)])


def decode_each(model: Model, latents: Tensor) -> Iterator[Tensor]:
    """Latents (1 4 f h w) -> f times (1 3 H W)."""
    latents = rearrange(latents, "1 c f h w -> f 1 c h w").to(model.device, model.dtype)
    return (model.vae.decode(z) for z in latents)


def sample_video(model: Model, prompt: str | Sequence[str], *arguments, **named) -> Tensor:
    """The arguments of `sample_latents`, `latents` of one clip -> the clip, uint8 (f H W 3). Raises
    ValueError as it does, and UserError for a clip that is not finite."""
    *_, z = sample_latents(model, prompt, *arguments, **named)
    return finite_frames(model, z)


@torch.no_grad()
def finite_frames(model: Model, z: Tensor) -> Tensor:
    """As `decode_frames`; raises UserError for what is not finite: it would be a black clip."""
    if not z.isfinite().all():
        raise UserError("--precision: the video is not finite; try fp32, or a smaller scale of the "
                        "LoRAs")
    frames = []
    for pixels in decode_each(model, z):
        if not pixels.isfinite().all():
            raise UserError("--precision: what the VAE decodes is not finite; try fp32, or another "
                            "--vae")
        frames.append(as_frames(pixels))
    return torch.cat(frames)
