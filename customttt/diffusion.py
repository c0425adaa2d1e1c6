"""The noise schedule, DDIM and classifier-free guidance.

Legend: z or x_0 a clean latent, x_t the same at timestep t, eps the noise, eps_hat the noise that
the UNet predicts, alpha_bar_t the share of signal variance left at t. Axes: b clips, c channels,
f frames, h w latent rows and columns, n tokens, d width.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

TIMESTEPS = 1000    # of the noise schedule; other "steps" are of training or of DDIM
# AnimateDiff's schedule: linear betas, where Stable Diffusion itself has them linear in the root.
BETAS = torch.linspace(0.00085, 0.012, TIMESTEPS, dtype=torch.float32)
ALPHA_BARS = torch.cumprod(1 - BETAS, dim=0)


def alpha_bar(t: Tensor | int) -> Tensor:
    """alpha_bar_t, fp32, on t's device; 1 for t < 0: after the last step no noise is left, as in
    AnimateDiff (Stable Diffusion itself stops at alpha_bar_0)."""
    t = torch.as_tensor(t)
    return torch.where(t < 0, 1.0, ALPHA_BARS.to(t.device)[t.clamp(min=0)])


def add_noise(z: Tensor, eps: Tensor, t: Tensor, t_from: int = -1) -> Tensor:
    """q(x_t | x_0) of Ho et al. (2020), equation 4: latents (b ...), noise, timesteps (b,) -> x_t.

      x_t = sqrt(a) z + sqrt(1 - a) eps,   a = alpha_bar_t / alpha_bar_{t_from}

    `t_from`: the timestep at which z stands already, not after t (else NaN); -1 is clean, where
    alpha_bar is 1.
    """
    a = (alpha_bar(t) / alpha_bar(t_from).to(t.device)).view(-1, *[1] * (z.ndim - 1))
    return a.sqrt() * z + (1 - a).sqrt() * eps


def ddim_timesteps(steps: int) -> list[int]:
    """`steps` timesteps, largest first: 25 -> 961, 921, ..., 1, as AnimateDiff's scheduler has them
    (diffusers' spacing "leading", offset 1). Of few steps the first is low: 801 of five, 501 of
    two; a single one is at 1, and leaves noise as it is. Raises ValueError for steps outside 1 to
    999."""
    if not 1 <= steps < TIMESTEPS:
        raise ValueError(f"steps: 1 to {TIMESTEPS - 1}; got {steps}")
    return [k * (TIMESTEPS // steps) + 1 for k in reversed(range(steps))]


def ddim_step(eps: Tensor, t: int, t_prev: int, x_t: Tensor) -> Tensor:
    """Song et al. (2021), equation 12 with sigma = 0: x_t -> x_{t_prev}; t_prev < 0 gives x_0.
    `eps`: as predicted, eps_hat.

      x_0    = (x_t - sqrt(1 - alpha_bar_t) eps) / sqrt(alpha_bar_t)
      x_prev = sqrt(alpha_bar_prev) x_0 + sqrt(1 - alpha_bar_prev) eps
    """
    a, a_prev = alpha_bar(t).item(), alpha_bar(t_prev).item()
    x_0 = (x_t - (1 - a) ** 0.5 * eps) / a ** 0.5
    return a_prev ** 0.5 * x_0 + (1 - a_prev) ** 0.5 * eps


def guided_noise(unet: Callable, x_t: Tensor, t: int, text: Tensor | Sequence[Tensor],
                 empty: Tensor, guidance: float, motion: bool) -> Tensor:
    """Classifier-free guidance (Ho & Salimans 2022), equation 6 with g = 1 + w, `guidance`:

      eps_hat = eps(empty) + g (eps(text) - eps(empty))

    Both halves go through the UNet as one batch. x_t (b 4 f h w); text (b n d) or nine such, one a
    layer; empty (b n d).
    """
    if guidance == 1:
        return unet(x_t, torch.full((len(x_t),), t, device=x_t.device), text, motion)
    both = (torch.cat([empty, text]) if isinstance(text, Tensor) else
            [torch.cat([empty, each]) for each in text])
    eps_empty, eps_text = unet(torch.cat([x_t, x_t]),
                               torch.full((2 * len(x_t),), t, device=x_t.device),
                               both, motion).chunk(2)
    return eps_empty + guidance * (eps_text - eps_empty)


@torch.no_grad()
def ddim(unet: Callable, x_t: Tensor, text: Tensor | Sequence[Tensor], empty: Tensor,
         timesteps: list[int], guidance: float, motion: bool = True,
         t_end: int = -1) -> Iterator[Tensor]:
    """From noise x_t (b 4 f h w), yield the latents after each of the timesteps, fp32.

    The last step ends at `t_end`; -1 is clean. The texts are as in `guided_noise`; their dtype is
    the UNet's.
    """
    for t, t_prev in zip(timesteps, [*timesteps[1:], t_end]):
        eps_hat = guided_noise(unet, x_t.to(empty.dtype), t, text, empty, guidance, motion)
        x_t = ddim_step(eps_hat.float(), t, t_prev, x_t)
        yield x_t
