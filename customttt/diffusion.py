"""The noise schedule and DDIM.

Legend: z or x_0 a clean latent, x_t the same at timestep t, eps the noise, alpha_bar_t the share of
signal variance left at t.
"""

import torch
from torch import Tensor

STEPS = 1000
# AnimateDiff's schedule: linear betas, where Stable Diffusion itself has them linear in the root.
BETAS = torch.linspace(0.00085, 0.012, STEPS, dtype=torch.float32)
ALPHA_BARS = torch.cumprod(1 - BETAS, dim=0)


def alpha_bar(t: Tensor | int) -> Tensor:
    """alpha_bar_t, fp32, on t's device; 1 for t < 0: past the last step, no noise is left."""
    t = torch.as_tensor(t)
    return torch.where(t < 0, 1.0, ALPHA_BARS.to(t.device)[t.clamp(min=0)])


def add_noise(z: Tensor, eps: Tensor, t: Tensor, t_from: int = -1) -> Tensor:
    """q(x_t | x_0) of Ho et al. (2020), equation 4: latents (b ...), noise, timesteps (b,) -> x_t.

    `t_from`: the timestep at which z stands already; -1 is clean.
    """
    a = (alpha_bar(t) / alpha_bar(t_from).to(t.device)).view(-1, *[1] * (z.ndim - 1))
    return a.sqrt() * z + (1 - a).sqrt() * eps


def ddim_timesteps(steps: int) -> list[int]:
    """`steps` timesteps, largest first: 25 -> 961, 921, ..., 1 (spacing "leading", offset 1)."""
    if not 1 <= steps < STEPS:
        raise ValueError(f"steps: 1 to {STEPS - 1}; got {steps}")
    return [k * (STEPS // steps) + 1 for k in reversed(range(steps))]


def ddim_step(eps: Tensor, t: int, t_prev: int, x_t: Tensor) -> Tensor:
    """Song et al. (2021), equation 12 with sigma = 0: x_t -> x_{t_prev}; t_prev < 0 gives x_0."""
    a, a_prev = alpha_bar(t).item(), alpha_bar(t_prev).item()
    x_0 = (x_t - (1 - a) ** 0.5 * eps) / a ** 0.5
    return a_prev ** 0.5 * x_0 + (1 - a_prev) ** 0.5 * eps
