"""Seeded draws of one number or one thing."""

import torch


def uniform(generator: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * torch.rand((), generator=generator).item()


def choice(generator: torch.Generator, options):
    options = tuple(options)
    return options[int(torch.randint(len(options), (), generator=generator))]
