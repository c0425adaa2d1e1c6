"""Images in: any file that Pillow reads -> a square in [-1, 1], in the colours that it says."""

import io
import math
import warnings
from pathlib import Path

import torch
from einops import rearrange
from PIL import Image, ImageCms, ImageOps
from torch import Tensor

from ..errors import UserError, in_words

# Not opened: data without pixels, what Pillow only recognises, and what it gives to Ghostscript.
NO_IMAGES = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}
Image.init()
if Image.MAX_IMAGE_PIXELS is not None:      # Pillow refuses twice that: 200 megapixels are read
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, 2 ** 27)
ANIMATED = tuple(form for form in ("AVIF", "GIF", "PNG", "WEBP") if form in Image.OPEN)   # by age
SEVERAL = dict.fromkeys(ANIMATED, "animated; its first frame is used") | {
    "TIFF": "of several pages; its first is used"}
FREE_OF_ALPHA = ("L", "RGB", "CMYK")
PROFILE_MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}
BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262     # tags of a TIFF
DNG_VERSION, SUBFILE_TYPE, SUB_FILES = 50706, 254, 330
REDUCED = 1         # a bit of SUBFILE_TYPE: a smaller copy of another image in the file
FILTER = Image.Resampling.LANCZOS       # of all that is resized; a file of metrics names it
# Of ITU-T H.273: the bytes before primaries and transfer, and how many bytes each of the two has.
CODED = {"PNG": (b"cICP", 1), "AVIF": (b"colrnclx", 2)}
HEAD = 2 ** 16      # they are in so many first bytes of a file
WIDE = {9, 11, 12}      # primaries beyond sRGB's: BT.2020, DCI, P3
TRANSFERS = {8: "linear", 16: "PQ", 18: "HLG"}      # not for screens
SRGB_GAMMA = 0.45455        # what a PNG's gAMA chunk says of an image that is sRGB, or nearly


def image_formats() -> list[str]:
    """What Pillow calls the formats that are opened here."""
    return [name for name in Image.OPEN if name not in NO_IMAGES]


def image_endings() -> set[str]:
    """Every ending of these formats, lower case."""
    opened = image_formats()
    return {ending for ending, name in Image.registered_extensions().items() if name in opened}


def read_image(path: str | Path, size: int) -> Tensor:
    """An image file -> (3 size size) in [-1, 1]: upright, on white, centre square, in sRGB.
    Raises UserError."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")     # what Pillow warns of either fails or is harmless
            with Image.open(path, formats=image_formats()) as image:
                tags = getattr(image, "tag_v2", {})                         # of a TIFF
                if DNG_VERSION in tags or tags.get(SUBFILE_TYPE, 0) & REDUCED and SUB_FILES in tags:
                    raise ValueError("a raw photo, of which Pillow knows the preview alone")
                image.info |= {"bits": max(tags.get(BITS_PER_SAMPLE, (16,))),
                               "negative": tags.get(PHOTOMETRIC) == 0}
                scale_transparency(image)
                image.draft("RGB", (4 * size, 4 * size))    # a JPEG may decode at a smaller scale
                image.load()        # else a PNG's EXIF would, and its faults would be EXIF's
                notes = [exif_fault(image)]     # before Pillow asks for EXIF itself
                pixels = to_square(ImageOps.exif_transpose(image), size)
                notes.append(colour_note(image))
                if getattr(image, "n_frames", 1) > 1:
                    notes.append(SEVERAL.get(image.format))
    except Exception as error:      # each of Pillow's forty readers fails in its own way
        raise UserError(f"{path}: not an image that can be read ({_why(path, error)}); "
                        f"{what_to_do(error)}") from error
    for note in filter(None, notes):
        warnings.warn(f"{path}: {note}", stacklevel=2)
    return pixels


def exif_fault(image: Image.Image) -> str | None:
    """Asked once more, Pillow takes EXIF that it cannot read for none."""
    try:
        image.getexif()
    except Exception as error:
        return f"its EXIF data cannot be read ({in_words(error)}); taken as upright"
    return None


def scale_transparency(image: Image.Image) -> None:
    """A PNG's transparent colour, which Pillow leaves as the file has it, for eight bits. Of 16-bit
    colours eight bits are left, so that the nearest ones are transparent, too."""
    key = image.info.get("transparency")
    if image.format != "PNG" or key is None or not image.tile:
        return
    layout = image.tile[0][3]
    if layout in ("L;2", "L;4"):
        image.info["transparency"] = key * 255 // (2 ** int(layout[2]) - 1)
    elif layout == "RGB;16B":
        image.info["transparency"] = tuple(level >> 8 for level in key)


def _why(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        brand = file.read(12)[4:]
    if brand[:4] == b"ftyp" and brand[4:] in (b"heic", b"heix", b"heim", b"hevc", b"mif1", b"msf1"):
        return "HEIC, which Pillow does not know"
    return in_words(error)


def what_to_do(error: Exception) -> str:
    """What to do about an image that cannot be read."""
    return ("make it smaller" if isinstance(error, (Image.DecompressionBombError, MemoryError)) else
            "fetch it again, or save it as JPEG or PNG")


def to_square(image: Image.Image, size: int, aspect: float = 1.0) -> Tensor:
    """A Pillow image of any mode -> (3 size size) in [-1, 1], in sRGB and on white.

    `aspect` is the width of its pixels by their height.
    """
    image = in_srgb(on_white(image), image.info)
    side = min(image.width * aspect, image.height)      # of the centre square, in square pixels
    x = max(0., (image.width - side / aspect) / 2)      # the division rounds
    y = (image.height - side) / 2
    image = image.resize((size, size), FILTER, (x, y, image.width - x, image.height - y))
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return rearrange(pixels, "(h w c) -> c h w", h=size, c=3) / 127.5 - 1


def on_white(image: Image.Image) -> Image.Image:
    """Any mode -> L, RGB or CMYK of eight bits; what is transparent shows white."""
    if image.mode.startswith("I") or image.mode == "F":
        image = eight_bits(image)
    if image.has_transparency_data:
        mode, image = "L" if image.mode[0] == "L" else "RGB", image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert(mode)
    if image.mode == "LAB":
        return ImageCms.profileToProfile(image, ImageCms.createProfile("LAB"),
                                         ImageCms.createProfile("sRGB"), outputMode="RGB")
    return image if image.mode in FREE_OF_ALPHA else image.convert("RGB")


def eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 12, 16 or 32 bits, or of floating point, -> L: scaled, where convert() would clip.

    Floating point is 0 to 1, where it is at most twice that (highlights are clipped); integers are
    16 bits, where they are not more and a TIFF does not say otherwise.
    """
    wide = image.convert("F" if image.mode == "F" else "I")
    low, high = wide.getextrema()
    bits = min(image.info.get("bits", 16), 16)
    if image.mode == "F":
        if not math.isfinite(high - low):
            raise ValueError("it holds values that are not finite")
        full = next((full for full in (1, 255, 65535) if high <= 2 * full), high)
    else:
        if low < 0:
            raise ValueError("negative numbers, or more than 31 bits: save it with 16 bits")
        full = 2 ** bits - 1 if high < 65536 else 2 ** 31 - 1
    grey = wide.point(lambda level: level * (255 / full) + 0.5).convert("L")
    if image.info.get("negative"):      # a TIFF whose zero is white
        grey = ImageOps.invert(grey)
    if "transparency" in image.info:
        grey.info["transparency"] = round(image.info["transparency"] * 255 / full)
    return grey


