"""What a file says about its pixels is followed; what is left out is said (tests/cases/README.md).

The files of tests/cases were made after public reports of what people's tools got wrong.
"""

import struct
import warnings
import zlib
from pathlib import Path

import av
import pytest
import torch
from einops import rearrange
from PIL import Image, ImageCms, TiffImagePlugin
from test_media import (RED, WHITE, assert_corners, gradient, levels, numbered, numbers, quarters,
                        write_clip)

from customttt.errors import UserError
from customttt.media.clips import as_pixels, write_frames
from customttt.media.find import IMAGE_ENDINGS, VIDEO_ENDINGS, find_files
from customttt.media.images import read_image, to_square
from customttt.media.videos import CONVERTS, read_video
from customttt.paper.metrics import read_frames

CASES = Path(__file__).parent / "cases"
SKIN, SKY = (224, 172, 105), (80, 140, 220)


def colours(pixels: torch.Tensor) -> torch.Tensor:
    """(3 h w) in [-1, 1] -> its pixels (n 3) in levels."""
    return rearrange(levels(pixels), "c h w -> (h w) c")


def has(pixels: torch.Tensor, colour: tuple[int, ...], tolerance: float) -> bool:
    """Whether a hundredth of the pixels has this colour."""
    near = (colours(pixels) - torch.tensor(colour)).abs().amax(dim=1) <= tolerance
    return near.float().mean().item() >= 0.01


# Images

def test_adobe_rgb_gives_the_same_pixels_as_srgb():
    a, b = (read_image(CASES / name, 256) for name in ("adobergb.jpg", "srgb.png"))
    assert (levels(a) - levels(b)).abs().max() <= 2


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_a_profile_is_followed_in_every_mode(tmp_path, mode):
    """Of Adobe RGB, from tests/cases: ImageCms says what each colour is in sRGB."""
    with Image.open(CASES / "adobergb.jpg") as photo:
        icc = photo.info["icc_profile"]
    image = Image.new("RGB", (40, 40), (200, 60, 30))
    image = image.quantize(4) if mode == "P" else image.convert(mode)
    image.save(tmp_path / "a.png", icc_profile=icc)
    right = ImageCms.profileToProfile(
        image.convert("RGB"), str(write(tmp_path / "adobe.icc", icc)),
        ImageCms.createProfile("sRGB"), renderingIntent=1).getpixel((0, 0))
    pixels = levels(read_image(tmp_path / "a.png", 8))[:, 4, 4]
    assert (pixels - torch.tensor(right)).abs().max() <= 2
    assert (pixels - torch.tensor(image.convert("RGB").getpixel((0, 0)))).abs().max() >= 20


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_lab_is_converted(tmp_path):
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    image = ImageCms.profileToProfile(Image.new("RGB", (40, 40), SKIN), srgb, lab, outputMode="LAB")
    image.save(tmp_path / "lab.tif")
    assert has(read_image(tmp_path / "lab.tif", 16), SKIN, 3)


def test_a_profile_that_is_none_is_said(tmp_path):
    Image.new("RGB", (40, 40), RED).save(tmp_path / "a.png", icc_profile=b"no profile" * 20)
    with pytest.warns(UserWarning, match=r"a\.png: its colour profile cannot be read"):
        assert has(read_image(tmp_path / "a.png", 16), RED, 1)


def linear_grey() -> bytes:
    """An ICC profile of grey whose levels are light."""
    white = struct.pack(">3I", 0xF6D6, 0x10000, 0xD32D)
    tags = {b"wtpt": b"XYZ " + bytes(4) + white, b"kTRC": b"curv" + bytes(8),
            b"cprt": b"text" + bytes(8)}
    at, table, content = 132 + 12 * len(tags), b"", b""
    for name, tag in tags.items():
        table += name + struct.pack(">2I", at + len(content), len(tag))
        content += tag
    head = (struct.pack(">I4xI", at + len(content), 0x02100000) + b"mntrGRAYXYZ " + bytes(12)
            + b"acsp" + bytes(28) + white).ljust(128, b"\0")
    return head + struct.pack(">I", len(tags)) + table + content


