"""The losses of the three stages: pure functions, with noise, timesteps and anchor frame given.

Legend: z clean latents (b 4 f h w), eps noise of the same shape, t timesteps (b,), c text (b n d),
eps_hat the noise that the UNet predicts, k the anchor frame.
"""

import torch.nn.functional as F
from torch import Tensor

from .diffusion import add_noise
from .model.unet import UNet


def spatial_loss(unet: UNet, z: Tensor, c: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """Stage (a), motion modules out: E || UNet(z_t, t, c) - eps ||^2."""
    return noise_loss(unet(add_noise(z, eps, t), t, c, motion=False), eps)


def temporal_loss(unet: UNet, z: Tensor, c: Tensor, eps: Tensor, t: Tensor,
                  k: int | None) -> Tensor:
    """Stage (b): E || UNet(z_t, t, c) - eps ||^2 + E || phi(UNet(z_t, t, c)) - phi(eps) ||^2.

    k None leaves the second term out, the appearance-debiased one.
    """
    eps_hat = unet(add_noise(z, eps, t), t, c)
    loss = noise_loss(eps_hat, eps)
    return loss if k is None else loss + debiased_noise_loss(eps_hat, eps, k)


def preservation_loss(unet: UNet, z_f: Tensor, c: Tensor, eps: Tensor, t: Tensor,
                      t_f: int = -1) -> Tensor:
    """Stage (c): E || UNet(z_{f+1}, t, c) - eps ||^2, where z_{f+1} is z_f with eps added.

    z_f: a teacher's reference latents, which stand at timestep t_f (-1: clean). The student is on,
    under the target prompt c. Of the spatial teacher's z_s this is the appearance preservation
    loss, of the temporal teacher's z_t the temporal preservation loss.
    """
    return noise_loss(unet(add_noise(z_f, eps, t, t_f), t, c), eps)


def noise_loss(eps_hat: Tensor, eps: Tensor) -> Tensor:
    """E ||eps_hat - eps||^2 (Ho et al. 2020, equation 14), in fp32."""
    return F.mse_loss(eps_hat.float(), eps.float())


def debias(eps: Tensor, k: int, beta: float = 1.0) -> Tensor:
    """phi(eps) = sqrt(beta^2 + 1) eps - beta eps_k: what sets a clip apart from its frame k.

    MotionDirector (Zhao et al. 2023), equation 6. (b 4 f h w) -> the same shape.
    """
    return (beta ** 2 + 1) ** 0.5 * eps - beta * eps[:, :, k:k + 1]


def debiased_noise_loss(eps_hat: Tensor, eps: Tensor, k: int) -> Tensor:
    """The appearance-debiased temporal loss (Zhao et al. 2023, equation 7): noise_loss of phi."""
    return noise_loss(debias(eps_hat.float(), k), debias(eps.float(), k))
