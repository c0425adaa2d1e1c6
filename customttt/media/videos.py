"""Videos in: what PyAV reads, and what Pillow reads that moves -> a clip in [-1, 1], in sRGB.

What a file says of its pixels is followed: times, the shape of a pixel, rotation and mirror, alpha,
transfer and primaries.
"""

import struct
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import torch
from av.sidedata.sidedata import Type as SideData
from av.video.reformatter import ColorPrimaries, ColorTrc, VideoReformatter
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..errors import UserError, in_words
from .images import ANIMATED, TRANSFERS, WIDE, coded_colours_note, to_square

MOST_PIXELS = 2 ** 26                                       # of a frame: twice 8K
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}     # FFmpeg's own leave alpha out
NOT_FOR_SCREENS = {ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67, ColorTrc.SMPTE428, ColorTrc.LINEAR,
                   ColorTrc.LOG, ColorTrc.LOG_SQRT}         # PQ and HLG before all
CONVERTS = int(av.__version__.partition(".")[0]) >= 18       # PyAV 17 leaves levels as they are


@dataclass(frozen=True)
class Shown:
    """What a file shows from `start` for `duration` seconds; `square(size)` makes its pixels."""

    start: float
    duration: float
    square: Callable[[int], Tensor]


def read_video(path: str | Path, frames: int, fps: float, size: int) -> Tensor:
    """A video file -> its first `frames` frames at `fps`: (3 f size size) in [-1, 1].

    Frame k is the one on show k / fps seconds after the first, by the timestamps in the file. They
    are rounded (a GIF's to hundredths of a second), and a frame may begin later by as much.
    Raises UserError for a file that is no video, or too short.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    kept: list[Tensor] = []
    shown, first, end = None, 0.0, 0.0
    try:
        length, tick, decoded = _open(path)
        for each in decoded:
            first = each.start if shown is None else first
            end = max(end, each.start + each.duration - first)
            # At the earliest: its own time was rounded, and the first one's, if it is not 0.
            begins = each.start - first - tick * (0.5 if first == 0 else 1) - 1e-6
            while shown and len(kept) < frames and len(kept) / fps < begins:
                kept.append(shown.square(size))
            if len(kept) == frames:
                break
            shown = each
        while shown and len(kept) < frames and len(kept) / fps < end - 1e-6:
            kept.append(shown.square(size))
    except UserError:
        raise
    except Exception as error:      # each of FFmpeg's and Pillow's readers fails in its own way
        where = f" beyond {end:.2f} seconds" if shown else ""
        why = "truncated: its end is missing" if is_cut(path) else in_words(error)
        raise UserError(f"{path}: not a video that can be read{where} ({why}); fetch it again or "
                        f"save it as an mp4") from error
    if len(kept) == frames:
        return torch.stack(kept, dim=1)
    cut = is_cut(path) or length is not None and end < 0.95 * length - 0.1
    raise UserError(f"{path}: {'truncated' if cut else 'too short'}: {end:.2f} seconds are "
                    f"{len(kept)} frames at {fps:g} fps, and {frames} are needed "
                    f"({frames / fps:.2f} seconds); "
                    + ("fetch it again" if cut else "give a longer video or a higher --fps"))


def is_cut(path: Path) -> bool:
    """Whether an AVI, a WebP or an mp4 ends before the place where it says that it does."""
    size, at = path.stat().st_size, 0
    with path.open("rb") as file:
        head = file.read(16)
        if head[:4] == b"RIFF":
            return int.from_bytes(head[4:8], "little") + 8 > size
        for _ in range(1000 if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free") else 0):
            file.seek(at)
            head = file.read(16)        # of a box: its length, its kind, and the length if it is 1
            length = int.from_bytes(head[8:16] if head[:4] == b"\0\0\0\1" else head[:4], "big")
            at += length
            if length < 8 or at >= size:
                break
    return at > size


def _open(path: Path) -> tuple[float | None, float, Iterator[Shown]]:
    """How many seconds a file says that it has (None: not said); how finely its times are
    rounded; and what it shows, in order."""
    try:
        image = Image.open(path, formats=ANIMATED)
    except UnidentifiedImageError:
        container = av.open(f"file:{path}", metadata_errors="replace")
        stream = best_stream(path, container)
        length = stream.duration and float(stream.duration * stream.time_base)
        if length is None and len(container.streams) == 1 and container.duration:
            length = container.duration / av.time_base
        tick = min(float(stream.time_base or 0), 1 / 600)   # coarser ones are whole frames (AVI)
        return length, tick, _decode(path, container, stream)
    if getattr(image, "n_frames", 1) == 1 and not image.info.get("duration"):
        raise UserError(f"{path}: a single image, not a video; take it away, or name a video")
    return None, 0.01 if image.format == "GIF" else 0.001, _animation(image)


def _animation(image: Image.Image) -> Iterator[Shown]:
    """The frames of a GIF, WebP, PNG or AVIF file."""
    with image:
        if note := coded_colours_note(image):
            warnings.warn(f"{image.filename}: {note}", stacklevel=2)
        start = 0.0
        for k in range(int(getattr(image, "default_image", False)), image.n_frames):
            image.seek(k)
            copy = image.copy()         # a WebP tells a frame's duration when it is decoded
            duration = image.info.get("duration", 0) / 1000
            duration = duration if duration > 0.01 else 0.1     # as browsers do
            yield Shown(start, duration, lambda size, copy=copy: to_square(copy, size))
            start += duration


def best_stream(path: Path, container: av.container.InputContainer) -> av.VideoStream:
    """The video, where there are thumbnails and sound beside it."""
    stream = container.streams.best("video")
    if stream is None or stream.disposition & av.stream.Disposition.attached_pic:
        others = {s.type for s in container.streams} - {"video"}
        raise UserError(f"{path}: no video in this file, only "
                        f"{' and '.join(sorted(others)) or 'nothing'}; name another")
    if stream.width * stream.height > MOST_PIXELS:
        raise UserError(f"{path}: frames of {stream.width} x {stream.height} pixels are more than "
                        f"is read here ({MOST_PIXELS}); make them smaller first")
    return stream


def _decode(path: Path, container: av.container.InputContainer,
            stream: av.VideoStream) -> Iterator[Shown]:
    with container:
        step = float(1 / (stream.average_rate or stream.guessed_rate or Fraction(25)))
        aspect, picture = float(stream.sample_aspect_ratio or 1), Picture(path)
        for count, frame in enumerate(_frames(container, stream)):
            start = count * step if frame.pts is None else float(frame.pts * frame.time_base)
            duration = float(frame.duration * frame.time_base) if frame.duration else step
            yield Shown(start, duration, lambda size, frame=frame: turned(
                to_square(picture(frame), size, aspect), display_matrix(frame)))


def _frames(container: av.container.InputContainer,
            stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """The decoded frames of a stream, with the alpha that VP8 and VP9 keep beside them."""
    decoder, options = stream.codec_context, {"max_pixels": str(MOST_PIXELS)}
    told = {key.lower(): value for key, value in stream.metadata.items()}
    if told.get("alpha_mode") == "1" and decoder.name in ALPHA_DECODERS:
        decoder = av.CodecContext.create(ALPHA_DECODERS[decoder.name], "r")
    decoder.options, decoder.thread_type = options, "AUTO"
    for packet in container.demux(stream):
        yield from decoder.decode(packet)


class Picture:
    """A decoded frame -> a Pillow image in sRGB, with its alpha. One object a file."""

    def __init__(self, path: Path):
        self.path, self.reformatter = path, VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> Image.Image:
        alpha = any(component.is_alpha for component in frame.format.components)
        form, colours = "rgba" if alpha else "rgb24", self._conversion(frame)
        try:
            if colours and not CONVERTS:
                raise ValueError("PyAV is too old for it")
            plane = self.reformatter.reformat(frame, format=form, **colours).planes[0]
        except (av.FFmpegError, ValueError):
            if not colours:
                raise
            name = TRANSFERS.get(frame.color_trc, frame.color_trc)
            warnings.warn(f"{self.path}: its colours (transfer {name}, primaries "
                          f"{frame.color_primaries} of ITU-T H.273) cannot be converted to sRGB "
                          f"and are taken as they are", stacklevel=2)
            plane = self.reformatter.reformat(frame, format=form).planes[0]
        mode = "RGBA" if alpha else "RGB"
        return Image.frombuffer(mode, (frame.width, frame.height), bytes(plane), "raw", mode,
                                plane.line_size, 1)

    @staticmethod
    def _conversion(frame: av.VideoFrame) -> dict:
        """Of transfer and primaries, for the frames that a screen does not show as they are."""
        if frame.color_trc in NOT_FOR_SCREENS:
            return {"dst_color_trc": ColorTrc.IEC61966_2_1,
                    "dst_color_primaries": ColorPrimaries.BT709}
        if frame.color_primaries in WIDE:
            if frame.color_trc == ColorTrc.UNSPECIFIED:
                frame.color_trc = ColorTrc.BT709
            return {"dst_color_trc": frame.color_trc, "dst_color_primaries": ColorPrimaries.BT709}
        return {}


def display_matrix(frame: av.VideoFrame) -> tuple[int, int, int, int]:
    """(a, b, c, d): the stored pixel (x, y) is shown at (a x + c y, b x + d y), y down."""
    matrix = {data.type: data for data in frame.side_data}.get(SideData.DISPLAYMATRIX)
    if matrix is None:
        return 1, 0, 0, 1
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(matrix)[:36])
    return a, b, c, d


def turned(pixels: Tensor, matrix: tuple[int, int, int, int]) -> Tensor:
    """(3 H W), turned and mirrored by the quarter turn that is nearest to a display matrix."""
    a, b, c, d = matrix
    if abs(b) + abs(c) > abs(a) + abs(d):
        pixels, a, d = pixels.mT, c, b
    return pixels.flip([axis for axis, sign in ((-1, a), (-2, d)) if sign < 0])