@pytest.mark.parametrize("mode, colour", [("L", 128), ("LA", (128, 255))])
def test_the_profile_of_grey_is_followed_with_alpha_too(tmp_path, recwarn, mode, colour):
    Image.new(mode, (40, 40), colour).save(tmp_path / "a.png", icc_profile=linear_grey())
    assert has(read_image(tmp_path / "a.png", 16), (188, 188, 188), 2)
    assert not recwarn.list


def test_the_gamma_of_a_png_is_followed(tmp_path):
    """A PNG of linear light (gAMA 1): level 55 is a fifth of the light, 128 in sRGB or nearly."""
    Image.new("RGB", (40, 40), (55, 55, 55)).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    chunk = b"gAMA" + struct.pack(">I", 100_000)
    chunk = struct.pack(">I", 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "a.png").write_bytes(content[:33] + chunk + content[33:])
    assert abs(levels(read_image(tmp_path / "a.png", 16)).mean() - 128) <= 2


@pytest.mark.parametrize("name, image", [
    ("one.tif", Image.new("F", (40, 40), 0.4)), ("levels.tif", Image.new("F", (40, 40), 102.0)),
    ("wide.tif", Image.new("F", (40, 40), 26214.0)),
    ("sixteen.tif", Image.new("I;16", (40, 40), 26214)),
    ("sixteen.pgm", Image.new("I", (40, 40), 26214)),
    ("thirty_two.tif", Image.new("I", (40, 40), 858993459))])
def test_levels_of_any_depth_keep_their_brightness(tmp_path, name, image):
    """102 of 255. A white pixel says how far the levels go where the file does not."""
    white = {"one.tif": 1.0, "levels.tif": 255.0, "wide.tif": 65535.0,
             "thirty_two.tif": 2 ** 31 - 1}.get(name)
    if white is not None:
        image.putpixel((0, 0), white)
    image.save(tmp_path / name)
    assert abs(levels(read_image(tmp_path / name, 8))[0, 5, 5] - 102) <= 1


def test_twelve_bits_are_scaled(tmp_path):
    """A TIFF of 12 bits, packed by hand: 1638 of 4095 is 102 of 255."""
    value = 1638
    pair = bytes([value >> 4, (value & 15) << 4 | value >> 8, value & 255])
    pixels = pair * (40 * 40 // 2)
    tags = {256: 40, 257: 40, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 40, 279: len(pixels)}
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag == 273 else 3, 1, v)
                       for tag, v in tags.items())
    (tmp_path / "a.tif").write_bytes(b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels
                                     + struct.pack("<H", len(tags)) + entries + bytes(4))
    assert abs(levels(read_image(tmp_path / "a.tif", 8)).mean() - 102) <= 1


@pytest.mark.parametrize("ending", [".gif", ".webp"])
def test_an_animation_given_as_an_image_is_said(tmp_path, ending):
    write_frames(gradient(), tmp_path / f"a{ending}")
    with pytest.warns(UserWarning, match=f"a{ending}: animated; its first frame is used"):
        read_image(tmp_path / f"a{ending}", 16)


def test_all_that_is_wrong_with_an_image_is_said(tmp_path):
    first, second = (Image.new("RGB", (16, 16), colour) for colour in ("red", "white"))
    first.save(tmp_path / "a.webp", save_all=True, append_images=[second], icc_profile=b"none" * 50)
    with pytest.warns(UserWarning) as said:
        read_image(tmp_path / "a.webp", 16)
    assert ["profile" in str(each.message) for each in said] == [True, False]
    assert "animated" in str(said[1].message)


def test_a_tiff_of_several_pages_is_said(tmp_path):
    first, second = (Image.new("RGB", (16, 16), colour) for colour in ("red", "white"))
    first.save(tmp_path / "a.tiff", save_all=True, append_images=[second])
    with pytest.warns(UserWarning, match="a.tiff: of several pages; its first is used"):
        assert has(read_image(tmp_path / "a.tiff", 16), (255, 0, 0), 1)


