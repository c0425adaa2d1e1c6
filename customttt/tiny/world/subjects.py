"""The subjects of the tiny world: drawings, colourings, and those that pretraining never draws.

Every composed kind has a usual colouring, as most teddy bears in photos are brown: a caption that
names no colour means it. Any other colouring is named in full.

u and v are in radii from the subject's centre, v points down.
"""

from dataclasses import dataclass
from math import pi, tau

import torch

from .chance import uniform

INK, WHITE = 3, 4  # colour indices of a part besides body 0, detail 1 and accent 2

COLOURS = {
    "red": (0.88, 0.10, 0.12), "orange": (1.00, 0.52, 0.05), "yellow": (1.00, 0.90, 0.15),
    "green": (0.05, 0.52, 0.16), "blue": (0.14, 0.22, 0.92), "purple": (0.52, 0.12, 0.66),
    "pink": (1.00, 0.60, 0.80), "white": (0.98, 0.98, 0.96),
}


def circle(u, v, x, y, r):
    return torch.hypot(u - x, v - y) - r


def ellipse(u, v, x, y, rx, ry):
    """To first order in the distance: the level set's value over the length of its gradient."""
    du, dv = (u - x) / rx, (v - y) / ry
    level = torch.hypot(du, dv)
    return level * (level - 1) / torch.hypot(du / rx, dv / ry).clamp(min=1e-6)


def box(u, v, x, y, rx, ry, corner=0.05):
    du, dv = (u - x).abs() - (rx - corner), (v - y).abs() - (ry - corner)
    outside = torch.hypot(du.clamp(min=0), dv.clamp(min=0))
    return outside + torch.maximum(du, dv).clamp(max=0) - corner


def ball(u, v):
    """With seams, so that its spinning shows."""
    disc, m = circle(u, v, 0, 0, 0.94), u.abs()
    seams = torch.minimum(circle(m, v, 1.05, 0, 0.70).abs(), v.abs())
    return [(disc, 0), (torch.maximum(disc, seams - 0.06), INK)]


def ring(u, v):
    """With a stone, so that its spinning shows."""
    band = circle(u, v, 0, 0.10, 0.64).abs() - 0.24
    return [(band, 0), (circle(u, v, 0, -0.66, 0.34), INK), (circle(u, v, 0, -0.66, 0.27), WHITE)]


def square(u, v):
    return [(box(u, v, 0, 0, 0.78, 0.78), 0)]


def moon(u, v):
    return [(torch.maximum(circle(u, v, 0.18, 0, 0.95), -circle(u, v, 0.68, -0.12, 0.80)), 0)]


def heart(u, v):
    """A square on its corner, with half a disc on each upper side."""
    m = u.abs()
    diamond = (m + (v - 0.08).abs() - 0.80) / 2**0.5
    return [(torch.minimum(diamond, circle(m, v, 0.40, -0.32, 0.566)), 0)]


def star(u, v):
    """Fold the plane onto half a spike; its edge is the line from the tip to the inner corner."""
    inner_x, inner_y = 0.48 * 0.809, 0.48 * 0.588  # inner radius 0.48, at 36 degrees
    fold = (torch.remainder(torch.atan2(u, -v) + pi / 5, tau / 5) - pi / 5).abs()
    r = torch.hypot(u, v)
    along, across = r * fold.cos() - 1.05, r * fold.sin()
    length = ((1.05 - inner_x) ** 2 + inner_y**2) ** 0.5
    return [((along * inner_y + across * (1.05 - inner_x)) / length, 0)]


def teddy_bear(u, v):
    m = u.abs()  # both halves at once
    return [
        (circle(m, v, 0.62, -0.58, 0.36), 0),        # ears
        (circle(m, v, 0.62, -0.58, 0.19), 1),
        (ellipse(u, v, 0, 0.02, 0.84, 0.76), 0),     # face
        (ellipse(u, v, 0, 0.28, 0.44, 0.34), 1),     # muzzle
        (circle(m, v, 0.34, -0.18, 0.12), INK),      # eyes
        (ellipse(u, v, 0, 0.16, 0.17, 0.12), INK),   # nose
        (ellipse(m, v, 0.30, 0.82, 0.30, 0.20), 2),  # bow tie
        (circle(u, v, 0, 0.82, 0.11), INK),
    ]


def rabbit(u, v):
    m = u.abs()
    return [
        (ellipse(m, v, 0.40, -0.48, 0.27, 0.58), 0),  # ears
        (ellipse(m, v, 0.40, -0.48, 0.13, 0.42), 1),
        (ellipse(u, v, 0, 0.38, 0.80, 0.66), 0),      # face
        (circle(m, v, 0.50, 0.54, 0.22), 2),          # cheeks
        (ellipse(u, v, 0, 0.62, 0.22, 0.28), 1),      # muzzle
        (circle(m, v, 0.30, 0.18, 0.13), INK),        # eyes
        (ellipse(u, v, 0, 0.44, 0.15, 0.11), INK),    # nose
    ]


