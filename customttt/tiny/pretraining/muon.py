"""Muon (Jordan et al. 2024), for matrices: the momentum, made orthogonal, is the step.

As `torch.optim.Muon` with `adjust_lr_fn="match_rms_adamw"` (Liu et al. 2025), which takes one
matrix at a time: the tiny model has hundreds, of ten shapes, and here those of a shape go together.
"""

import torch
from torch import Tensor

MOMENTUM = 0.95
A, B, C = 3.4445, -4.7750, 2.0315       # of the quintic a x + b x^3 + c x^5 of singular values


class Muon(torch.optim.Optimizer):
    def __init__(self, matrices: list[Tensor], lr: float, weight_decay: float):
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            alike = {}
            for p in group["params"]:
                alike.setdefault(p.shape, []).append(p)
            for (rows, columns), matrices in alike.items():
                for p in matrices:
                    self.state[p].setdefault("momentum", torch.zeros_like(p))
                grads = [p.grad for p in matrices]
                momenta = [self.state[p]["momentum"] for p in matrices]
                torch._foreach_lerp_(momenta, grads, 1 - MOMENTUM)
                steps = torch._foreach_lerp(grads, momenta, MOMENTUM)       # Nesterov's
                step = orthogonal(torch.stack(steps)) * 0.2 * max(rows, columns) ** 0.5
                torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(matrices, list(step), alpha=-group["lr"])


def orthogonal(x: Tensor) -> Tensor:
    """(n rows columns): about the nearest matrix with orthonormal rows or columns, by five steps of
    Newton and Schulz's iteration; its singular values come out within 0.7 and 1.2."""
    if x.shape[1] > x.shape[2]:
        return orthogonal(x.mT).mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = A * x + (B * gram + C * gram @ gram) @ x
    return x
