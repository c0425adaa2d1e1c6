"""How points move through a clip: tracks (n t 2), x and y of n points in t frames, in pixels.

Three sources, one form: OpenCV's pyramidal Lucas-Kanade, CoTracker where the user has it, a file.
"""

import functools
import importlib
from collections.abc import Sequence
from pathlib import Path

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor, nn

from ..errors import UserError, in_words
from ..files.reading import read_tensors
from ..media.images import FILTER

SIDE = 256          # pixels that the shorter side is resized to, so that a pixel means the same
NARROWEST = 16      # times its shorter side, a frame's longer one at the most
GRID = 55           # points along each side of the first frame, as in Yatim et al.'s code
WINDOW, LEVELS = 21, 3      # Lucas-Kanade's window in pixels, and the halvings of its pyramid
RETURN = 1.0        # pixels: a point that comes back farther away than this was lost
ENDINGS = {".npy", ".pt", ".safetensors"}


def evaluation_package(name: str):
    """A package of the [eval] extra."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"{name} is not installed: pip install -e \".[eval]\"") from error


def resized(frames: Sequence[Image.Image]) -> Tensor:
    """Pillow images -> uint8 (t H W 3), the shorter side SIDE pixels."""
    width, height = frames[0].size
    if max(width, height) > NARROWEST * min(width, height):     # it would fill the memory
        raise UserError(f"frames of {width} x {height} pixels are too narrow to follow points in; "
                        f"cut them to {NARROWEST}:1 at most")
    factor = SIDE / min(width, height)
    size = (round(width * factor), round(height * factor))
    images = [frame.convert("RGB").resize(size, FILTER) for frame in frames]
    pixels = torch.frombuffer(bytearray(b"".join(each.tobytes() for each in images)),
                              dtype=torch.uint8)
    return rearrange(pixels, "(t h w c) -> t h w c", t=len(images), h=size[1], c=3)


def grid(height: int, width: int) -> Tensor:
    """GRID x GRID points, evenly over a frame: (n 2)."""
    x, y = (torch.linspace(0, side - 1, GRID + 2)[1:-1] for side in (width, height))
    return torch.cartesian_prod(y, x).flip(1).contiguous()


def lucas_kanade(frames: Sequence[Image.Image]) -> Tensor:
    """Bouguet's pyramidal Lucas-Kanade from the first frame to the last and back again; points
    that do not come home are left out (Kalal et al. 2010, forward-backward error)."""
    cv2 = evaluation_package("cv2")
    grey = [cv2.cvtColor(frame.numpy(), cv2.COLOR_RGB2GRAY) for frame in resized(frames)]
    start = grid(*grey[0].shape)

    def follow(points: Tensor, pictures: list) -> tuple[Tensor, Tensor]:
        path, found = [points], torch.ones(len(points), dtype=torch.bool)
        for before, after in zip(pictures, pictures[1:]):
            moved, status, _ = cv2.calcOpticalFlowPyrLK(
                before, after, path[-1][:, None].numpy(), None, winSize=(WINDOW, WINDOW),
                maxLevel=LEVELS)
            path.append(torch.from_numpy(moved[:, 0]))
            found &= torch.from_numpy(status[:, 0]).bool()
        return torch.stack(path, dim=1), found

    there, found = follow(start, grey)
    back, found_again = follow(there[:, -1].contiguous(), grey[::-1])
    home = (back[:, -1] - start).norm(dim=1) <= RETURN
    return there[found & found_again & home]


@functools.cache
def cotracker_model() -> nn.Module:
    """CoTracker 3 (Karaev et al.), offline; not free for commercial use. The published metric has
    version 1, which torch.hub no longer offers."""
    try:
        return torch.hub.load("facebookresearch/co-tracker", "cotracker3_offline")
    except Exception as error:
        raise UserError(f"--tracker cotracker: torch.hub cannot load it ({in_words(error)}); use "
                        f"lucas-kanade") from error


def cotracker(frames: Sequence[Image.Image]) -> Tensor:
    """Visibility is left aside, as in the published metric."""
    video = rearrange(resized(frames), "t h w c -> 1 t c h w").float()
    model = cotracker_model()
    with torch.no_grad():
        tracks, _ = model(video.to(next(model.parameters()).device), grid_size=GRID)
    return rearrange(tracks.cpu(), "1 t n two -> n t two")


TRACKERS = {"lucas-kanade": lucas_kanade, "cotracker": cotracker}


def told_of_tracks(tracker: str | None) -> dict:
    """What scores of tracks depend on besides the clips; both are None without a tracker."""
    return {"tracker": tracker, "resized by": tracker and FILTER.name}


def check_tracker(name: str, device: str) -> None:
    """Raise UserError now if what it needs is missing, and not after hours. CoTracker goes to the
    device."""
    if name == "cotracker":
        cotracker_model().to(device)
    else:
        evaluation_package("cv2")


def read_tracks(path: str | Path, frames: int) -> Tensor:
    """A file of tracks (n t 2), t = `frames`: .npy; or .pt or .safetensors, one tensor in it."""
    path = Path(path)
    if path.suffix == ".npy":
        numpy = evaluation_package("numpy")
        try:
            tracks = torch.from_numpy(numpy.load(path, allow_pickle=False))
        except Exception as error:      # a zip file, an object, a header that is none
            raise UserError(f"{path}: cannot be read as tracks ({in_words(error)})") from error
    else:
        tensors = list(read_tensors(path).values())
        if len(tensors) != 1:
            raise UserError(f"{path}: holds {len(tensors)} tensors; tracks are one, (n t 2)")
        tracks = tensors[0]
    if tracks.ndim != 3 or tracks.shape[2] != 2 or not tracks.isfinite().all():
        raise UserError(f"{path}: tracks are finite numbers of shape (points, frames, 2), not "
                        f"{tuple(tracks.shape)}")
    if tracks.shape[1] != frames:       # (t n 2), as CoTracker has them, would give a wrong score
        raise UserError(f"{path}: its tracks are of {tracks.shape[1]} frames, the video has "
                        f"{frames}; tracks are (points, frames, 2)")
    return tracks.float()
