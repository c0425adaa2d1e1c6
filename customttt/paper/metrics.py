"""The paper's four metrics, of videos.

  python -m customttt.paper.metrics VIDEO... --prompt "a teddy bear is lifting weights"
      --images IMAGE_OR_FOLDER... --reference VIDEO [--output scores.json]

  CLIP-T           the frames against the prompt (needs --prompt)
  CLIP-I           the frames against images of the subject (needs --images)
  consistency      each frame against the next
  motion fidelity  tracks against the motion video's (needs --reference): the supplement's equation
                   1, and the one-sided form of the published code

The first three are VGen's (its script for DreamVideo); --definition loveu has CLIP-T and
consistency of the LOVEU challenge, which most motion papers report. --clip: the files of
openai/clip-vit-base-patch32 are what VGen uses, clip-vit-large-patch14 what LOVEU does; without it,
the tiny world's own. Axes: f frames, d width, n and m tracks, t frames of a track.
"""

import argparse
import contextlib
import functools
import statistics
import warnings
from collections.abc import Sequence
from pathlib import Path

import av
import torch
from einops import rearrange
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError
from torch import Tensor

from ..errors import UserError, check_writable, command_parser, in_words, run_command
from ..files.reading import write_json
from ..media.clips import as_frames, to_images
from ..media.find import IMAGE_ENDINGS, find_files
from ..media.images import image_formats, what_to_do
from ..media.videos import ANIMATED, best_stream, display_matrix, read_video, turned
from ..run.options import check_prompts, device_named
from .clip import Embedder, all_clip_files, clip_fingerprint, load_clip
from .intervals import markdown
from .tracks import ENDINGS, SIDE, TRACKERS, read_tracks

LEAST_TRAVEL = 2.5      # pixels: a track that never leaves its start by more is background
FPS, MOST_FPS = 8.0, 1000
LOVEU_SIDE = 480        # pixels, square, that LOVEU's script resizes frames to


def clip_t(frames: Tensor, text: Tensor) -> float:
    """Mean cosine of the frames (f d) and the prompt (d), all unit vectors (VGen)."""
    return (frames @ text).mean().item()


def clip_i(frames: Tensor, images: Tensor) -> float:
    """Mean cosine of the frames (f d) and images of the subject (n d) (VGen)."""
    return (frames @ images.T).mean().item()


def consistency(frames: Tensor) -> float:
    """Mean cosine of consecutive frames (f d) (VGen)."""
    return (frames[1:] * frames[:-1]).sum(1).mean().item()


def consistency_loveu(frames: Tensor) -> float:
    """Mean cosine of all pairs of different frames (f d) (LOVEU)."""
    f = len(frames)
    return (((frames @ frames.T).sum() - f) / (f * (f - 1))).item()


def directions(tracks: Tensor) -> Tensor:
    """(n t 2) -> unit displacements (n t-1 2); zero where a point stands still, where the
    published code divides by zero."""
    steps = tracks.diff(dim=1)
    length = steps.norm(dim=-1, keepdim=True)
    return torch.where(length > 1e-6, steps / length.clamp(min=1e-6), 0.0)


def correlation(tracks: Tensor, others: Tensor) -> Tensor:
    """corr of the supplement's equation 1: (m t 2), (n t 2) -> (m n), the mean over time of the
    cosine of two displacements. Two points that stand still at that time agree; one does not."""
    a, b = directions(tracks), directions(others)
    still_a, still_b = ((each == 0).all(-1).float() for each in (a, b))
    return (torch.einsum("mtc,ntc->mn", a, b) + still_a @ still_b.T) / a.shape[1]


def motion_fidelity(tracks: Tensor, reference: Tensor) -> float:
    """The supplement's equation 1 over 2, so that it is at most 1 (the paper prints 0.56 to 0.75):

      1/2 (1/m sum_{generated} max_{reference} corr + 1/n sum_{reference} max_{generated} corr)

    Points that never move (LEAST_TRAVEL) are left out: they are most of a picture, and have no
    direction. 0 where no point moves in one of the clips; 1 where none moves in either.
    """
    check_tracks(tracks, reference)
    a, b = moving(tracks), moving(reference)
    if not len(a) or not len(b):
        return float(len(a) == len(b))
    corr = correlation(a, b)
    return ((corr.amax(1).mean() + corr.amax(0).mean()) / 2).item()


def moving(tracks: Tensor) -> Tensor:
    """Those of (n t 2) that leave their start."""
    return tracks[(tracks - tracks[:, :1]).norm(dim=-1).amax(1) > LEAST_TRAVEL]


