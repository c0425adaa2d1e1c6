"""Images and videos in, in every form that people have them, and clips out."""

import struct
from fractions import Fraction
from pathlib import Path

import av
import pytest
import torch
from einops import rearrange
from PIL import Image

from customttt.errors import UserError
from customttt.media.clips import WRITERS, as_frames, check_ending, contact_sheet, write_frames
from customttt.media.find import caption_beside, find_files
from customttt.media.images import read_image
from customttt.media.videos import read_video

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 128, 0), (0, 0, 255), (255, 255, 255)
CORNERS = {("top", "left"): RED, ("top", "right"): GREEN, ("bottom", "left"): BLUE,
           ("bottom", "right"): WHITE}
OPPOSITE = {"top": "bottom", "bottom": "top", "left": "right", "right": "left"}


def levels(pixels: torch.Tensor) -> torch.Tensor:
    """[-1, 1] -> 0 to 255."""
    return (pixels + 1) * 127.5


def assert_corners(pixels: torch.Tensor, tolerance: float = 6) -> None:
    """(3 s s): each quarter's middle has the colour of its corner."""
    quarter = pixels.shape[-1] // 4
    for (vertical, horizontal), colour in CORNERS.items():
        y = quarter if vertical == "top" else 3 * quarter
        x = quarter if horizontal == "left" else 3 * quarter
        found = levels(pixels)[:, y, x]
        assert (found - torch.tensor(colour)).abs().max() <= tolerance, (vertical, horizontal)