def robot(u, v):
    m = u.abs()
    return [
        (box(u, v, 0, -0.72, 0.08, 0.20), INK),             # antenna
        (circle(u, v, 0, -0.90, 0.18), 2),
        (box(m, v, 0.84, 0.10, 0.16, 0.30), 1),             # ears
        (box(u, v, 0, 0.16, 0.76, 0.70, corner=0.12), 0),   # head
        (circle(m, v, 0.34, -0.06, 0.25), 2),               # eyes
        (circle(m, v, 0.34, -0.06, 0.11), INK),
        (box(u, v, 0, 0.52, 0.50, 0.18), 1),                # grille
        (box((m - 0.17).abs(), v, 0, 0.52, 0.04, 0.14), INK),
    ]


def fish(u, v):
    body = ellipse(u, v, 0.18, 0.06, 0.84, 0.70)
    tail = torch.maximum(v.abs() * 0.8 + (u + 0.40) * 0.6, -1.05 - u)
    fin = torch.maximum(ellipse(u, v, 0.05, -0.46, 0.50, 0.46), -0.85 - v)
    return [
        (tail, 1),
        (fin, 1),
        (body, 0),
        (torch.maximum(body, (u - 0.22).abs() - 0.12), 2),  # stripes
        (torch.maximum(body, (u + 0.22).abs() - 0.12), 2),
        (circle(u, v, 0.64, -0.08, 0.19), WHITE),           # eye
        (circle(u, v, 0.69, -0.08, 0.11), INK),
    ]


# A drawing maps u, v of shape (f, h, w), in radii from the subject's centre, to its parts from
# back to front: signed distance in radii (negative inside) and colour index.
PLAIN = {"ball": ball, "star": star, "heart": heart, "box": square, "ring": ring, "moon": moon}
COMPOSED = {"teddy bear": teddy_bear, "rabbit": rabbit, "robot": robot, "fish": fish}
DRAWINGS = PLAIN | COMPOSED


@dataclass(frozen=True)
class Subject:
    kind: str                 # a key of DRAWINGS
    colours: tuple[str, ...]  # (body,) of a plain kind; (body, detail, accent) of a composed one

    @property
    def said(self) -> tuple[str, ...]:
        """The colours that a caption names: none of the usual colouring, else all, in order."""
        return () if self == USUAL.get(self.kind) else self.colours

    @property
    def caption(self) -> str:
        """ "an orange ball", "a teddy bear", "a blue yellow red teddy bear" """
        words = " ".join([*self.said, self.kind])
        return ("an " if words[0] in "aeiou" else "a ") + words


USUAL = {subject.kind: subject for subject in (
    Subject("teddy bear", ("orange", "white", "green")),
    Subject("rabbit", ("white", "pink", "blue")),
    Subject("robot", ("green", "yellow", "purple")),
    Subject("fish", ("orange", "white", "blue")),
)}
USUAL_SHARE = 0.3       # of the composed subjects that are drawn

HELD_OUT_SUBJECTS = {
    "teddy in a red bow": Subject("teddy bear", ("blue", "yellow", "red")),
    "jungle teddy": Subject("teddy bear", ("green", "pink", "orange")),
    "royal teddy": Subject("teddy bear", ("white", "purple", "yellow")),
    "carrot rabbit": Subject("rabbit", ("orange", "white", "green")),
    "magic rabbit": Subject("rabbit", ("purple", "yellow", "red")),
    "sky rabbit": Subject("rabbit", ("yellow", "blue", "pink")),
    "candy robot": Subject("robot", ("pink", "blue", "yellow")),
    "fire robot": Subject("robot", ("red", "white", "green")),
    "coral fish": Subject("fish", ("purple", "orange", "white")),
    "parrot fish": Subject("fish", ("green", "red", "yellow")),
}


def is_held_out(subject: Subject) -> bool:
    """True for a colouring that agrees with a held-out one of its kind in two or more of body,
    detail and accent, or that has the same three colours in another order."""
    return any(
        subject.kind == other.kind
        and (sum(a == b for a, b in zip(subject.colours, other.colours)) >= 2
             or set(subject.colours) == set(other.colours))
        for other in HELD_OUT_SUBJECTS.values()
    )


def sample_subject(generator: torch.Generator, kind: str) -> Subject:
    """A pretraining subject: its colours differ from each other, and it is not held out."""
    if kind in USUAL and uniform(generator, 0, 1) < USUAL_SHARE:
        return USUAL[kind]
    while True:
        order = torch.randperm(len(COLOURS), generator=generator).tolist()
        colours = tuple(tuple(COLOURS)[i] for i in order[: 3 if kind in COMPOSED else 1])
        if not is_held_out(subject := Subject(kind, colours)):
            return subject
