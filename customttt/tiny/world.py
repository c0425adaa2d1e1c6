"""The tiny world of DESIGN.md section 6: seeded clips whose every attribute is known exactly.

A clip is a subject (kind and colours), a motion (a path) and a scene, and it has a caption.
`sample_clip` draws pretraining clips; HELD_OUT_SUBJECTS and HELD_OUT_MOTIONS never occur in them.

Axes: f frames, h w rows and columns. x and y are in pixels from the top left corner, y points
down, the size is the subject's radius in pixels, angles are in radians.
"""

from dataclasses import dataclass
from math import cos, log, pi, sin, tau

import torch
import torch.nn.functional as F
from torch import Tensor

SIZE, FRAMES, FPS = 64, 16, 8
MARGIN = 2  # pixels between a subject and the frame's edge, where its path leaves room
OUTLINE = 1.3  # pixels; keeps a blue fish apart from the sea and a white one from the snow
INK, WHITE = 3, 4  # colour indices of a part besides body 0, detail 1 and accent 2

COLOURS = {
    "red": (0.88, 0.10, 0.12), "orange": (1.00, 0.52, 0.05), "yellow": (1.00, 0.90, 0.15),
    "green": (0.05, 0.52, 0.16), "blue": (0.14, 0.22, 0.92), "purple": (0.52, 0.12, 0.66),
    "pink": (1.00, 0.60, 0.80), "white": (0.98, 0.98, 0.96),
}  # fmt: skip
FIXED = ((0.06, 0.05, 0.08), (0.97, 0.97, 0.97))  # INK, WHITE

SCENES = {"grass": "on the grass", "snow": "on the snow", "sand": "on the sand",
          "night": "in the night", "sea": "in the sea"}  # fmt: skip
SKY_AND_GROUND = {
    "grass": ((0.70, 0.86, 0.95), (0.52, 0.76, 0.33)),
    "snow": ((0.67, 0.74, 0.82), (0.87, 0.91, 0.96)),
    "sand": ((0.97, 0.89, 0.76), (0.87, 0.73, 0.48)),
    "night": ((0.05, 0.06, 0.18), (0.13, 0.14, 0.22)),
    "sea": ((0.66, 0.83, 0.93), (0.13, 0.50, 0.68)),
}


# ------------------------------------------------------------------------------- subjects

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
    ]  # fmt: skip


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
    ]  # fmt: skip


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
    ]  # fmt: skip


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
    ]  # fmt: skip


# A drawing maps u, v of shape (f, h, w), in radii from the subject's centre, to its parts from
# back to front: signed distance in radii (negative inside) and colour index.
PLAIN = {"ball": ball, "star": star, "heart": heart, "box": square, "ring": ring, "moon": moon}
COMPOSED = {"teddy bear": teddy_bear, "rabbit": rabbit, "robot": robot, "fish": fish}
DRAWINGS = PLAIN | COMPOSED


@dataclass(frozen=True)
class Subject:
    kind: str                 # a key of DRAWINGS
    colours: tuple[str, ...]  # (body,) of a plain kind; (body, detail, accent) of a composed one


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
    )  # fmt: skip


# -------------------------------------------------------------------------------- motions

@dataclass(frozen=True)
class Motion:
    word: str            # the caption's: "moving right"
    path: str            # a key of PATHS; in pretraining it is the word itself
    amount: float = 0.0  # pixels of travel, circle diameter or hop height; log ratio of sizes
    turns: float = 1.0   # rounds, hops or revolutions in the clip; its sign is the direction
    phase: float = 0.0   # where a round or hop starts, in rounds; how uneven a straight travel is
    drift: float = 0.0   # pixels of sideways drift


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
}  # fmt: skip
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
}  # fmt: skip
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


def trajectory_distance(a: Tensor, b: Tensor) -> float:
    """Distance in [0, 2] of two trajectories, each moved to mean zero and scaled to norm one:
    0 is the same path up to place and amplitude. Shapes as in `trajectory_agreement`."""
    a, b = (p - p.mean(dim=0) for p in (weighted(a), weighted(b)))
    return (F.normalize(a.flatten(), dim=0) - F.normalize(b.flatten(), dim=0)).norm().item()


# ---------------------------------------------------------------------------------- clips