def quarters(width: int, height: int, row_0: str = "top", column_0: str = "left") -> Image.Image:
    """An image whose first row and first column are these sides of the upright picture."""
    image = Image.new("RGB", (width, height))
    for row, row_side in enumerate((row_0, OPPOSITE[row_0])):
        for column, column_side in enumerate((column_0, OPPOSITE[column_0])):
            sides = (row_side, column_side) if row_side in ("top", "bottom") else (
                column_side, row_side)
            box = (column * width // 2, row * height // 2)
            image.paste(CORNERS[sides], (*box, box[0] + width // 2, box[1] + height // 2))
    return image


# Exif 2.3, tag 274: where in the upright picture the stored first row and first column lie.
@pytest.mark.parametrize("orientation, row_0, column_0", [
    (1, "top", "left"), (2, "top", "right"), (3, "bottom", "right"), (4, "bottom", "left"),
    (5, "left", "top"), (6, "right", "top"), (7, "right", "bottom"), (8, "left", "bottom")])
def test_a_camera_jpeg_of_any_orientation_ends_upright(tmp_path, orientation, row_0, column_0):
    exif = Image.Exif()
    exif[274] = orientation
    quarters(3600, 2400, row_0, column_0).save(tmp_path / "photo.jpg", exif=exif, quality=90)
    pixels = read_image(tmp_path / "photo.jpg", 64)
    assert pixels.shape == (3, 64, 64)
    assert_corners(pixels)


def palette_with_transparency() -> Image.Image:
    image = Image.new("P", (40, 40), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.paste(0, (0, 0, 40, 20))
    image.info["transparency"] = 0
    return image


@pytest.mark.parametrize("name, image, top, bottom", [
    ("bits.png", Image.new("1", (40, 40), 1), WHITE, WHITE),
    ("grey.png", Image.new("L", (40, 40), 100), (100,) * 3, (100,) * 3),
    ("grey_alpha.png", Image.new("LA", (40, 40), (100, 128)), (177,) * 3, (177,) * 3),
    ("palette.png", palette_with_transparency(), WHITE, RED),
    ("palette.gif", palette_with_transparency(), WHITE, RED),
    ("alpha.png", Image.new("RGBA", (40, 40), (255, 0, 0, 64)), (255, 191, 191), (255, 191, 191)),
    ("clear.webp", Image.new("RGBA", (40, 40), (9, 9, 9, 0)), WHITE, WHITE),
    ("sixteen.png", Image.new("I;16", (40, 40), 26214), (102,) * 3, (102,) * 3),
    ("sixteen.tif", Image.new("I;16", (40, 40), 26214), (102,) * 3, (102,) * 3),
    ("thirty_two.tif", Image.new("I", (40, 40), 26214), (102,) * 3, (102,) * 3),
    ("print.jpg", Image.new("CMYK", (40, 40), (0, 255, 255, 0)), RED, RED),
    ("print.tif", Image.new("CMYK", (40, 40), (255, 255, 0, 0)), BLUE, BLUE),
    ("video.jpg", Image.new("RGB", (40, 40), BLUE).convert("YCbCr"), BLUE, BLUE),
    ("plain.bmp", Image.new("RGB", (40, 40), GREEN), GREEN, GREEN),
], ids=lambda value: value if isinstance(value, str) else "")
def test_every_mode_of_pillow_comes_out_in_its_colour_on_white(tmp_path, name, image, top, bottom):
    image.save(tmp_path / name)
    pixels = levels(read_image(tmp_path / name, 16))
    for row, colour in ((3, top), (12, bottom)):
        assert (pixels[:, row, 8] - torch.tensor(colour)).abs().max() <= 3, pixels[:, row, 8]


def test_sixteen_bits_of_grey_are_scaled_not_clipped(tmp_path):
    image = Image.frombytes("I;16", (256, 256), struct.pack("<256H", *range(0, 65536, 256)) * 256)
    image.save(tmp_path / "ramp.png")
    row = levels(read_image(tmp_path / "ramp.png", 256))[0, 100]
    assert (row - torch.arange(256)).abs().max() <= 1.5


def test_floating_point_of_grey_is_clipped_above_one_and_finite(tmp_path):
    image = Image.new("F", (40, 40), 0.5)
    image.putpixel((0, 0), 1.02)        # a highlight
    image.save(tmp_path / "light.tif")
    assert abs(levels(read_image(tmp_path / "light.tif", 16))[:, 8, 8] - 128).max() <= 1
    image.putpixel((0, 0), float("nan"))
    image.save(tmp_path / "none.tif")
    with pytest.raises(UserError, match="none.tif: .*not finite"):
        read_image(tmp_path / "none.tif", 16)


@pytest.mark.parametrize("size", [(300, 100), (100, 300)])
def test_the_centre_square_is_kept(tmp_path, size):
    image = Image.new("RGB", size, RED)
    image.paste(GREEN, (100, 0, 200, 100) if size[0] > size[1] else (0, 100, 100, 200))
    image.save(tmp_path / "wide.png")
    pixels = levels(read_image(tmp_path / "wide.png", 40))
    assert pixels.shape == (3, 40, 40)
    assert (pixels[:, 2:-2, 2:-2] - torch.tensor(GREEN)[:, None, None]).abs().max() <= 3


def test_a_folder_gives_its_images_in_order_and_nothing_else(tmp_path):
    for name in ("b.JPG", "a.png", ".hidden.png", "a.txt", "b.TXT", "notes.md"):
        (tmp_path / name).touch()
    found = find_files([tmp_path, tmp_path / "b.JPG"], {".png", ".jpg"}, "image")
    assert [path.name for path in found] == ["a.png", "b.JPG", "b.JPG"]
    (tmp_path / "b.TXT").write_text("a bear\n", encoding="utf-8-sig")      # as Notepad saves it
    assert caption_beside(tmp_path / "b.JPG") == "a bear"
    (tmp_path / "photos" / "more").mkdir(parents=True)
    (tmp_path / "photos.txt").write_text("a teddy")
    assert caption_beside(tmp_path / "photos" / "more" / "..") == "a teddy"


# Videos in

def write_clip(path: Path, frames: list, codec: str = "libx264", pix_fmt: str = "yuv420p",
               fps: int = 30, times: list[int] | None = None) -> None:
    """Pillow images -> a video file; `times` in milliseconds make it of variable frame rate."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height = frames[0].size
        stream.pix_fmt, stream.bit_rate = pix_fmt, 4_000_000
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for k, image in enumerate(frames):
            rows = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
            frame = av.VideoFrame.from_ndarray(rearrange(
                rows, "(h w c) -> h w c", h=image.height, w=image.width).numpy(),
                format=image.mode.lower() + ("24" if image.mode == "RGB" else ""))
            if times is not None:
                frame.pts, frame.time_base = times[k], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def numbered(count: int, size: tuple[int, int] = (64, 48)) -> list[Image.Image]:
    """Frame n is grey of level 3 n + 10."""
    return [Image.new("RGB", size, (3 * n + 10,) * 3) for n in range(count)]


def numbers(clip: torch.Tensor) -> list[int]:
    """The source frame of each frame of (3 f s s)."""
    return [round((level.item() - 10) / 3) for level in levels(clip).mean(dim=(0, 2, 3))]


@pytest.mark.parametrize("name, codec", [("clip.mp4", "libx264"), ("clip.webm", "libvpx-vp9"),
                                         ("clip.mkv", "libx264"), ("clip.avi", "mpeg4")])
def test_thirty_frames_a_second_become_eight_by_their_timestamps(tmp_path, name, codec):
    write_clip(tmp_path / name, numbered(64), codec)
    clip = read_video(tmp_path / name, 16, 8, 32)
    assert clip.shape == (3, 16, 32, 32)
    assert numbers(clip) == [int(3.75 * k) for k in range(16)]


@pytest.mark.parametrize("name, codec, fps", [
    ("clip.webm", "libvpx-vp9", 24), ("clip.mkv", "libx264", 30), ("clip.mkv", "libx264", 12)])
@pytest.mark.parametrize("first", [0, 1])
def test_a_video_at_its_own_rate_keeps_every_frame(tmp_path, name, codec, fps, first):
    """Though its times are rounded to milliseconds, up or down; the first one's, too."""
    times = [round(1000 * k / fps) for k in range(first, first + 16)]
    write_clip(tmp_path / name, numbered(16), codec, times=times)
    assert numbers(read_video(tmp_path / name, 16, fps, 32)) == list(range(16))


@pytest.mark.parametrize("first", [120, 130])
def test_a_gif_of_eight_frames_a_second_keeps_every_frame(tmp_path, first):
    """A GIF's times are hundredths of a second, so writers take 0.12 and 0.13 by turns."""
    frames = numbered(16)
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:],
                   duration=[first, 250 - first] * 8)
    assert numbers(read_video(tmp_path / "a.gif", 16, 8, 32)) == list(range(16))


def test_a_slower_video_repeats_its_frames(tmp_path):
    write_clip(tmp_path / "slow.mp4", numbered(8), fps=4)
    assert numbers(read_video(tmp_path / "slow.mp4", 16, 8, 32)) == [k // 2 for k in range(16)]


@pytest.mark.parametrize("name", ["vfr.mp4", "vfr.mkv"])
def test_variable_frame_rate_shows_what_was_on_at_each_moment(tmp_path, name):
    times = [0, 40, 80, 300, 320, 340, 900, 1000, 1010, 1020, 1030, 1200, 1300, 1700, 1800, 1950]
    write_clip(tmp_path / name, numbered(16), times=[500 + t for t in times])
    on_show = [max(n for n, t in enumerate(times) if t <= 125 * k) for k in range(16)]
    assert numbers(read_video(tmp_path / name, 16, 8, 32)) == on_show


@pytest.mark.parametrize("size", [(65, 49), (31, 77)])
def test_odd_sizes(tmp_path, size):
    write_clip(tmp_path / "odd.mp4", [quarters(*size)] * 8, pix_fmt="yuv444p", fps=4)
    clip = read_video(tmp_path / "odd.mp4", 16, 8, 32)
    assert clip.shape == (3, 16, 32, 32)
    assert_corners(clip[:, 7], tolerance=12)


# The display matrix of an mp4: (x, y) -> (a x + c y, b x + d y), y down, as a phone writes it.
@pytest.mark.parametrize("matrix, row_0, column_0", [
    ((1, 0, 0, 1), "top", "left"), ((0, 1, -1, 0), "right", "top"),
    ((-1, 0, 0, -1), "bottom", "right"), ((0, -1, 1, 0), "left", "bottom")])
def test_a_phone_video_ends_upright(tmp_path, matrix, row_0, column_0):
    path = tmp_path / "phone.mp4"
    write_clip(path, [quarters(96, 64, row_0, column_0)] * 8, fps=4)
    content = bytearray(path.read_bytes())
    at = content.find(b"tkhd") + 44         # version 0: the matrix is 40 bytes into the box's body
    a, b, c, d = (65536 * n for n in matrix)
    assert struct.unpack(">9i", content[at:at + 36]) == (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    content[at:at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    assert_corners(read_video(path, 16, 8, 64)[:, 3], tolerance=12)


@pytest.mark.parametrize("name, codec, pix_fmt", [
    ("clip.mov", "qtrle", "argb"), ("clip.mov", "png", "rgba"), ("clip.mkv", "ffv1", "bgra"),
    ("clip.apng", "apng", "rgba")])
def test_transparent_video_lies_on_white(tmp_path, name, codec, pix_fmt):
    image = Image.new("RGBA", (50, 50), (255, 0, 0, 128))
    image.paste((0, 0, 0, 0), (0, 0, 50, 25))
    write_clip(tmp_path / name, [image] * 8, codec, pix_fmt, fps=4)
    pixels = levels(read_video(tmp_path / name, 16, 8, 32)[:, 5])
    assert (pixels[:, 4, 16] - 255).abs().max() <= 1
    assert (pixels[:, 28, 16] - torch.tensor([255, 127, 127])).abs().max() <= 2


def test_a_transparent_gif_lies_on_white(tmp_path):
    frames = [Image.new("RGBA", (40, 40), (255, 0, 0, 255)) for _ in range(10)]
    for frame in frames:
        frame.paste((0, 0, 0, 0), (0, 0, 40, 20))
    frames[0].save(tmp_path / "clip.gif", save_all=True, append_images=frames[1:], duration=[
        200 + 10 * k for k in range(10)])
    pixels = levels(read_video(tmp_path / "clip.gif", 16, 8, 32)[:, 9])
    assert (pixels[:, 4, 16] - 255).abs().max() <= 1
    assert (pixels[:, 28, 16] - torch.tensor(RED)).abs().max() <= 3


def test_two_seconds_are_exactly_enough_and_a_frame_less_is_too_short(tmp_path):
    write_clip(tmp_path / "enough.mp4", numbered(16), fps=8)
    assert numbers(read_video(tmp_path / "enough.mp4", 16, 8, 32)) == list(range(16))
    write_clip(tmp_path / "short.mp4", numbered(15), fps=8)
    with pytest.raises(UserError, match=r"short\.mp4: too short: 1\.88 seconds are 15 frames"):
        read_video(tmp_path / "short.mp4", 16, 8, 32)


def write_sound(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=48000)
        frame = av.AudioFrame(format="fltp", layout="mono", samples=1024)
        frame.planes[0].update(bytes(4096))
        frame.sample_rate, frame.pts = 48000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_sound_alone_is_no_video(tmp_path):
    write_sound(tmp_path / "song.mp4")
    with pytest.raises(UserError, match=r"song\.mp4: no video in this file, only audio"):
        read_video(tmp_path / "song.mp4", 16, 8, 32)


@pytest.mark.parametrize("keep", [0, 20, 0.5])
def test_a_broken_video_is_said_to_be_broken(tmp_path, keep):
    write_clip(tmp_path / "clip.mp4", numbered(64))
    content = (tmp_path / "clip.mp4").read_bytes()
    end = int(keep * len(content)) if isinstance(keep, float) else keep
    (tmp_path / "clip.mp4").write_bytes(content[:end])
    with pytest.raises(UserError, match=r"clip\.mp4: not a video that can be read"):
        read_video(tmp_path / "clip.mp4", 16, 8, 32)


# Clips out

def gradient(frames: int = 6, height: int = 96, width: int = 96) -> torch.Tensor:
    """A clip of smooth colours that drift: (f H W 3) uint8."""
    f, y, x = torch.meshgrid(torch.arange(frames) / frames, torch.arange(height) / height,
                             torch.arange(width) / width, indexing="ij")
    channels = (x, (y + f) / 2, 0.3 + 0.4 * (x + y) / 2)
    return (torch.stack(channels, dim=-1) * 255).round().to(torch.uint8)


def pages(path: Path) -> torch.Tensor:
    """Every frame of a Pillow-readable file, (f H W 3)."""
    with Image.open(path) as image:
        frames = []
        for k in range(getattr(image, "n_frames", 1)):
            image.seek(k)
            rgb = image.convert("RGB")
            frames.append(torch.frombuffer(bytearray(rgb.tobytes()), dtype=torch.uint8).view(
                rgb.height, rgb.width, 3))
    return torch.stack(frames)


def mean_error(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a.float() - b.float()).abs().mean().item()


@pytest.mark.parametrize("ending", list(WRITERS))
@pytest.mark.parametrize("wrong", [
    gradient().permute(0, 3, 1, 2), gradient()[..., :1], gradient().float(), gradient()[0],
    gradient()[:0], torch.cat([gradient(), gradient()[..., :1]], dim=-1)])
def test_only_frames_are_written(tmp_path, ending, wrong):
    with pytest.raises(ValueError, match=r"frames: uint8 \(f H W 3\) with f at least 1; got torch"):
        write_frames(wrong, tmp_path / f"clip{ending}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("height, width", [(96, 96), (97, 95)])
def test_mp4_opens_again_as_h264_with_its_frames_and_colours(tmp_path, height, width):
    frames = gradient(height=height, width=width)
    write_frames(frames, tmp_path / "clip.mp4", fps=8)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        stream = container.streams.video[0]
        read = [torch.from_numpy(frame.to_ndarray(format="rgb24"))
                for frame in container.decode(stream)]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.width, stream.height) == (width // 2 * 2, height // 2 * 2)
        assert stream.average_rate == 8 and len(read) == len(frames)
    error = mean_error(torch.stack(read), frames[:, :height // 2 * 2, :width // 2 * 2])
    print(f"mean colour error of an mp4: {error:.2f} of 255")
    assert error < 2


def test_mp4_has_its_index_in_front_and_says_its_colours(tmp_path):
    """A browser plays it while it loads, and no player guesses the matrix."""
    write_frames(gradient(), tmp_path / "clip.mp4", fps=7.5)
    content = (tmp_path / "clip.mp4").read_bytes()
    assert content.find(b"moov") < content.find(b"mdat")
    with av.open(str(tmp_path / "clip.mp4")) as container:
        assert container.streams.video[0].average_rate == Fraction(15, 2)
        assert next(container.decode(video=0)).colorspace in (5, 6)         # BT.601


def local_palettes(content: bytes) -> tuple[int, int]:
    """(frames, frames with a palette of their own) of a GIF, by its blocks."""
    def skip(at: int) -> int:               # past a chain of sub-blocks
        while content[at]:
            at += content[at] + 1
        return at + 1
    at, frames, own = 13 + 3 * 2 ** ((content[10] & 7) + 1), 0, 0
    while content[at] != 0x3B:
        if content[at] == 0x21:             # an extension
            at = skip(at + 2)
        else:                               # an image
            flags = content[at + 9]
            frames, own = frames + 1, own + (flags >> 7)
            at = skip(at + 11 + (3 * 2 ** ((flags & 7) + 1) if flags >> 7 else 0))
    return frames, own


def box_means(frames: torch.Tensor) -> torch.Tensor:
    """What the eye sees from afar: means of 8 x 8 pixels."""
    return rearrange(frames.float(), "f (y i) (x j) c -> f y x c i j", i=8, j=8).mean(dim=(-1, -2))


def test_gif_has_one_palette_and_no_banding(tmp_path):
    frames = gradient()
    write_frames(frames, tmp_path / "clip.gif", fps=8)
    content = (tmp_path / "clip.gif").read_bytes()
    assert local_palettes(content) == (len(frames), 0)
    seen = pages(tmp_path / "clip.gif")
    web = Image.new("P", (1, 1))
    steps = range(0, 256, 51)
    web.putpalette([level for r in steps for g in steps for b in steps for level in (r, g, b)])
    banded = torch.stack([torch.frombuffer(bytearray(Image.fromarray(frame.numpy()).quantize(
        palette=web, dither=Image.Dither.NONE).convert("RGB").tobytes()), dtype=torch.uint8).view(
            frame.shape) for frame in frames])
    ours, theirs = (mean_error(box_means(some), box_means(frames)) for some in (seen, banded))
    pixels = [round(mean_error(some, frames), 2) for some in (seen, banded)]
    print(f"gif: 8 x 8 means off by {ours:.2f} of 255, the undithered web palette's by "
          f"{theirs:.2f}; single pixels by {pixels}")
    assert ours < 1.6 and ours < theirs / 5
    assert mean_error(seen, frames) < 7


def test_gif_and_webp_last_as_long_as_the_clip_and_read_back(tmp_path):
    frames = gradient(frames=17, height=32, width=32)
    for ending in (".gif", ".webp"):
        write_frames(frames, tmp_path / f"clip{ending}", fps=8)
        with Image.open(tmp_path / f"clip{ending}") as image:
            assert image.n_frames == 17 and image.info["loop"] == 0
    assert read_video(tmp_path / "clip.gif", 16, 8, 32).shape == (3, 16, 32, 32)
    error = mean_error(pages(tmp_path / "clip.webp"), frames)
    print(f"mean colour error of a webp: {error:.2f} of 255")
    assert error < 4


def test_a_gif_that_stands_still_lasts_as_long(tmp_path):
    frames = gradient(frames=1, height=32, width=32).expand(16, -1, -1, -1)
    write_frames(frames, tmp_path / "still.gif", fps=8)
    with Image.open(tmp_path / "still.gif") as image:
        assert image.info["duration"] == 2000
    assert read_video(tmp_path / "still.gif", 16, 8, 32).shape == (3, 16, 32, 32)


def test_png_is_the_frames_in_a_row_bit_for_bit(tmp_path):
    frames = gradient(frames=3, height=32, width=40)
    write_frames(frames, tmp_path / "sheet.png")
    sheet = pages(tmp_path / "sheet.png")[0]
    assert torch.equal(rearrange(sheet, "h (f w) c -> f h w c", f=3), frames)


def test_contact_sheet_puts_one_clip_a_row(tmp_path):
    clips = [gradient(frames=4, height=16, width=16), gradient(frames=2, height=16, width=16) // 2]
    sheet = contact_sheet(clips, gap=2)[0]
    assert sheet.shape == (36, 72, 3)
    assert torch.equal(sheet[:16, 18:34], clips[0][1])
    assert torch.equal(sheet[18:34, :16], clips[1][0])
    assert (sheet[18:, 36:] == 255).all()


@pytest.mark.parametrize("name", ["clip.mpg", "clip", "clip.mp4.txt"])
def test_an_unknown_ending_is_refused(tmp_path, name):
    with pytest.raises(UserError, match=r"--output .*: the ending must say the format"):
        check_ending(tmp_path / name)


def test_pixels_are_rounded_to_the_nearest_level():
    levels = torch.tensor([-9, 0, 0.4, 0.6, 99.6, 255, 300]).view(1, 1, 1, 7).expand(1, 3, 1, 7)
    assert as_frames(levels / 127.5 - 1)[0, 0, :, 0].tolist() == [0, 0, 0, 1, 100, 255, 255]


@pytest.mark.parametrize("ending", WRITERS)
def test_a_writer_that_fails_leaves_nothing(tmp_path, monkeypatch, ending):
    def fail(images, path, fps):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")
    monkeypatch.setitem(WRITERS, ending, fail)
    (tmp_path / f"clip{ending}").write_bytes(b"before")
    with pytest.raises(UserError, match=f"clip{ending}: cannot be written .No space left"):
        write_frames(gradient(), tmp_path / f"clip{ending}")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"before"]
