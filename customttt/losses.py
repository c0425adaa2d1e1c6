"""The losses of the three stages: pure functions, with noise, timesteps and anchor frame given.

Legend: z clean latents (b 4 f h w), x_t the same with noise eps up to the timesteps t (b,), c text
(b 77 d), eps_hat the noise that the UNet predicts, k the anchor frame. A UNet in fp16 or bf16 wants
torch.autocast around them.
"""

import torch.nn.functional as F
from torch import Tensor

from .diffusion import add_noise
from .model.unet import UNet


def spatial_loss(unet: UNet, z: Tensor, c: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """Stage (a), motion modules out: || UNet(x_t, t, c) - eps ||^2."""
    return noise_loss(unet(add_noise(z, eps, t), t, c, motion=False), eps)


def temporal_loss(unet: UNet, z: Tensor, c: Tensor, eps: Tensor, t: Tensor,
                  k: int | None) -> Tensor:
    """Stage (b): || eps_hat - eps ||^2 + || phi(eps_hat) - phi(eps) ||^2.

    The second term is the appearance-debiased one (MotionDirector, Zhao et al. 2023);
    k None leaves it out.
    """
    eps_hat = unet(add_noise(z, eps, t), t, c)
    loss = noise_loss(eps_hat, eps)
    return loss if k is None else loss + noise_loss(debias(eps_hat, k), debias(eps, k))


def preservation_loss(unet: UNet, z_ref: Tensor, c: Tensor, eps: Tensor, t: Tensor,
                      t_ref: int = -1) -> Tensor:
    """Stage (c): || UNet(x_t, t, c) - eps ||^2, where x_t is z_ref noised by eps.

    z_ref: a teacher's reference latents, which stand at timestep t_ref; -1 is clean. The student is
    on, c is the target prompt's text. Of z_s this is the appearance preservation loss, of z_t the
    temporal preservation loss. With t_ref >= 0 eps is the noise since t_ref alone.
    """
    return noise_loss(unet(add_noise(z_ref, eps, t, t_ref), t, c), eps)


def noise_loss(eps_hat: Tensor, eps: Tensor) -> Tensor:
    """|| eps_hat - eps ||^2, the mean of all elements, in fp32: one draw of the expectation in
    equation 14 of Ho et al. (2020)."""
    return F.mse_loss(eps_hat.float(), eps.float())


def debias(eps: Tensor, k: int, beta: float = 1.0) -> Tensor:
    """phi(eps) = sqrt(beta^2 + 1) eps - beta eps_k: what sets a clip apart from its frame k.

    MotionDirector (Zhao et al. 2023); beta is 1, as in AnimateDiff-MotionDirector. (b 4 f h w) ->
    the same shape, in fp32.
    """
    eps = eps.float()
    return (beta ** 2 + 1) ** 0.5 * eps - beta * eps[:, :, k:k + 1]
