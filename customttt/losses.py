"""The losses of the three stages: pure functions of latents, noise and timesteps.

Legend: z clean latents (b 4 f h w), eps noise of the same shape, t timesteps (b,), eps_hat the
noise that the model predicts.
"""

import torch.nn.functional as F
from torch import Tensor


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
