"""Lion, the optimizer of the three stages (Chen et al. 2023, algorithm 2)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def lion_update(theta: Tensor, g: Tensor, m: Tensor, lr: float, beta_1: float, beta_2: float,
                weight_decay: float) -> None:
    """One step in place. theta: parameter, g: its gradient, m: the moving average of gradients.

      u     = beta_1 m + (1 - beta_1) g
      theta = theta - lr (sign(u) + weight_decay theta)
      m     = beta_2 m + (1 - beta_2) g
    """
    u = m * beta_1 + g * (1 - beta_1)
    theta.mul_(1 - lr * weight_decay).add_(u.sign(), alpha=-lr)
    m.mul_(beta_2).add_(g, alpha=1 - beta_2)


class Lion(torch.optim.Optimizer):
    """Steps of the sign of the averaged gradient: a weight whose u is not 0 moves by `lr`,
    plus the decay. Raises ValueError for a rate, beta or decay out of range."""

    def __init__(self, params, lr: float = 1e-5, betas: tuple[float, float] = (0.9, 0.99),
                 weight_decay: float = 0.1):
        if not (0 <= lr < math.inf and 0 <= weight_decay < math.inf and len(betas) == 2
                and all(0 <= beta < 1 for beta in betas)):
            raise ValueError(f"Lion: lr {lr}, betas {betas} or weight decay {weight_decay} is out "
                             f"of range")
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """`closure`, as PyTorch's optimizers take it, computes the loss and its gradients first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for theta in group["params"]:
                if theta.grad is None:
                    continue
                state = self.state[theta]
                if not state:
                    state["m"] = torch.zeros_like(theta)
                lion_update(theta, theta.grad, state["m"], group["lr"], *group["betas"],
                            group["weight_decay"])
        return loss
