"""The motions of the tiny world: paths, those that pretraining never sees, and how alike two are.

x and y are in pixels, y points down, sizes are log ratios, angles are in radians. Axes: f frames.
"""

from dataclasses import dataclass
from math import log, pi, tau

import torch
from torch import Tensor

from .chance import choice, uniform


@dataclass(frozen=True)
class Motion:
    word: str            # the caption's: "moving right"
    path: str            # a key of PATHS; in pretraining it is the word itself
    amount: float = 0.0  # pixels of travel, circle diameter or hop height; log ratio of sizes
    turns: float = 1.0   # rounds, hops or revolutions in the clip; its sign is the direction
    phase: float = 0.0   # where a round or hop starts, in rounds; how uneven a straight travel is
    drift: float = 0.0   # pixels of sideways drift


STANDING_STILL = Motion("standing still", "standing still")


def through(t: Tensor, *stops: float) -> Tensor:
    """Straight legs of equal duration from each value to the next, t (f,) in 0..1."""
    leg = (t * (len(stops) - 1)).clamp(max=len(stops) - 1.001)
    values, i = torch.tensor(stops, dtype=torch.float32), leg.long()
    return torch.lerp(values[i], values[i + 1], leg.frac())


def travel(t, m):
    return m.amount * (t - 0.5 + m.phase * torch.sin(tau * t) / tau)


def hops(t, m):
    return m.amount * (0.5 - torch.sin(pi * (m.turns * t + m.phase)).abs())


def orbit(t, m):
    return tau * (m.turns * t + m.phase)


# t (f,) in 0..1 and the motion give x and y from the path's centre, log size, and angle.
PATHS = {
    "moving left": lambda t, m: (-travel(t, m), m.drift * (t - 0.5), 0, 0),
    "moving right": lambda t, m: (travel(t, m), m.drift * (t - 0.5), 0, 0),
    "moving up": lambda t, m: (m.drift * (t - 0.5), -travel(t, m), 0, 0),
    "moving down": lambda t, m: (m.drift * (t - 0.5), travel(t, m), 0, 0),
    "circling": lambda t, m: (
        m.amount / 2 * orbit(t, m).cos(), m.amount / 2 * orbit(t, m).sin(), 0, 0),
    "bouncing": lambda t, m: (m.drift * (t - 0.5), hops(t, m), 0, 0),
    "growing": lambda t, m: (0, 0, travel(t, m), 0),
    "shrinking": lambda t, m: (0, 0, -travel(t, m), 0),
    "spinning": lambda t, m: (0, 0, 0, tau * m.turns * t),
    "standing still": lambda t, m: (0, 0, 0, 0),
}
MOTIONS = tuple(PATHS)

HELD_OUT_PATHS = {  # name: (word, path)
    "flat eight": ("circling", lambda t, m: (
        13 * torch.sin(tau * t), 8 * torch.sin(2 * tau * t), 0, 0)),
    "tall eight": ("circling", lambda t, m: (
        8 * torch.sin(2 * tau * t), -13 * torch.sin(tau * t), 0, 0)),
    "trefoil": ("circling", lambda t, m: (
        6 * torch.sin(tau * t) + 8 * torch.sin(2 * tau * t),
        6 * torch.cos(tau * t) - 8 * torch.cos(2 * tau * t), 0, 0)),
    "zigzag": ("moving right", lambda t, m: (24 * t - 12, through(t, 8, -8, 8, -8), 0, 0)),
    "rainbow": ("moving right", lambda t, m: (28 * t - 14, 10 - 80 * t * (1 - t), 0, 0)),
    "there and back": ("moving left", lambda t, m: (through(t, 13, -8, 8, -13), 0, 0, 0)),
    "loop": ("moving left", lambda t, m: (
        14 - 28 * t - 8 * torch.sin(2 * tau * t), 8 * torch.cos(2 * tau * t), 0, 0)),
    "corkscrew": ("moving up", lambda t, m: (
        9 * torch.sin(2 * tau * t), 10 - 20 * t - 5 * torch.cos(2 * tau * t), 0, 0)),
    "falling leaf": ("moving down", lambda t, m: (
        11 * torch.cos(1.5 * tau * t), 24 * t - 12, 0, 0.6 * torch.sin(1.5 * tau * t))),
    "down the stairs": ("bouncing", lambda t, m: (
        13 - 26 * t, through(t, -6, -14, -4, 2, -4, 4, 12), 0, 0)),
    "two pulses": ("growing", lambda t, m: (0, 0, through(t, -0.35, 0.2, -0.2, 0.35), 0)),
    "down the drain": ("shrinking", lambda t, m: (
        11 * (1 - t) * torch.cos(2 * tau * t), 11 * (1 - t) * torch.sin(2 * tau * t),
        0.35 - 0.7 * t, 0)),
    "pendulum": ("spinning", lambda t, m: (0, 0, 0, 1.2 * torch.sin(1.5 * tau * t))),
}
PATHS |= {name: path for name, (_, path) in HELD_OUT_PATHS.items()}
HELD_OUT_MOTIONS = {name: Motion(word, name) for name, (word, _) in HELD_OUT_PATHS.items()}

# Pixels of travel that weigh as much as a unit of x, y, log size and angle: a doubling of the
# size counts as 22 pixels, a full turn as 25.
WEIGHTS = torch.tensor([1.0, 1.0, 32.0, 4.0])


def weighted(trajectory: Tensor) -> Tensor:
    """(f, 4) or, without the angle, (f, 3), in pixels of travel."""
    columns = list(trajectory.unbind(-1))
    columns[2] = columns[2].clamp(min=1.0).log()
    return torch.stack(columns, -1) * WEIGHTS[: len(columns)]


def trajectory_agreement(a: Tensor, b: Tensor) -> float:
    """Cosine in [-1, 1] between the frame-to-frame displacements of two trajectories: 1 is the
    same motion up to place and amplitude, 0 unrelated, -1 reversed; two still ones agree.

    a, b: (f, 4) x, y, size, angle, or (f, 3) without the angle, of the same length."""
    da, db = weighted(a).diff(dim=0), weighted(b).diff(dim=0)
    rest = 1.0  # square pixels: what moves less than this in all is still
    norms = (da.square().sum() + rest) * (db.square().sum() + rest)
    return (((da * db).sum() + rest) / norms.sqrt()).item()


def sample_motion(generator: torch.Generator, word: str) -> Motion:
    """A pretraining motion, its path that of the word, with random amount, speed and start."""
    g, sign = generator, choice(generator, (-1, 1))
    if word.startswith("moving"):
        return Motion(word, word, uniform(g, 18, 28), 1, uniform(g, -0.4, 0.4), uniform(g, -3, 3))
    if word == "circling":
        return Motion(word, word, uniform(g, 16, 24), sign * uniform(g, 0.9, 1.5), uniform(g, 0, 1))
    if word == "bouncing":
        return Motion(word, word, uniform(g, 14, 22), uniform(g, 1.8, 3.0), uniform(g, 0, 1),
                      uniform(g, -3, 3))
    if word in ("growing", "shrinking"):
        return Motion(word, word, uniform(g, log(1.6), log(2.0)), 1, uniform(g, -0.4, 0.4))
    if word == "spinning":
        return Motion(word, word, turns=sign * uniform(g, 0.75, 1.5))
    return Motion(word, word)