def motion_fidelity_published(tracks: Tensor, reference: Tensor) -> float:
    """As the code of Yatim et al. (2024) has it: for each generated track the best cosine, mean.

    1 is subtracted where both tracks have the same number, as there; that needs as many of the one
    as of the other, which a tracker that loses points does not give.
    """
    check_tracks(tracks, reference)
    similarity = torch.einsum("ntc,mtc->nmt", directions(tracks), directions(reference)).mean(-1)
    if len(tracks) == len(reference):
        similarity = similarity - torch.eye(len(tracks))
    return similarity.amax(1).mean().item()


def check_tracks(tracks: Tensor, reference: Tensor) -> None:
    for each, whose in ((tracks, "the video"), (reference, "--reference")):
        if not len(each) or each.shape[1] < 2:
            raise UserError(f"motion fidelity: no tracks through {whose}: a tracker lost all "
                            f"points; give tracks as a file")
    if tracks.shape[1] != reference.shape[1]:
        raise UserError(f"motion fidelity: the video has {tracks.shape[1]} frames and --reference "
                        f"{reference.shape[1]}; give clips of one length")


def clip_scores(embedder: Embedder, frames: Sequence[Image.Image], prompt: str | None,
                images: Sequence[Image.Image], definition: str = "vgen") -> dict[str, float]:
    """CLIP-T, CLIP-I and consistency of a clip, those of them that can be had."""
    if len(frames) < 2:
        raise UserError(f"a video has two frames or more; this one has {len(frames)}")
    if definition == "loveu":
        frames = [frame.resize((LOVEU_SIDE, LOVEU_SIDE)) for frame in frames]
    embedded, scores = embedder.embed_images(frames), {}
    if prompt is not None:
        scores["CLIP-T"] = clip_t(embedded, embedder.embed_texts([prompt])[0])
        if definition == "loveu":       # a logit
            scores["CLIP-T"] *= embedder.clip.logit_scale.exp().item()
    if images and definition == "vgen":
        scores["CLIP-I"] = clip_i(embedded, embedder.embed_images(images))
    between = consistency_loveu if definition == "loveu" else consistency
    return scores | {"consistency": between(embedded)}


def fidelity_scores(tracks: Tensor, reference: Tensor) -> dict[str, float]:
    return {"motion fidelity": motion_fidelity(tracks, reference),
            "motion fidelity (published)": motion_fidelity_published(tracks, reference)}


def read_frames(path: Path) -> list[Image.Image]:
    """Every frame of a video file, upright, its pixels as VGen's script reads them."""
    try:
        with contextlib.suppress(UnidentifiedImageError), \
                Image.open(path, formats=ANIMATED) as image:
            return [frame.convert("RGB") for frame in ImageSequence.Iterator(image)]
        with av.open(f"file:{path}", metadata_errors="replace") as container:
            return [upright(frame) for frame in container.decode(best_stream(path, container))]
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(f"{path}: its frames do not fit into memory; cut it to the clip, or make "
                        f"it smaller") from error
    except Exception as error:      # each of their many readers fails in its own way
        raise UserError(f"{path}: not a video that can be read ({in_words(error)}); save it as an "
                        f"mp4") from error


def upright(frame: av.VideoFrame) -> Image.Image:
    """A frame as it is shown; VGen's script leaves aside how a file says that it is turned."""
    image, matrix = frame.to_image(), display_matrix(frame)
    if matrix[1:3] == (0, 0) and min(matrix) >= 0:
        return image
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    pixels = turned(rearrange(pixels, "(h w c) -> c h w", h=image.height, c=3), matrix)
    return to_images(rearrange(pixels, "c h w -> 1 h w c"))[0]


def open_image(path: Path) -> Image.Image:
    """An image as VGen's script opens it, but upright."""
    try:
        with warnings.catch_warnings(), Image.open(path, formats=image_formats()) as image:
            warnings.simplefilter("ignore")
            return ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:
        raise UserError(f"{path}: not an image that can be read ({in_words(error)}); "
                        f"{what_to_do(error)}") from error


@functools.cache
def reference_tracks(path: Path, frames: int, fps: float, tracker: str) -> Tensor:
    """Of the motion video: its first `frames` frames at `fps`, as --stage temporal sees them."""
    if path.suffix in ENDINGS:
        tracks = read_tracks(path, frames)
    else:
        pixels = read_video(path, frames, fps, SIDE)
        tracks = TRACKERS[tracker](to_images(as_frames(pixels.transpose(0, 1))))
    if len(tracks) and not len(moving(tracks)):
        raise UserError(f"{path}: no point in it moves by {LEAST_TRAVEL} pixels, where a frame's "
                        f"shorter side has {SIDE}; give a video that moves, or tracks in pixels")
    return tracks