@dataclass(frozen=True)
class Clip:
    subject: Subject
    motion: Motion
    scene: str                    # a key of SCENES
    centre: tuple[float, float]   # pixels, of the path
    radius: float                 # pixels, where the log size is zero
    tilt: float                   # radians
    seed: int                     # of the scene's texture and the subject's shades
    names_colour: bool            # whether the caption says the body's colour

    @property
    def subject_caption(self) -> str:
        """ "an orange ball", "a teddy bear" """
        words = f"{self.subject.colours[0]} " * self.names_colour + self.subject.kind
        return ("an " if words[0] in "aeiou" else "a ") + words

    @property
    def caption(self) -> str:
        return f"{self.subject_caption} is {self.motion.word} {SCENES[self.scene]}"

    @property
    def image_caption(self) -> str:
        return f"{self.subject_caption} {SCENES[self.scene]}"

    def trajectory(self) -> Tensor:
        """(f, 4): the exact x, y, radius in pixels, and angle in radians, of every frame."""
        t = torch.linspace(0, 1, FRAMES)
        x, y, log_size, angle = PATHS[self.motion.path](t, self.motion)
        columns = (self.centre[0] + x, self.centre[1] + y,
                   self.radius * torch.as_tensor(log_size).exp(), self.tilt + angle)  # fmt: skip
        return torch.stack([torch.as_tensor(c, dtype=t.dtype).expand(FRAMES) for c in columns], 1)


