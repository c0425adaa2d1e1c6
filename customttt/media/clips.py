"""Clips out: uint8 frames (f H W 3) -> .mp4, .gif, animated .webp, or a .png contact sheet."""

import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import torch
from av.video.reformatter import Colorspace
from einops import rearrange
from PIL import Image
from torch import Tensor

from ..errors import UserError, writing


def check_ending(path: str | Path) -> None:
    """Raise UserError unless `write_frames` knows the ending."""
    if Path(path).suffix.lower() not in WRITERS:
        raise UserError(f"--output {path}: the ending must say the format: {', '.join(WRITERS)}")


def check_fps(path: str | Path, fps: float) -> None:
    """Raise UserError unless the format that the ending names can hold this many frames a second.

    A GIF counts in 1/100 s, a WebP in 1/1000 s, and players take a shorter delay than 20 or 11 ms
    for 100 ms; more than 1000 fps no mp4 player shows.
    """
    least, most = FPS_RANGE.get(Path(path).suffix.lower(), (0, math.inf))
    if not least <= fps <= most:
        raise UserError(f"--fps {fps:g}: a {Path(path).suffix} file holds {least:g} to {most:g}")


def write_frames(frames: Tensor, path: str | Path, fps: float = 8) -> None:
    """uint8 (f H W 3) -> a file of the format that the ending names. An .mp4 has even sides: of odd
    ones the last row or column is left out. Raises UserError, and ValueError for other frames."""
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not len(frames):
        raise ValueError(f"frames: uint8 (f H W 3) with f at least 1; got {frames.dtype} "
                         f"{tuple(frames.shape)}")
    check_ending(path)
    check_fps(path, fps)
    with writing(path) as temporary:
        WRITERS[Path(path).suffix.lower()](frames, temporary, fps)


def to_images(frames: Tensor) -> list[Image.Image]:
    """uint8 (f H W 3) -> Pillow images (by way of a list: numpy is no run-time package)."""
    height, width = frames.shape[1:3]
    return [Image.frombytes("RGB", (width, height), bytes(frame.flatten().tolist()))
            for frame in frames]


def as_frames(pixels: Tensor) -> Tensor:
    """(f 3 H W) in [-1, 1] -> uint8 (f H W 3)."""
    pixels = rearrange(pixels.float().clamp(-1, 1), "f c h w -> f h w c")
    return ((pixels + 1) * 127.5).round().to("cpu", torch.uint8)


def as_pixels(frames: Tensor) -> Tensor:
    """uint8 (f H W 3) -> (f 3 H W) in [-1, 1]."""
    return rearrange(frames, "f h w c -> f c h w").float() / 127.5 - 1


def contact_sheet(clips: Sequence[Tensor], gap: int = 2) -> Tensor:
    """Clips, uint8 (f H W 3) of one size, one a row -> one picture with white gaps (1 H' W' 3)."""
    height, width = clips[0].shape[1:3]
    columns = max(len(clip) for clip in clips)
    sheet = clips[0].new_full((len(clips), columns, height + gap, width + gap, 3), 255)
    for row, clip in zip(sheet, clips):
        row[:len(clip), :height, :width] = clip
    return rearrange(sheet, "rows columns h w c -> 1 (rows h) (columns w) c")


def delays(frames: int, each: float) -> list[int]:
    """Whole numbers that alternate, so that frame k ends at k times `each`, rounded down.

    Down: so it is on show at its time, and a reader that asks for that time gets it back.
    """
    ends = [math.floor(k * each + 1e-6) for k in range(frames + 1)]
    return [end - start for start, end in zip(ends, ends[1:])]


def _write_mp4(frames: Tensor, path: Path, fps: float) -> None:
    """H.264 in yuv420p, which every player opens; its sides must be even."""
    height, width = (side // 2 * 2 for side in frames.shape[1:3])
    with av.open(f"file:{path}", "w", format="mp4",
                 options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(float(fps)).limit_denominator(1000),
                                      options={"crf": "16", "preset": "slow"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.colorspace = Colorspace.ITU601     # said, so that no player guesses
        for image in to_images(frames[:, :height, :width]):
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())


def _write_gif(frames: Tensor, path: Path, fps: float) -> None:
    """One palette for the whole clip, chosen from all its frames, and dithered: no banding."""
    strip, = to_images(rearrange(frames, "f h w c -> 1 (f h) w c"))
    palette = strip.quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=1)
    first, *others = [image.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
                      for image in to_images(frames)]
    first.save(path, save_all=True, append_images=others,
               duration=[10 * each for each in delays(len(frames), 100 / fps)],
               loop=0, disposal=1, palette=bytes(palette.getpalette()))


def _write_webp(frames: Tensor, path: Path, fps: float) -> None:
    first, *others = to_images(frames)
    first.save(path, save_all=True, append_images=others,
               duration=delays(len(frames), 1000 / fps), loop=0, quality=90, method=4)


def _write_sheet(frames: Tensor, path: Path, fps: float) -> None:
    """All frames in a row."""
    sheet, = to_images(rearrange(frames, "f h w c -> 1 h (f w) c"))
    sheet.save(path)


FPS_RANGE = {".mp4": (0.01, 1000), ".gif": (0.01, 50), ".webp": (0.01, 90)}      # least and most
WRITERS = {".mp4": _write_mp4, ".gif": _write_gif, ".webp": _write_webp, ".png": _write_sheet}
