"""Images and videos in: any file that Pillow or PyAV reads -> square pixels in [-1, 1]."""

import warnings
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import torch
from einops import rearrange
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..errors import UserError

IMAGE_ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".jp2"}
VIDEO_ENDINGS = {".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".gif", ".mpg", ".mpeg", ".wmv",
                 ".flv", ".ts", ".apng"}


def find_files(paths: Sequence[str | Path], endings: set[str], what: str) -> list[Path]:
    """Files as they are, folders replaced by the files in them that have one of the endings."""
    found = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in endings
                            and p.is_file() and not p.name.startswith("."))
            if not inside:
                raise UserError(f"{path}: no {what} in this folder (looked for "
                                f"{', '.join(sorted(endings))})")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise UserError(f"{path}: no such file or folder; "
                            f"--data names the {what}s to learn from")
    return found


def caption_beside(path: Path) -> str | None:
    """The text of the `.txt` file beside an image, a video or a folder, if there is one."""
    path = path.absolute()      # "." has a name too
    text = path.parent / f"{path.name}.txt" if path.is_dir() else path.with_suffix(".txt")
    try:
        return " ".join(text.read_text(encoding="utf-8-sig").split()) if text.is_file() else None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{text}: cannot be read as UTF-8 text ({error})") from error


def read_image(path: str | Path, size: int) -> Tensor:
    """An image file -> (3 size size) in [-1, 1]: upright, on white, centre square, resized."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)   # 100 MP is a phone's
            with Image.open(path) as image:
                image.draft("RGB", (2 * size, 2 * size))    # a JPEG may decode at a smaller scale
                return to_square(ImageOps.exif_transpose(image), size)
    except Image.DecompressionBombError as error:
        raise UserError(f"{path}: too large an image ({error}); make it smaller first") from error
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise UserError(f"{path}: not an image that can be read ({error})") from error


def to_square(image: Image.Image, size: int) -> Tensor:
    """A Pillow image of any mode -> (3 size size) in [-1, 1]."""
    image = ImageOps.fit(_rgb_on_white(image), (size, size), Image.Resampling.LANCZOS)
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return rearrange(pixels, "(h w c) -> c h w", h=size, c=3) / 127.5 - 1


def _rgb_on_white(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":      # 16-bit grey: convert() would clip
        image = image.convert("I").point(lambda v: v / 257).convert("L")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def read_video(path: str | Path, frames: int, fps: float, size: int) -> Tensor:
    """A video file -> its first `frames` frames at `fps`: (3 f size size) in [-1, 1].

    Frame k is the one on show k / fps seconds after the first, by the timestamps in the file.
    Raises UserError for a file that is no video, or too short.
    """
    kept: list[Tensor] = []
    shown, start, end = None, None, 0.0
    for seconds, duration, image in _decode(Path(path)):
        start = seconds if start is None else start
        end = max(end, seconds + duration - start)
        while shown is not None and len(kept) < frames and len(kept) / fps < seconds - start - 1e-6:
            kept.append(to_square(shown(), size))
        if len(kept) == frames:
            break
        shown = image
    while shown is not None and len(kept) < frames and len(kept) / fps < end - 1e-6:
        kept.append(to_square(shown(), size))
    if len(kept) < frames:
        raise UserError(f"{path}: too short: {end:.2f} seconds are {len(kept)} frames at {fps:g} "
                        f"fps, and {frames} are needed ({frames / fps:.2f} seconds); give a longer "
                        f"video or a higher --fps")
    return torch.stack(kept, dim=1)


def _decode(path: Path) -> Iterator[tuple[float, float, object]]:
    """Yield (seconds, duration, function that makes the Pillow image) of each frame in order."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise UserError(f"{path}: no video in this file, only "
                                f"{', '.join({s.type for s in container.streams}) or 'nothing'}")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            step = float(1 / (stream.average_rate or stream.guessed_rate or Fraction(25)))
            for count, frame in enumerate(container.decode(stream)):
                seconds = count * step if frame.pts is None else float(frame.pts * frame.time_base)
                duration = float(frame.duration * frame.time_base) if frame.duration else step
                yield seconds, duration, lambda frame=frame: _upright(frame)
    except av.FFmpegError as error:
        raise UserError(f"{path}: not a video that can be read ({error.strerror})") from error


def _upright(frame: av.VideoFrame) -> Image.Image:
    """A decoded frame as a Pillow image, turned as the camera was held."""
    image = frame.to_image()
    if any(component.is_alpha for component in frame.format.components):
        plane = frame.reformat(format="rgba").planes[0]
        image = Image.frombuffer("RGBA", image.size, bytes(plane), "raw", "RGBA",
                                 plane.line_size, 1)
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image