def uniform(generator: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * torch.rand((), generator=generator).item()


def choice(generator: torch.Generator, options):
    options = tuple(options)
    return options[int(torch.randint(len(options), (), generator=generator))]


def sample_subject(generator: torch.Generator, kind: str) -> Subject:
    """A pretraining subject: its colours differ from each other, and it is not held out."""
    while True:
        order = torch.randperm(len(COLOURS), generator=generator).tolist()
        colours = tuple(tuple(COLOURS)[i] for i in order[: 3 if kind in COMPOSED else 1])
        if not is_held_out(subject := Subject(kind, colours)):
            return subject


def sample_motion(generator: torch.Generator, word: str) -> Motion:
    """A pretraining motion, its path that of the word, with random amount, speed and start."""
    g, sign = generator, choice(generator, (-1, 1))
    if word.startswith("moving"):
        return Motion(word, word, uniform(g, 18, 28), 1, uniform(g, -0.4, 0.4), uniform(g, -3, 3))
    if word == "circling":
        return Motion(word, word, uniform(g, 16, 24), sign * uniform(g, 0.9, 1.5), uniform(g, 0, 1))
    if word == "bouncing":
        return Motion(word, word, uniform(g, 14, 22), uniform(g, 1.8, 3.0), uniform(g, 0, 1),
                      uniform(g, -3, 3))  # fmt: skip
    if word in ("growing", "shrinking"):
        return Motion(word, word, uniform(g, log(1.6), log(2.0)), 1, uniform(g, -0.4, 0.4))
    if word == "spinning":
        return Motion(word, word, turns=sign * uniform(g, 0.75, 1.5))
    return Motion(word, word)


def make_clip(subject: Subject, motion: Motion, scene: str, generator: torch.Generator) -> Clip:
    """The given three, at a random place and size at which the subject stays inside the frame."""
    g = generator
    names_colour = subject.kind in PLAIN or choice(g, (True, False))
    origin = Clip(subject, motion, scene, (0.0, 0.0), 1.0, 0.0, 0, names_colour).trajectory()
    radius = min(uniform(g, 14, 18), 20 / origin[:, 2].max().item())
    reach = radius * origin[:, 2:3]
    low = (MARGIN + reach - origin[:, :2]).amax(0).tolist()
    high = (SIZE - MARGIN - reach - origin[:, :2]).amin(0).tolist()
    centre = tuple(uniform(g, a, b) if a < b else (a + b) / 2 for a, b in zip(low, high))
    tilt, seed = uniform(g, -0.1, 0.1), int(torch.randint(2**31, (), generator=g))
    return Clip(subject, motion, scene, centre, radius, tilt, seed, names_colour)


def sample_clip(generator: torch.Generator, kinds=tuple(DRAWINGS), words=MOTIONS,
                scenes=tuple(SCENES)) -> Clip:  # fmt: skip
    """A pretraining clip: subject kind, motion word and scene evenly drawn from those given."""
    subject = sample_subject(generator, choice(generator, kinds))
    motion = sample_motion(generator, choice(generator, words))
    return make_clip(subject, motion, choice(generator, scenes), generator)


GENERIC = "a photo of an object is doing something the".split()
WORDS = sorted({*GENERIC, *COLOURS, *" ".join([*DRAWINGS, *MOTIONS, *SCENES.values()]).split()})


# ------------------------------------------------------------------------------- rendering

def background(scene: str, generator: torch.Generator) -> Tensor:
    """(h, w, 3) in 0..1: sky over ground, with the scene's own faint texture."""
    def noise(rows: int, columns: int) -> Tensor:  # smooth, in -1..1, (h, w)
        grid = torch.rand(1, 1, rows, columns, generator=generator) * 2 - 1
        return F.interpolate(grid, (SIZE, SIZE), mode="bilinear", align_corners=False)[0, 0]

    sky, ground = torch.tensor(SKY_AND_GROUND[scene]) + 0.03 * (noise(1, 1)[0, 0])
    rows = torch.arange(SIZE)[:, None]
    below = (rows - uniform(generator, 14, 24) + 0.5).clamp(0, 1)[..., None]  # (h, 1, 1)
    clouds = 0.03 * noise(10, 5)
    texture = {
        "grass": 0.06 * noise(12, 40),
        "snow": 0.02 * noise(6, 6),
        "sand": 0.04 * torch.sin(rows * 0.9 + 3 * noise(4, 4)),
        "night": 0.02 * noise(6, 6),
        "sea": 0.06 * torch.sin(rows * 0.7 + 4 * noise(3, 8)),
    }[scene]
    canvas = torch.lerp(sky + clouds[..., None], ground + texture[..., None], below)
    if scene == "night":
        stars = torch.rand(SIZE, SIZE, generator=generator) > 0.985
        canvas = canvas + 0.5 * stars[..., None] * (1 - below)
    return canvas


def shades(subject: Subject, u: Tensor, v: Tensor, generator: torch.Generator) -> dict[int, Tensor]:
    """The colour of each index, slightly varied: (3,), or (f, h, w, 3) for a textured body."""
    palette = torch.tensor([COLOURS[name] for name in subject.colours])
    brightness = 0.92 + 0.12 * torch.rand(len(palette), 1, generator=generator)
    palette = palette * brightness + 0.03 * torch.randn(palette.shape, generator=generator)
    colours = dict(enumerate(palette.clamp(0, 1))) | {INK: torch.tensor(FIXED[0]),
                                                      WHITE: torch.tensor(FIXED[1])}  # fmt: skip
    if subject.kind in PLAIN:
        pattern = choice(generator, ("shading", "stripes", "dots"))
        angle = uniform(generator, 0, tau)
        along, across = u * cos(angle) + v * sin(angle), v * cos(angle) - u * sin(angle)
        texture = {
            "shading": lambda: along,
            "stripes": lambda: torch.sin(5 * along + 1),
            "dots": lambda: torch.sin(4 * along + 1) * torch.sin(4 * across + 1),
        }[pattern]()
        colours[0] = (colours[0] * (1 + 0.25 * texture[..., None])).clamp(0, 1)
    return colours


def local_coordinates(clip: Clip, frames) -> tuple[Tensor, Tensor, Tensor]:
    """u, v (f, h, w) in radii in the subject's own upright frame, and the radius (f, 1, 1)."""
    x, y, radius, angle = clip.trajectory()[frames].T[..., None, None]
    pixel = torch.arange(SIZE) + 0.5
    dx, dy = (pixel[None, None, :] - x) / radius, (pixel[None, :, None] - y) / radius
    c, s = angle.cos(), angle.sin()
    return dx * c + dy * s, dy * c - dx * s, radius


def coverage(distance: Tensor) -> Tensor:
    """How much of a pixel lies inside, from the signed distance in pixels."""
    return (0.5 - distance).clamp(0, 1)


def silhouette(parts: list[tuple[Tensor, int]]) -> Tensor:
    return torch.stack([distance for distance, _ in parts]).amin(0)


def subject_mask(clip: Clip, frames=slice(None)) -> Tensor:
    """(f, h, w) in 0..1: the exact coverage by the subject with its outline."""
    u, v, radius = local_coordinates(clip, frames)
    return coverage(silhouette(DRAWINGS[clip.subject.kind](u, v)) * radius - OUTLINE)


def render(clip: Clip, frames=slice(None)) -> Tensor:
    """(f, h, w, 3) uint8; `frames`: a slice or list of frame indices."""
    generator = torch.Generator().manual_seed(clip.seed)
    canvas = background(clip.scene, generator)
    u, v, radius = local_coordinates(clip, frames)
    parts = DRAWINGS[clip.subject.kind](u, v)
    colours = shades(clip.subject, u, v, generator)
    outline = coverage(silhouette(parts) * radius - OUTLINE)
    canvas = torch.lerp(canvas, colours[INK], outline[..., None])
    for distance, index in parts:
        canvas = torch.lerp(canvas, colours[index], coverage(distance * radius)[..., None])
    return (canvas * 255 + 0.5).clamp(0, 255).to(torch.uint8)


def render_frame(clip: Clip, frame: int) -> Tensor:
    """(h, w, 3) uint8."""
    return render(clip, [frame])[0]
