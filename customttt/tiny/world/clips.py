"""The tiny world: seeded clips whose every attribute is known exactly.

A clip is a subject (kind and colours), a motion (a path) and a scene, and it has a caption.
`sample_clip` draws pretraining clips; HELD_OUT_SUBJECTS (subjects.py) and HELD_OUT_MOTIONS
(motions.py) never occur in them. (CLIP meets a held-out colouring in words, now and then, as a
wrong caption: `misnamed` in pretraining/objectives.py.)

Axes: f frames, h w rows and columns. x and y are in pixels from the top left corner, y points
down, the size is the subject's radius in pixels, angles are in radians.
"""

from dataclasses import dataclass
from math import cos, sin, tau

import torch
import torch.nn.functional as F
from torch import Tensor

from .chance import choice, uniform
from .motions import MOTIONS, PATHS, Motion, sample_motion
from .subjects import COLOURS, DRAWINGS, INK, PLAIN, WHITE, Subject, sample_subject

SIZE, FRAMES = 64, 16      # at 8 frames a second
MARGIN = 2  # pixels between a subject and the frame's edge, where its path leaves room
OUTLINE = 1.3  # pixels; keeps a blue fish apart from the sea and a white one from the snow
FIXED = ((0.06, 0.05, 0.08), (0.97, 0.97, 0.97))  # INK, WHITE

SCENES = {"grass": "on the grass", "snow": "on the snow", "sand": "on the sand",
          "night": "in the night", "sea": "in the sea"}
SKY_AND_GROUND = {
    "grass": ((0.70, 0.86, 0.95), (0.52, 0.76, 0.33)),
    "snow": ((0.67, 0.74, 0.82), (0.87, 0.91, 0.96)),
    "sand": ((0.97, 0.89, 0.76), (0.87, 0.73, 0.48)),
    "night": ((0.05, 0.06, 0.18), (0.13, 0.14, 0.22)),
    "sea": ((0.66, 0.83, 0.93), (0.13, 0.50, 0.68)),
}


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

    @property
    def caption(self) -> str:
        return f"{self.subject.caption} is {self.motion.word} {SCENES[self.scene]}"

    @property
    def image_caption(self) -> str:
        return image_caption(self.subject, self.scene)

    def trajectory(self) -> Tensor:
        """(f, 4): the exact x, y, radius in pixels, and angle in radians, of every frame."""
        t = torch.linspace(0, 1, FRAMES)
        x, y, log_size, angle = PATHS[self.motion.path](t, self.motion)
        columns = (self.centre[0] + x, self.centre[1] + y,
                   self.radius * torch.as_tensor(log_size).exp(), self.tilt + angle)
        return torch.stack([torch.as_tensor(c, dtype=t.dtype).expand(FRAMES) for c in columns], 1)


def image_caption(subject: Subject, scene: str) -> str:
    """ "an orange ball on the snow" """
    return f"{subject.caption} {SCENES[scene]}"


def make_clip(subject: Subject, motion: Motion, scene: str, generator: torch.Generator) -> Clip:
    """The given three, at a random place and size at which the subject stays inside the frame."""
    g = generator
    origin = Clip(subject, motion, scene, (0.0, 0.0), 1.0, 0.0, 0).trajectory()
    radius = min(uniform(g, 14, 18), 20 / origin[:, 2].max().item())
    reach = radius * origin[:, 2:3]
    low = (MARGIN + reach - origin[:, :2]).amax(0).tolist()
    high = (SIZE - MARGIN - reach - origin[:, :2]).amin(0).tolist()
    centre = tuple(uniform(g, a, b) if a < b else (a + b) / 2 for a, b in zip(low, high))
    tilt, seed = uniform(g, -0.1, 0.1), int(torch.randint(2**31, (), generator=g))
    return Clip(subject, motion, scene, centre, radius, tilt, seed)


def sample_clip(generator: torch.Generator, kinds=tuple(DRAWINGS), words=MOTIONS,
                scenes=tuple(SCENES)) -> Clip:
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
                                                      WHITE: torch.tensor(FIXED[1])}
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


def part_coverage(clip: Clip, frame: int) -> Tensor:
    """(3, h, w) in 0..1: how much of each pixel shows the body, the detail and the accent."""
    u, v, radius = local_coordinates(clip, [frame])
    shown = torch.zeros(3, SIZE, SIZE)
    for distance, index in DRAWINGS[clip.subject.kind](u, v):
        inside = coverage(distance * radius)[0]
        shown = shown * (1 - inside)
        if index < 3:
            shown[index] += inside
    return shown


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