@pytest.mark.parametrize("tags", [{50706: b"\1\4\0\0"}, {254: 1, 330: (8,)}])
def test_a_raw_photo_is_not_taken_for_its_preview(tmp_path, tags):
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in tags.items():
        info[tag] = value
    Image.new("RGB", (16, 16)).save(tmp_path / "a.dng", format="TIFF", tiffinfo=info)
    with pytest.raises(UserError, match="a.dng: .*a raw photo.* save it as JPEG"):
        read_image(tmp_path / "a.dng", 16)


def test_no_shape_of_pixels_puts_the_square_outside():
    for width, height, aspect in ((480, 720, 40 / 33), (480, 720, 32 / 27), (320, 576, 8 / 9)):
        assert to_square(Image.new("RGB", (width, height)), 16, aspect).shape == (3, 16, 16)


def test_heic_says_what_to_do():
    with pytest.raises(UserError, match=r"IMG_0003\.HEIC: .*HEIC.* save it as JPEG"):
        read_image(CASES / "photos" / "IMG_0003.HEIC", 16)


def test_postscript_is_not_opened(tmp_path):
    """Pillow would run Ghostscript on it."""
    Image.new("RGB", (40, 40)).save(tmp_path / "a.eps")
    with pytest.raises(UserError, match="not an image that can be read"):
        read_image(tmp_path / "a.eps", 16)
    assert ".eps" not in IMAGE_ENDINGS and {".jfif", ".avif", ".jp2", ".tga"} <= IMAGE_ENDINGS


@pytest.mark.parametrize("primaries, transfer, said", [
    (9, 16, "transfer PQ, primaries 9"), (12, 13, "transfer 13, primaries 12"), (1, 13, None),
    (1, 8, "transfer linear, primaries 1")])
@pytest.mark.parametrize("profile", [False, True])
@pytest.mark.parametrize("animated", [False, True])
@pytest.mark.parametrize("ending", [".png", ".avif"])
def test_wide_colours_that_pillow_leaves_aside_are_said(tmp_path, ending, animated, profile,
                                                        primaries, transfer, said):
    """As numbers of ITU-T H.273: in a PNG's cICP chunk, in an AVIF's nclx box. With a profile, that
    is followed."""
    file, frames = tmp_path / f"a{ending}", numbered(8, (32, 32))
    more = {"save_all": True, "append_images": frames[1:], "duration": 125} if animated else {}
    if profile:
        more["icc_profile"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    frames[0].save(file, **more)
    content = file.read_bytes()
    if ending == ".png":
        body = b"cICP" + bytes([primaries, transfer, 0, 1])
        content = (content[:33] + struct.pack(">I", 4) + body + struct.pack(">I", zlib.crc32(body))
                   + content[33:])
    else:
        before, mark, after = content.partition(b"colrnclx")
        content = before + mark + struct.pack(">2H", primaries, transfer) + after[4:]
        assert mark
    file.write_bytes(content)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read_video(file, 8, 8, 32) if animated else read_image(file, 16)
    told = [str(each.message) for each in caught]
    assert len(told) == (said is not None and not profile)
    assert all(f"a{ending}: its colours ({said}" in each for each in told)


def test_a_phones_200_megapixels_are_read(tmp_path):
    Image.new("L", (16320, 12240), "white").save(tmp_path / "a.jpg")
    assert has(read_image(tmp_path / "a.jpg", 16), (255, 255, 255), 1)


def png(bits: int, colour: int, pixel: bytes, key: bytes) -> bytes:
    """40 x 40 of one colour, with a tRNS chunk, written by hand."""
    def chunk(name: bytes, content: bytes) -> bytes:
        return (struct.pack(">I", len(content)) + name + content
                + struct.pack(">I", zlib.crc32(name + content)))
    row = b"\0" + pixel * (40 if bits == 16 else 40 * bits // 8)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">2I5B", 40, 40, bits, colour, 0, 0, 0))
            + chunk(b"tRNS", key) + chunk(b"IDAT", zlib.compress(row * 40)) + chunk(b"IEND", b""))


@pytest.mark.parametrize("bits, colour, pixel, key, expected", [
    (2, 0, b"\x55", b"\0\1", 255), (2, 0, b"\x55", b"\0\2", 85),       # grey 1 of 3
    (4, 0, b"\x55", b"\0\5", 255), (4, 0, b"\x55", b"\0\x55", 85),     # grey 5 of 15
    (8, 0, b"\x55", b"\0\x55", 255), (16, 0, b"\x55\x55", b"\x55\x55", 255),
    (16, 2, b"\x55\x12" * 3, b"\x55\x12" * 3, 255),
    (16, 2, b"\x55\x12" * 3, b"\x12\x55" * 3, 85)])
def test_the_transparent_colour_of_a_png_in_every_depth(tmp_path, bits, colour, pixel, key,
                                                        expected):
    path = write(tmp_path / "a.png", png(bits, colour, pixel, key))
    assert abs(levels(read_image(path, 16)) - expected).max() <= 1


def test_a_tiff_whose_zero_is_white(tmp_path):
    Image.new("I;16", (40, 40), 0x3333).save(tmp_path / "a.tif", tiffinfo={262: 0})
    assert abs(levels(read_image(tmp_path / "a.tif", 16)) - 204).max() <= 1


def test_exif_that_cannot_be_read_is_said(tmp_path):
    Image.new("RGB", (40, 40), RED).save(tmp_path / "a.png", exif=b"Exif\0\0no tiff at all")
    with pytest.warns(UserWarning, match=r"a\.png: its EXIF data cannot be read"):
        assert has(read_image(tmp_path / "a.png", 16), RED, 1)


def test_a_png_with_a_wrong_byte_is_refused(tmp_path):
    Image.effect_noise((40, 40), 60).save(tmp_path / "a.png")
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[content.index(b"IDAT") + 500] ^= 255
    with pytest.raises(UserError, match=r"a\.png: not an image that can be read"):
        read_image(write(tmp_path / "a.png", content), 16)


def test_more_than_31_bits_are_refused(tmp_path):
    Image.new("I", (40, 40), -5).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match="save it with 16 bits"):
        read_image(tmp_path / "a.tif", 16)