def table(rows: dict[str, dict[str, float]]) -> str:
    """One row a video, and their mean."""
    columns = list(next(iter(rows.values())))
    mean = {name: statistics.mean(scores[name] for scores in rows.values()) for name in columns}
    every = rows | ({"mean": mean} if len(rows) > 1 else {})
    return markdown(["", *columns], ([name, *(f"{scores[each]:.4f}" for each in columns)]
                                     for name, scores in every.items()))


def parse() -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument("videos", nargs="+", type=Path, metavar="VIDEO")
    parser.add_argument("--prompt", nargs="+", help="one for all videos, or one for each")
    parser.add_argument("--images", nargs="+", type=Path, metavar="PATH", default=[],
                        help="of the subject")
    parser.add_argument("--reference", type=Path, metavar="VIDEO_OR_TRACKS", help="of the motion")
    parser.add_argument("--clip", type=Path, default=Path("weights/tiny/clip"), metavar="M",
                        help="folder or file of a CLIP (default: %(default)s)")
    parser.add_argument("--definition", choices=["vgen", "loveu"], default="vgen")
    parser.add_argument("--tracker", choices=list(TRACKERS), help="default: lucas-kanade")
    parser.add_argument("--tracks", nargs="+", type=Path, metavar="FILE",
                        help="of the videos, in place of --tracker, each "
                        f"(points, frames, 2), in pixels where the shorter side has {SIDE}: .npy, "
                        f".pt, .safetensors")
    parser.add_argument("--fps", type=float,
                        help=f"frames a second that are taken of --reference (default: {FPS:g})")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    parser.add_argument("--output", type=Path, metavar="FILE", help="the scores as JSON")
    args = parser.parse_args()
    for flag, given in (("--prompt", args.prompt), ("--tracks", args.tracks)):
        if given and len(given) != len(args.videos) and not (flag == "--prompt" and len(given) < 2):
            raise UserError(f"{flag}: {len(given)} for {len(args.videos)} videos; give one for "
                            f"each")
    if twice := [video for video in args.videos if args.videos.count(video) > 1]:
        raise UserError(f"{twice[0]}: given twice; give each video once")
    video = args.reference is not None and args.reference.suffix not in ENDINGS
    for flag, given, used in (("--tracks", args.tracks, True),
                              ("--tracker", args.tracker, video or not args.tracks),
                              ("--fps", args.fps, video)):
        if given is not None and (args.reference is None or not used):
            without = "--reference" if args.reference is None else "a video to track"
            raise UserError(f"{flag}: does nothing without {without}; leave it out")
    args.tracker, args.fps = args.tracker or "lucas-kanade", FPS if args.fps is None else args.fps
    if args.images and args.definition == "loveu":
        raise UserError("--images: LOVEU has no score against images; leave out --images or "
                        "--definition loveu")
    if not 0 < args.fps <= MOST_FPS:
        raise UserError(f"--fps {args.fps:g}: must be above 0, at most {MOST_FPS}")
    check_prompts(args)
    device_named(args.device)
    return args


def trackers(args: argparse.Namespace) -> dict[str, str] | None:
    """What followed the points, in the videos and in the reference."""
    if args.reference is None:
        return None
    return {"videos": "file" if args.tracks else args.tracker,
            "reference": "file" if args.reference.suffix in ENDINGS else args.tracker}


def main() -> None:
    args = parse()
    images = find_files(args.images, IMAGE_ENDINGS, "image", "--images")
    if args.output is not None:
        read = filter(None, (*args.videos, *images, *(args.tracks or ()), args.reference,
                             *all_clip_files(args.clip)))
        if args.output.resolve() in map(Path.resolve, read):
            raise UserError(f"--output {args.output}: is read, too; give another file")
        check_writable(args.output)
    embedder, images = load_clip(args.clip, args.device), list(map(open_image, images))
    prompts = args.prompt or [None]
    rows = {}
    for k, video in enumerate(args.videos):
        frames = read_frames(video)
        try:
            scores = clip_scores(embedder, frames, prompts[k % len(prompts)], images,
                                 args.definition)
            if args.reference is not None:
                reference = reference_tracks(args.reference, len(frames), args.fps, args.tracker)
                tracks = (read_tracks(args.tracks[k], len(frames)) if args.tracks else
                          TRACKERS[args.tracker](frames))
                scores |= fidelity_scores(tracks, reference)
        except UserError as error:
            raise UserError(f"{video}: {error}") from error
        rows[str(video)] = scores
    print(f"judged by {args.clip}\n{table(rows)}")
    if args.output is not None:
        write_json({"clip": args.clip.name, "judge": clip_fingerprint(args.clip), "definition": args.definition,
                    "tracker": trackers(args), "videos": rows}, args.output)


if __name__ == "__main__":
    run_command(main)
