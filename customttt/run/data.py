"""What each stage learns from: images, clips, or the LoRAs of the stages before it.

Axes: n images or clips, f frames, H W pixels, h w latent rows and columns.
"""

import hashlib
import warnings
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from einops import rearrange
from PIL import Image
from torch import Generator, Tensor
from tqdm import tqdm

from ..draws import stream_seed
from ..errors import UserError, in_words
from ..files.lora_files import find_lora, load_lora
from ..lora import add_lora
from ..media.clips import as_frames
from ..media.find import IMAGE_ENDINGS, VIDEO_ENDINGS, caption_beside, find_files
from ..media.images import read_image, to_square
from ..media.videos import read_video
from ..model.model import Model
from ..sampling import latent_shape
from .checkpoint import is_of_a_run
from .options import check_prompt, require_motion, say_base, trained_at
from .stage import Job

OUTPUT = Path("output")
MOST_KEPT = 10_000      # squares of a data.png that a contact sheet repeats


class Texts(NamedTuple):
    """Text embeddings (1 77 d) of stage (c)."""

    target: Tensor
    appearance: Tensor      # of the spatial teacher
    motion: Tensor          # of the temporal teacher
    empty: Tensor


def add_data_flags(parser: ArgumentParser) -> None:
    parser.add_argument("--data", nargs="+", type=Path, metavar="PATH",
                        help="images, videos, or folders of them (default: the model folder's own "
                        "examples)")
    parser.add_argument("--prompt", help="what the data shows, where no text file beside an image "
                        "or video says it; what the LoRA is for (default: the first file's)")


def add_ttt_flags(parser: ArgumentParser) -> None:
    for kind in ("spatial", "temporal"):
        parser.add_argument(f"--{kind}", type=Path, metavar="LORA", default=OUTPUT / kind,
                            help=f"what --stage {kind} wrote, file or folder (default: "
                            f"%(default)s)")
    parser.add_argument("--prompt", help="what to join (default: the two stages' prompts joined)")
    parser.add_argument("--appearance-prompt", help="of the spatial teacher")
    parser.add_argument("--motion-prompt", help="of the temporal teacher")


def prepare_spatial(model: Model, settings: dict, args: Namespace) -> Job:
    """Images of the subject; LoRA on the spatial transformers (the paper's W_s)."""
    lora = put_fresh_lora(model, settings, "spatial")
    job = read_images(model, settings, args)
    return replace(job, metadata=lora | job.metadata)


def prepare_temporal(model: Model, settings: dict, args: Namespace) -> Job:
    """Clips of the motion; LoRA on the motion modules (the paper's W_t)."""
    require_motion(model)
    lora = put_fresh_lora(model, settings, "temporal")
    job = read_clips(model, settings, args)
    return replace(job, metadata=lora | job.metadata)


def read_images(model: Model, settings: dict, args: Namespace) -> Job:
    """z (n 4 1 h w) and c (n 77 d): the images of --data and their texts."""
    def read(file: Path) -> Tensor:
        return rearrange(read_image(file, settings["size"]), "c h w -> c 1 h w")
    return read_data(model, args, "subject", "image", IMAGE_ENDINGS, read)


def read_clips(model: Model, settings: dict, args: Namespace) -> Job:
    """z (n 4 f h w) and c (n 77 d): the clips of --data and their texts."""
    def read(file: Path) -> Tensor:
        return read_video(file, settings["frames"], settings["fps"], settings["size"])
    return read_data(model, args, "motion.mp4", "video", VIDEO_ENDINGS, read)


def read_data(model: Model, args: Namespace, example: str, what: str, endings: set[str],
              read: Callable[[Path], Tensor]) -> Job:
    """The files of --data, read as (3 f H W) in [-1, 1], as latents, and their texts."""
    given = args.data
    if given is None:
        given = [Path(args.model) / "examples" / example]
        if not given[0].exists():
            raise UserError(f"--data: name the {what}s to learn from")
        print(f"data: {given[0]}, the model's own example")
    files = find_files(given, endings, what)
    check_apart(args.output, files, f"the {what}s")
    prompts = prompts_of(args.prompt, files)
    pixels = torch.stack([read(file) for file in tqdm(files, desc=f"{what}s", leave=False)])
    return Job((encode(model, pixels, args.seed), model.encode_text(prompts)),
               prompts[0] if args.prompt is None else args.prompt,
               {"data_sha256": fingerprint(files, prompts)},
               as_frames(rearrange(pixels, "n c f h w -> (n f) c h w")))


def check_apart(output: Path, files: Iterable[Path], what: str) -> None:
    """Raise UserError where a new run would remove, or write over, what it learns from."""
    folder = output.resolve()
    if any(folder in (file.parent.resolve(), file.resolve().parent) for file in files):
        raise UserError(f"--output {output}: holds {what} to learn from; give another")


def check_lora_apart(output: Path, file: Path, what: str) -> None:
    """The same for a LoRA file: a new run removes one that is named as a run names its own."""
    check_apart(output, filter(is_of_a_run, (file, file.resolve())), what)


def put_fresh_lora(model: Model, settings: dict, kind: str) -> dict:
    """Put a fresh LoRA on the UNet; returns what its file will say of it."""
    layers, rank = settings[f"{kind}_layers"], settings["rank"]
    add_lora(model.unet, kind, layers, rank, settings["dropout"])
    return {f"{kind}_layers": layers, "rank": rank}