# Folders

def test_photos_of_a_phone():
    with pytest.warns(UserWarning) as caught:
        found = find_files([CASES / "photos"], IMAGE_ENDINGS, "image")
    assert [path.name for path in found] == ["IMG_0001.JPG", "IMG_0002.jfif"]
    said, = (str(each.message) for each in caught)
    assert said.endswith("photos: 3 files: 2 images used; left out: IMG_0003.HEIC (Pillow cannot "
                         "read HEIC: save it as JPEG)")


def test_what_is_in_a_folder_is_used_or_named(tmp_path, recwarn):
    for name in ("a.png", "b.jfif", "a.txt", "notes.pdf", "lost.txt", ".DS_Store", "clip.mp4",
                 "10_cat/c.png", "10_cat/c.txt", "10_cat/d.raw", "masks/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find_files([tmp_path], IMAGE_ENDINGS, "image")
    assert [str(p.relative_to(tmp_path)) for p in found] == ["a.png", "b.jfif", "10_cat/c.png"]
    inner, left = (str(each.message) for each in recwarn)
    assert inner == (f"{tmp_path}: 1 of the 3 images used are in its sub-folders 10_cat; call a "
                     f"folder without a number in front to leave it out")
    assert left == (f"{tmp_path}: 8 files: 3 images used; left out: clip.mp4 (its ending says no "
                    f"image), lost.txt (its ending says no image), masks (a folder), notes.pdf "
                    f"(its ending says no image), 10_cat/d.raw (its ending says no image)")


def test_repeats_in_the_names_of_folders_are_said_not_to_count(tmp_path):
    for name in ("10_cat/a.png", "2_dog/b.png", "2_dog.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.warns(UserWarning) as caught:
        assert len(find_files([tmp_path], IMAGE_ENDINGS, "image")) == 2
    said, = (str(each.message) for each in caught)      # a folder's words are not left out
    assert "each image counts once, whatever number" in said


def test_a_folder_of_what_is_wanted_alone_is_quiet(tmp_path, recwarn):
    for name in ("a.png", "a.txt", "b.JPEG"):
        (tmp_path / name).touch()
    assert len(find_files([tmp_path], IMAGE_ENDINGS, "image")) == 2 and not recwarn.list


def test_a_folder_without_any_names_what_is_there(tmp_path):
    for k in range(9):
        (tmp_path / f"{k}.heic").touch()
    with pytest.raises(UserError, match=r"no image in this folder: 0\.heic \(Pillow cannot.* and 3 "
                                        r"more"):
        find_files([tmp_path], IMAGE_ENDINGS, "image")


# Videos

def test_a_pixel_that_is_not_square():
    """sar.mp4 shows a circle: as wide as it is high, within a pixel."""
    dark = levels(read_video(CASES / "sar.mp4", 16, 8, 320)[:, 8]).mean(dim=0) < 128
    height, width = (dark.any(dim=axis).sum().item() for axis in (1, 0))
    assert abs(width - height) <= 1 and height > 100


converted = pytest.mark.skipif(not CONVERTS, reason="PyAV 17 does not convert these: it is said")


@converted
def test_hlg_of_a_phone_has_its_colours():
    clip = read_video(CASES / "hdr_hlg.mov", 16, 8, 64)
    assert has(clip[:, 0], SKIN, 12) and has(clip[:, 0], SKY, 12)


def pq(nits: torch.Tensor) -> torch.Tensor:
    """SMPTE ST 2084: light -> signal."""
    y = (nits / 10_000) ** (2610 / 16384)
    return ((3424 / 4096 + 18.8515625 * y) / (1 + 18.6875 * y)) ** 78.84375


BT709_TO_2020 = torch.tensor([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114],
                              [0.0164, 0.0880, 0.8956]])


@converted
@pytest.mark.parametrize("colour", [SKIN, SKY, (250, 250, 250)])
def test_pq_with_white_at_203_nits_has_its_colours(tmp_path, colour):
    srgb = torch.tensor(colour) / 255
    light = torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    signal = (pq(203 * BT709_TO_2020 @ light) * 65535).round().to(torch.int32)
    frame = av.VideoFrame(64, 64, "rgb48le")
    frame.planes[0].update(struct.pack("<3H", *signal.tolist()) * 64 * 64)
    with av.open(str(tmp_path / "pq.mkv"), "w") as container:
        stream = container.add_stream("libx265", rate=4, options={"x265-params": "log-level=none"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p10le"
        stream.codec_context.color_trc, stream.codec_context.color_primaries = 16, 9
        stream.codec_context.colorspace, stream.codec_context.color_range = 9, 1
        for k in range(4):
            ready = frame.reformat(format="yuv420p10le", dst_colorspace="BT2020",
                                   dst_color_range="MPEG")
            ready.pts = k
            container.mux(stream.encode(ready))
        container.mux(stream.encode())
    assert has(read_video(tmp_path / "pq.mkv", 1, 1, 16)[:, 0], colour, 12)


def test_what_cannot_be_converted_is_said(tmp_path, monkeypatch):
    class Old:
        def reformat(self, frame, format, dst_color_trc=None, dst_color_primaries=None):
            if dst_color_trc is not None:
                raise av.FFmpegError(95, "Operation not supported")
            return frame.reformat(format=format)
    monkeypatch.setattr("customttt.media.videos.VideoReformatter", Old)
    with pytest.warns(UserWarning, match=r"hdr_hlg\.mov: .*transfer HLG.* taken as they are"):
        read_video(CASES / "hdr_hlg.mov", 1, 8, 16)
    monkeypatch.undo()
    monkeypatch.setattr("customttt.media.videos.CONVERTS", False)       # PyAV 17 raises nothing
    with pytest.warns(UserWarning, match=r"hdr_hlg\.mov: .*transfer HLG.* taken as they are"):
        read_video(CASES / "hdr_hlg.mov", 1, 8, 16)


@pytest.mark.parametrize("matrix, full", [
    (1, False), (5, False), pytest.param(9, False, marks=converted), (5, True)])
def test_matrix_and_range_of_a_video_are_followed(tmp_path, matrix, full):
    """Y'CbCr by BT.709, BT.601 and BT.2020, of limited and of full range: one colour."""
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=4)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv444p"
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, 1 + full
        frame = av.VideoFrame.from_image(Image.new("RGB", (64, 64), SKIN)).reformat(
            format="yuv444p", dst_colorspace=matrix, dst_color_range=1 + full)
        frame.pts = 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert has(read_video(tmp_path / "a.mkv", 1, 8, 16)[:, 0], SKIN, 3)


def test_hidden_black_of_vp9_lies_on_white():
    frame = levels(read_video(CASES / "alpha_vp9_black.webm", 16, 8, 64)[:, 8])
    assert (frame[:, 3, 3] - 255).abs().max() <= 2


def test_alpha_of_vp8_lies_on_white(tmp_path):
    with av.open(str(tmp_path / "a.webm"), "w") as container:
        stream = container.add_stream("libvpx", rate=4, options={"auto-alt-ref": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuva420p"
        stream.metadata["alpha_mode"] = "1"
        image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
        image.paste(RED + (255,), (0, 32, 64, 64))
        plane = av.VideoFrame(64, 64, "rgba")
        plane.planes[0].update(image.tobytes())
        for k in range(4):
            frame = plane.reformat(format="yuva420p")
            frame.pts = k
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    pixels = read_video(tmp_path / "a.webm", 4, 4, 32)[:, 2]
    assert has(pixels[:, :12], WHITE, 3) and has(pixels[:, 20:], RED, 12)
    assert not has(pixels, (0, 0, 0), 60)


def test_a_thumbnail_in_front_is_not_the_video():
    assert read_video(CASES / "cover_first.mp4", 24, 8, 32).shape == (3, 24, 32, 32)
    with pytest.raises(UserError, match="too short: 3.00 seconds"):
        read_video(CASES / "cover_first.mp4", 32, 8, 32)


def test_a_cover_alone_is_no_video(tmp_path):
    with av.open(str(CASES / "cover_first.mp4")) as source, \
            av.open(str(tmp_path / "song.mp4"), "w") as song:
        sound = song.add_stream("aac", rate=48000)
        cover = song.add_stream_from_template(source.streams.video[0])
        cover.disposition = av.stream.Disposition.attached_pic
        frame = av.AudioFrame(format="fltp", layout="mono", samples=1024)
        frame.planes[0].update(bytes(4096))
        frame.sample_rate, frame.pts = 48000, 0
        song.mux(sound.encode(frame) + sound.encode())
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = cover
                song.mux(packet)
    with pytest.raises(UserError, match=r"song\.mp4: no video in this file, only audio"):
        read_video(tmp_path / "song.mp4", 16, 8, 32)


# The display matrix of an mp4: (x, y) -> (a x + c y, b x + d y), y down. Mirrored as well.
@pytest.mark.parametrize("matrix, row_0, column_0", [
    ((1, 0, 0, 1), "top", "left"), ((0, 1, -1, 0), "right", "top"),
    ((-1, 0, 0, -1), "bottom", "right"), ((0, -1, 1, 0), "left", "bottom"),
    ((-1, 0, 0, 1), "top", "right"), ((1, 0, 0, -1), "bottom", "left"),
    ((0, 1, 1, 0), "left", "top"), ((0, -1, -1, 0), "right", "bottom")])
def test_turned_and_mirrored_videos_end_upright(tmp_path, matrix, row_0, column_0):
    path = tmp_path / "phone.mp4"
    write_clip(path, [quarters(96, 64, row_0, column_0)] * 8, fps=4)
    content = bytearray(path.read_bytes())
    at = content.find(b"tkhd") + 44
    a, b, c, d = (65536 * n for n in matrix)
    content[at:at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    assert_corners(read_video(path, 16, 8, 64)[:, 3], tolerance=12)
    image = read_frames(path)[3]                # of the metrics: the whole frame
    assert image.size == ((96, 64) if row_0 in ("top", "bottom") else (64, 96))
    x, y = (image.width - 64) // 2, (image.height - 64) // 2
    middle = bytearray(image.crop((x, y, x + 64, y + 64)).tobytes())
    pixels = as_pixels(torch.frombuffer(middle, dtype=torch.uint8).view(1, 64, 64, 3))
    assert_corners(pixels[0], tolerance=12)


def test_animated_webp_is_a_video(tmp_path):
    clip = read_video(CASES / "anim.webp", 16, 8, 64)
    assert (clip[:, 0] - clip[:, 15]).abs().max() > 0.5
    frames = rearrange(torch.arange(16), "f -> f 1 1 1").expand(16, 32, 32, 3).mul(12).add(10)
    for ending in (".webp", ".gif"):
        write_frames(frames.to(torch.uint8), tmp_path / f"a{ending}", fps=8)
        shown = numbers(read_video(tmp_path / f"a{ending}", 16, 8, 32))
        assert [round(n / 4) for n in shown] == list(range(16)), ending
    assert {".webp", ".gif"} <= VIDEO_ENDINGS


def test_an_animated_png_skips_the_picture_for_those_who_cannot_play_it(tmp_path):
    still, *moving = numbered(9, (32, 32))
    still.save(tmp_path / "a.png", save_all=True, append_images=moving, duration=125,
               default_image=True)
    assert numbers(read_video(tmp_path / "a.png", 8, 8, 32)) == list(range(1, 9))


@pytest.mark.parametrize("name", ["a.webp", "a.png", "a.gif", "a.avif"])
def test_a_single_image_is_no_video(tmp_path, name):
    Image.new("RGB", (40, 40)).save(tmp_path / name)
    with pytest.raises(UserError, match=f"{name}: a single image, not a video"):
        read_video(tmp_path / name, 16, 8, 32)


@pytest.mark.parametrize("name, codec", [("a.mkv", "libx264"), ("a.webm", "libvpx-vp9"),
                                         ("a.avi", "mpeg4"), ("front.mp4", "libx264"),
                                         ("a.mp4", "libx264"), ("a.gif", ""), ("a.webp", ""),
                                         ("a.apng", "")])
def test_a_clip_cut_short_is_said_to_be_truncated(tmp_path, name, codec):
    noise = [Image.effect_noise((64, 48), 60).convert("RGB") for _ in range(64)]
    if name == "a.apng":
        noise[0].save(tmp_path / name, save_all=True, append_images=noise[1:], duration=33)
    elif not codec:
        write_frames(torch.stack([torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
                                 .view(48, 64, 3) for image in noise]), tmp_path / name, 30)
    else:
        write_clip(tmp_path / name, noise, codec)
    if name == "front.mp4":                 # its index in front, as on the web
        with av.open(str(tmp_path / name)) as source, av.open(
                str(tmp_path / "b.mp4"), "w", options={"movflags": "+faststart"}) as moved:
            stream = moved.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(source.streams.video[0]):
                if packet.dts is not None:
                    packet.stream = stream
                    moved.mux(packet)
        (tmp_path / "b.mp4").replace(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[:len(content) // 2])
    with pytest.raises(UserError, match=rf"{name}: .*(?i:truncated)"):
        read_video(tmp_path / name, 16, 8, 32)


@pytest.mark.parametrize("name", ["12:30.mp4", "a%03d.mp4", "naïve 雪.mp4", "-y.mp4",
                                  "odd\udcff.mp4"])
def test_any_name_will_do(tmp_path, name):
    write_clip(tmp_path / "a.mp4", numbered(16), fps=8)
    (tmp_path / "a.mp4").rename(tmp_path / name)
    assert numbers(read_video(tmp_path / name, 16, 8, 32)) == list(range(16))
    write_frames(gradient(), tmp_path / ("out" + name))
    assert (tmp_path / ("out" + name)).stat().st_size > 500


# Clips out

@pytest.mark.parametrize("ending, fps", [(".gif", 8), (".gif", 30), (".gif", 7), (".webp", 30),
                                         (".webp", 8), (".gif", 0.5), (".gif", 50)])
def test_a_clip_plays_at_the_speed_asked_for(tmp_path, ending, fps):
    """Delays are whole 1/100 s in a GIF: they alternate, so that no frame is early by more."""
    frames = torch.randint(255, (24, 16, 16, 3), dtype=torch.uint8)
    write_frames(frames, tmp_path / f"a{ending}", fps)
    shown, times = 0.0, []
    with Image.open(tmp_path / f"a{ending}") as image:
        assert image.n_frames == 24
        for k in range(24):
            image.seek(k)
            image.load()
            shown += image.info["duration"] / 1000
            times.append(shown)
    early = [(k + 1) / fps - time for k, time in enumerate(times)]
    assert -1e-6 <= min(early) and max(early) < 0.01, early


@pytest.mark.parametrize("ending, fps", [(".gif", 60), (".gif", 1e-5), (".webp", 500),
                                         (".mp4", 1e6), (".mp4", 1e-4)])
def test_a_speed_that_a_format_cannot_hold_is_refused(tmp_path, ending, fps):
    with pytest.raises(UserError, match=rf"--fps \S+: a \{ending} file holds 0\.01 to "):
        write_frames(gradient(), tmp_path / f"a{ending}", fps)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fps", [0.01, 1000, 23.976])
def test_an_mp4_holds_every_speed_that_is_allowed(tmp_path, fps):
    write_frames(gradient(4, 32, 32), tmp_path / "a.mp4", fps)
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert abs(float(container.streams.video[0].average_rate) / fps - 1) < 1e-5


@converted
@pytest.mark.parametrize("primaries, from_709", [(9, BT709_TO_2020), (1, torch.eye(3))])
def test_wide_primaries_of_a_common_video_are_followed(tmp_path, primaries, from_709):
    """BT.2020 without HDR: as it is, the red would be 33 levels paler."""
    light = ((torch.tensor((200, 90, 60)) / 255 + 0.099) / 1.099) ** (1 / 0.45)
    signal = ((1.099 * (from_709 @ light) ** 0.45 - 0.099) * 65535).round().to(torch.int32)
    frame = av.VideoFrame(64, 64, "rgb48le")
    frame.planes[0].update(struct.pack("<3H", *signal.tolist()) * 64 * 64)
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=4)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv444p10le"
        stream.codec_context.color_trc, stream.codec_context.color_primaries = 1, primaries
        stream.codec_context.colorspace, stream.codec_context.color_range = 1, 1
        ready = frame.reformat(format="yuv444p10le", dst_colorspace=1, dst_color_range=1)
        ready.pts = 0
        container.mux(stream.encode(ready))
        container.mux(stream.encode())
    assert has(read_video(tmp_path / "a.mkv", 1, 8, 16)[:, 0], (200, 90, 60), 12)


def test_a_gif_without_delays_plays_as_in_a_browser(tmp_path):
    """A tenth of a second a frame, where it says one hundredth or nothing."""
    frames = numbered(8, (32, 32))
    for delay in (0, 10):
        frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=delay)
        assert numbers(read_video(tmp_path / "a.gif", 8, 10, 32)) == list(range(8))


def test_adobe_rgb_that_exif_alone_tells_is_said(tmp_path):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA005] = {1: "R03"}
    Image.new("RGB", (40, 40), RED).save(tmp_path / "a.jpg", exif=exif, quality=95)
    with pytest.warns(UserWarning, match=r"a\.jpg: in Adobe RGB without a profile"):
        read_image(tmp_path / "a.jpg", 16)


def test_frames_that_are_too_large_are_refused(tmp_path, monkeypatch):
    write_clip(tmp_path / "a.mp4", numbered(8))
    monkeypatch.setattr("customttt.media.videos.MOST_PIXELS", 64 * 48 - 1)
    with pytest.raises(UserError, match=r"a\.mp4: frames of 64 x 48 pixels are more than is read"):
        read_video(tmp_path / "a.mp4", 1, 8, 16)