def in_srgb(image: Image.Image, info: dict) -> Image.Image:
    """L, RGB or CMYK -> RGB in sRGB, by the colour profile (or PNG's gamma) in `info`."""
    if (profile := _profile(info)) is not None and _fits(image, profile):
        mode = PROFILE_MODES[profile.profile.xcolor_space]
        return ImageCms.profileToProfile(
            image.convert(mode), profile, ImageCms.createProfile("sRGB"), outputMode="RGB",
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION)
    image, gamma = image.convert("RGB"), info.get("gamma")
    if gamma and profile is None and "srgb" not in info and abs(gamma - SRGB_GAMMA) > 0.01:
        curve = [round(255 * (level / 255) ** (SRGB_GAMMA / gamma)) for level in range(256)]
        image = image.point(curve * 3)
    return image


def _profile(info: dict) -> ImageCms.ImageCmsProfile | None:
    try:
        return ImageCms.ImageCmsProfile(io.BytesIO(info["icc_profile"]))
    except (KeyError, TypeError, OSError, ImageCms.PyCMSError):
        return None


def _fits(image: Image.Image, profile: ImageCms.ImageCmsProfile) -> bool:
    """Whether a profile is of this image's colours; grey may have an RGB profile."""
    mode = PROFILE_MODES.get(profile.profile.xcolor_space)
    return mode == image.mode or (mode, image.mode) == ("RGB", "L")


def _interoperability(image: Image.Image) -> str | None:
    """EXIF's index, "R98" for sRGB. Before Pillow 13 a missing one raises KeyError."""
    exif = image.getexif()
    return exif.get_ifd(0xA005).get(1) if 0xA005 in exif.get_ifd(0x8769) else None


def colour_note(image: Image.Image) -> str | None:
    """What an image says about its colours that is not followed."""
    if image.info.get("icc_profile"):
        profile = _profile(image.info)
        if profile is None or not _fits(on_white(image), profile) and image.mode != "LAB":
            return "its colour profile cannot be read; its colours are taken as sRGB"
        return None
    if _interoperability(image) == "R03":
        return "in Adobe RGB without a profile; its colours are taken as sRGB"
    return coded_colours_note(image)


def coded_colours_note(image: Image.Image) -> str | None:
    """The same of the primaries and the transfer that a PNG or an AVIF file may name by number
    (ITU-T H.273), which Pillow leaves aside; a colour profile goes before them."""
    mark, width = CODED.get(image.format, (b"", 0))
    if not mark or image.info.get("icc_profile"):
        return None
    with open(image.filename, "rb") as file:
        _, _, said = file.read(HEAD).partition(mark)
    primaries, transfer = (int.from_bytes(said[k * width:(k + 1) * width], "big") for k in (0, 1))
    if primaries not in WIDE and transfer not in TRANSFERS:
        return None
    return (f"its colours (transfer {TRANSFERS.get(transfer, transfer)}, primaries "
            f"{primaries} of ITU-T H.273) are taken as sRGB")
