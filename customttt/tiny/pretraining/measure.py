"""Where the subject of a tiny clip is, how big, and how it moves, from the frames alone.

Neither the scene nor the subject is known, so the measures serve generated clips too. They lean on
two facts of the world: a scene's colours depend on little but the row, and a subject has a dark
outline around it. Axes: f frames, h w rows and columns.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

CONTRAST = 0.16  # of 0..1: what differs more from its row's background is subject
REACH = 16       # steps of three pixels from the densest spot to the subject's far end
BORDER = 4       # columns at each side from which a row's background is taken
# Over a whole clip; what does less than this stands still.
LEAST_TRAVEL = 8.0  # pixels
LEAST_GROWTH = 0.28  # log ratio of the sizes
LEAST_CHANGE = 0.10  # of 0..1: mean colour difference inside the subject


def as_pictures(frames: Tensor) -> Tensor:
    """(f, h, w, 3) uint8 to (f, 3, h, w) in 0..1, with single-pixel noise smoothed away."""
    pictures = frames.permute(0, 3, 1, 2).float() / 255
    return F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, stride=1)


def between(mask: Tensor, axis: int) -> Tensor:
    """True from the first to the last true pixel of every line along the axis."""
    before = mask.cummax(axis).values
    after = mask.flip(axis).cummax(axis).values.flip(axis)
    return before & after


def find_subject(frames: Tensor) -> Tensor:
    """(f, h, w) bool: the pixels of the subject, from (f, h, w, 3) uint8 frames of one scene.

    A row's background is the median colour of its border columns over all frames. Of what differs
    from it, the connected piece around the densest spot is kept, and holes in it are filled."""
    pictures = as_pictures(frames)
    borders = torch.cat([pictures[..., :BORDER], pictures[..., -BORDER:]], dim=-1)
    rows = borders.permute(1, 2, 0, 3).flatten(2).median(dim=-1).values  # (3, h)
    contrast = (pictures - rows[None, :, :, None]).abs().amax(1, keepdim=True)
    mask = (contrast > CONTRAST).float()  # (f, 1, h, w)

    density = F.avg_pool2d(mask, 15, stride=1, padding=7) * mask
    piece = mask * (density == density.amax((2, 3), keepdim=True))
    for _ in range(REACH):
        piece = F.max_pool2d(piece, (7, 1), stride=1, padding=(3, 0))  # spans gaps of two pixels
        piece = F.max_pool2d(piece, (1, 7), stride=1, padding=(0, 3)) * mask
    piece = piece[:, 0].to(torch.uint8)
    return (between(piece, 1) & between(piece, 2)).bool()


def measure_trajectory(frames: Tensor) -> Tensor:
    """(f, 3): x and y of the subject's centre of mass and its size, the square root of its area
    over pi, all in pixels, from (f, h, w, 3) uint8 frames. A frame without a subject repeats the
    one before it (the first ones: the first that has one; none at all: the middle, size zero)."""
    mask = find_subject(frames).float()
    area = mask.sum((1, 2))
    rows, columns = (torch.arange(n) + 0.5 for n in mask.shape[1:])
    x = (mask.sum(1) @ columns) / area.clamp(min=1)
    y = (mask.sum(2) @ rows) / area.clamp(min=1)
    found = (area > 0).nonzero()[:, 0]
    if len(found) == 0:
        return torch.tensor([columns.mean(), rows.mean(), 0.0]).expand(len(frames), 3).clone()
    last = (torch.searchsorted(found, torch.arange(len(frames)), right=True) - 1).clamp(min=0)
    return torch.stack([x, y, (area / torch.pi).sqrt()], dim=1)[found[last]]


def change_inside(frames: Tensor, trajectory: Tensor) -> float:
    """Mean colour difference in 0..1 between the subject's disc in each frame and in the first,
    at the places that `measure_trajectory` found: what a spinning subject has and a still one
    has not."""
    pictures = as_pictures(frames)
    h, w = pictures.shape[-2:]
    x, y, size = trajectory.T[..., None, None]
    grid = torch.linspace(-1, 1, 24)
    places = torch.stack([(x + size * grid) / w * 2 - 1 + 0 * grid[:, None],
                          (y + size * grid[:, None]) / h * 2 - 1 + 0 * grid], dim=-1)
    crops = F.grid_sample(pictures, places, padding_mode="border", align_corners=False)
    return (crops - crops[:1]).abs().amax(1).mean((1, 2)).amax().item()


def classify_motion(frames: Tensor) -> str:
    """The motion word of the caption that fits (f, h, w, 3) uint8 frames best."""
    trajectory = measure_trajectory(frames)
    path = trajectory[:, :2]
    width, height = (path.amax(0) - path.amin(0)).tolist()
    if max(width, height) < LEAST_TRAVEL:
        growth = (trajectory[-2:, 2].mean() / trajectory[:2, 2].mean()).log().item()
        if abs(growth) > LEAST_GROWTH:
            return "growing" if growth > 0 else "shrinking"
        spins = change_inside(frames, trajectory) > LEAST_CHANGE
        return "spinning" if spins else "standing still"
    dx, dy = (path[-1] - path[0]).tolist()
    straight = max(abs(dx), abs(dy)) / path.diff(dim=0).norm(dim=1).sum().item()
    if straight > 0.75:
        if abs(dx) > abs(dy):
            return "moving right" if dx > 0 else "moving left"
        return "moving down" if dy > 0 else "moving up"
    return "circling" if width > height / 2 else "bouncing"
