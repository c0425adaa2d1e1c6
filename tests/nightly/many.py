"""Much at once: a thousand photos, and an hour of 4K video."""

import os
import resource
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import av
from PIL import Image

from customttt.media.videos import read_video

from .runs import TINY, Child

MEGABYTES, SECONDS = 2000, 120      # bounds of each


def many(images: int, seconds: int) -> tuple[dict, list]:
    """`images` photos to one run, `seconds` of video, and what each takes."""
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        photos = place / "photos"
        photos.mkdir()
        photo = Image.effect_noise((1200, 900), 40).convert("RGB")
        photo.save(photos / "0000.jpg")
        for k in range(1, images):
            os.link(photos / "0000.jpg", photos / f"{k:04}.jpg")
        start = time.perf_counter()
        child = Child(["train", "--stage", "spatial", "--model", TINY, "--data", photos,
                       "--prompt", "a bear", "--steps", "1", "--sheet-every", "0", "--frames", "2",
                       "--output", place / "run"], place / "said")
        _, status, used = os.wait4(child.pid, 0)
        code, took = os.waitstatus_to_exitcode(status), time.perf_counter() - start
        faults = [] if code == 0 else [f"{images} photos: {child.text()[-300:]}"]
        faults += too_much(f"{images} photos", took, used.ru_maxrss / 1024)
        path, long = place / "long.mp4", 0.0
        write_long(path, seconds)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        clip = read_video(path, 16, 8, 256)
        long = time.perf_counter() - start
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        if clip.shape != (3, 16, 256, 256):
            faults.append(f"{seconds} s of video: {tuple(clip.shape)}")
        faults += too_much(f"{seconds} s of 4K video", long, grown)
    return {"photos": images, "their seconds": f"{took:.1f}",
            "their memory (MB)": f"{used.ru_maxrss / 1024:.0f}", "4K video (s)": seconds,
            "its seconds": f"{long:.1f}", "its memory (MB)": f"{grown:.0f}"}, faults


def write_long(path: Path, seconds: int) -> None:
    """4K at a frame a tenth of a second for two seconds, and then a frame every ten seconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 3840, 2160, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 10)
        for at in [*range(30), *range(100, 10 * seconds + 1, 100)]:
            frame = av.VideoFrame(3840, 2160, "yuv420p")
            frame.planes[0].update(bytes([16 + at % 200]) * frame.planes[0].buffer_size)
            for plane in frame.planes[1:]:
                plane.update(bytes([128]) * plane.buffer_size)
            frame.pts, frame.time_base = at, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def too_much(what: str, seconds: float, megabytes: float) -> list[str]:
    return [f"{what}: {seconds:.0f} s"] * (seconds > SECONDS) + [
        f"{what}: {megabytes:.0f} MB"] * (megabytes > MEGABYTES)