def prepare_ttt(model: Model, settings: dict, args: Namespace) -> Job:
    """The LoRAs of (a) and (b) twice: as the teachers, and as the student that they guide."""
    require_motion(model)
    if settings["reference_timestep"] == "next" and args.least_timestep is not None:
        raise UserError("--least-timestep: does nothing with --reference-timestep next; leave it "
                        "out")
    metadata, above = {}, []
    for kind, given in (("spatial", args.spatial), ("temporal", args.temporal)):
        file = find_lora(given, f"--{kind}", f"run --stage {kind} first")
        check_lora_apart(args.output, file, f"the {kind} LoRA")
        read = load_lora(model.unet, file, name=f"{kind}_teacher",
                         text_encoder=model.text_encoder).metadata      # other tools' have one
        if read.get("kind") != kind:
            raise UserError(f"--{kind} {file}: holds a {read.get('kind', 'foreign')} LoRA, not "
                            f"what --stage {kind} trains")
        if lacking := {f"{kind}_layers", "prompt", "rank"} - read.keys():
            raise UserError(f"--{kind} {file}: its metadata lacks {min(lacking)}; run --stage "
                            f"{kind} again")
        for note in load_lora(model.unet, file, name=kind, dropout=settings["dropout"]).notes:
            print(f"{file}: {note}")
        say_base(file, read, model, settings)
        metadata |= {f"{kind}_layers": read[f"{kind}_layers"], f"{kind}_prompt": read["prompt"],
                     f"{kind}_sha256": fingerprint([file]), f"{kind}_rank": read["rank"]}
        if (fps := trained_at(read).get("fps")) is not None:
            metadata["fps"] = fps
        above += kept_row(file)

    target, appearance, motion = joined_prompts(metadata, args)
    texts = Texts(*model.encode_text([target, appearance, motion, ""]).split(1))
    shape = latent_shape(model, settings["frames"], settings["size"])
    metadata |= {"appearance_prompt": appearance, "motion_prompt": motion}
    return Job((texts, shape), target, metadata, above=above)


def joined_prompts(metadata: dict, args: Namespace) -> tuple[str, str, str]:
    """The target prompt and the teachers', spatial and temporal: as given, or made of the two
    stages' prompts."""
    spatial, temporal = metadata["spatial_prompt"], metadata["temporal_prompt"]
    doing = temporal.partition(" is ")[2]       # "a man is lifting weights" -> "lifting weights"
    if not doing and None in (args.prompt, args.motion_prompt):
        raise UserError(f"the motion's prompt \"{temporal}\" does not say \"... is ...\": give "
                        f"--prompt and --motion-prompt")
    prompts = tuple(default if given is None else given for given, default in (
        (args.prompt, f"{spatial} is {doing}"),
        (args.appearance_prompt, f"{spatial} is doing something"),
        (args.motion_prompt, f"an object is {doing}")))
    for prompt, name in zip(prompts, ("--prompt", "--appearance-prompt", "--motion-prompt")):
        check_prompt(prompt, name)
    print("target: {}\nspatial teacher: {}\ntemporal teacher: {}".format(*prompts))
    return prompts


def fingerprint(files: list[Path], prompts: Sequence[str] = ()) -> str:
    """SHA-256 of what a run learns from, so that it is not resumed with something else."""
    digest = hashlib.sha256("\n".join(prompts).encode())
    for file in files:
        with file.open("rb") as opened:
            while some := opened.read(2 ** 20):
                digest.update(some)
    return digest.hexdigest()


def prompts_of(given: str | None, files: list[Path]) -> list[str]:
    """One prompt a file: the text file beside it, else --prompt, else the one beside its folder."""
    prompts = [caption_beside(file) or (caption_beside(file.parent) if given is None else given)
               for file in files]
    if None in prompts:
        raise UserError(f"--prompt: say what {files[prompts.index(None)]} shows, or put the words "
                        f"into {files[prompts.index(None)].with_suffix('.txt')}")
    for file, text in zip(files, prompts):
        check_prompt(text, f"{file}: its prompt")
    print("prompt: " + "\n        ".join(dict.fromkeys(prompts)))
    return prompts


@torch.no_grad()
def encode(model: Model, pixels: Tensor, seed: int) -> Tensor:
    """(n 3 f H W) -> sampled latents (n 4 f h w), fp32, one image at a time."""
    generator = Generator().manual_seed(stream_seed(seed, "latents"))
    images = rearrange(pixels, "n c f h w -> (n f) 1 c h w").to(model.device, model.dtype)
    z = torch.cat([model.vae.encode(image, generator).float()
                   for image in tqdm(images, desc="encoding", leave=False)])
    return rearrange(z, "(n f) c h w -> n c f h w", n=len(pixels)).contiguous()


def kept_row(lora: Path) -> list[Tensor]:
    """The data.png beside a LoRA file as frames, uint8 (f H W 3); nothing if it is not there."""
    row = lora.parent / "data.png"
    if not row.exists():
        return []
    try:
        with Image.open(row, formats=["PNG"]) as image:
            count, rest = divmod(image.width, image.height)
            if rest or count > MOST_KEPT:
                raise ValueError(f"{image.width} x {image.height} is no row of squares")
            squares = [image.crop((k * image.height, 0, (k + 1) * image.height, image.height))
                       for k in range(count)]
            return [as_frames(torch.stack([to_square(each, image.height) for each in squares]))]
    except Exception as error:      # it is for the eye alone
        warnings.warn(f"{row}: not drawn ({in_words(error)})", stacklevel=2)
        return []
