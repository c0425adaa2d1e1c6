"""Train one of the three stages of CustomTTT: the subject, the motion, and the two joined.

  python train.py --stage spatial  --data IMAGE_OR_FOLDER... --prompt "a teddy bear"
  python train.py --stage temporal --data VIDEO... --prompt "a man is lifting weights"
  python train.py --stage ttt      --prompt "a teddy bear is lifting weights"

Without further flags each runs on the embedded tiny model and its examples (weights/tiny, seen from
the repository's folder), and finds the output of the stage before it. Every number of the paper's
recipe is a flag.
"""

import argparse
import hashlib
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor
from PIL import Image
from tqdm import tqdm

from customttt.diffusion import ddim_timesteps
from customttt.errors import UserError, run
from customttt.files.lora_files import load_lora
from customttt.lora import active, add_lora
from customttt.media.clips import as_frames, contact_sheet, write_video
from customttt.media.images import (IMAGE_ENDINGS, VIDEO_ENDINGS, caption_beside, find_files,
                                    read_image, read_video, to_square)
from customttt.model.model import Model
from customttt.recipes import STAGES
from customttt.run.loop import Run, check_folder, fit
from customttt.run.options import add_model_flags, add_recipe_flags, chosen_settings, open_model
from customttt.sampling import ddim, decode_frames, initial_noise
from customttt.stages import joining, spatial_loss, temporal_loss

EXAMPLES = Path("weights/tiny/examples")
OUTPUT = Path("output")
ONLY_TTT = ("spatial", "temporal", "appearance_prompt", "motion_prompt")
TRAINED = {"spatial": ("spatial",), "temporal": ("temporal",), "ttt": ("spatial", "temporal")}
SHEET_ROWS = {      # of a contact sheet: which adapters are on
    "spatial": [("spatial",)],
    "temporal": [("temporal",)],
    "ttt": [(), ("spatial_reference",), ("temporal_reference",),        # base, subject, motion,
            ("spatial_reference", "temporal_reference"),                # joined as they are,
            ("spatial", "temporal")],                                   # and after training
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", required=True, choices=STAGES)
    add_model_flags(parser)
    parser.add_argument("--data", nargs="+", type=Path, metavar="PATH",
                        help="images or folders of them (spatial), videos (temporal)")
    parser.add_argument("--prompt", help="what the data shows, where no text file beside an image "
                        "or video says it; or what to join (default: the two stages' prompts "
                        "joined)")
    parser.add_argument("--output", type=Path, help="folder (default: output/STAGE)")
    parser.add_argument("--spatial", type=Path, metavar="A", help="ttt: adapter file or folder of "
                        "the spatial stage (default: output/spatial)")
    parser.add_argument("--temporal", type=Path, metavar="B", help="ttt: adapter file or folder of "
                        "the temporal stage (default: output/temporal)")
    parser.add_argument("--appearance-prompt", help="ttt: of the appearance reference")
    parser.add_argument("--motion-prompt", help="ttt: of the motion reference")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--checkpoint-every", type=int, default=100, metavar="STEPS")
    parser.add_argument("--sheet-every", type=int, default=100, metavar="STEPS",
                        help="draw a contact sheet of samples every so many steps and at the end; "
                        "0: never (default: %(default)s)")
    parser.add_argument("--gradient-checkpointing", action="store_true",
                        help="less memory, more time: each block runs again on the way back")
    add_recipe_flags(parser, STAGES)
    return parser.parse_args()


def main() -> None:
    args = parse()
    for flag, least in (("checkpoint_every", 1), ("sheet_every", 0)):
        if getattr(args, flag) < least:
            raise UserError(f"--{flag.replace('_', '-')}: must be at least {least}")
    for flag in ("data",) if args.stage == "ttt" else ONLY_TTT:
        if getattr(args, flag) is not None:
            raise UserError(f"--{flag.replace('_', '-')}: is not for --stage {args.stage}; "
                            f"leave it out")
    args.output = args.output or OUTPUT / args.stage
    check_folder(args.output, "joined" if args.stage == "ttt" else args.stage, args.resume)
    model, precision = open_model(args)
    settings = chosen_settings(args, args.stage, model)
    model.unet.gradient_checkpointing = args.gradient_checkpointing
    torch.manual_seed(args.seed)        # the LoRA's start
    prepare = {"spatial": spatial, "temporal": temporal, "ttt": test_time_training}[args.stage]
    losses, prompt, metadata, above = prepare(args, model, settings)
    names = TRAINED[args.stage]

    draw = sheet_drawer(model, prompt, settings, SHEET_ROWS[args.stage], above,
                        motion=args.stage != "spatial")
    model.text_encoder = model.vae.encoder = None       # their work is done: free the memory
    metadata |= {"prompt": prompt, "base_model": model.name, "rank": settings["rank"], "scale": 1,
                 "recipe": settings}
    finished = fit(Run(args.output, model.unet, names, losses, settings, metadata, precision,
                       args.seed, args.checkpoint_every, args.sheet_every, draw), args.resume)
    if finished:
        print(f"trained: {args.output / 'adapter.safetensors'}")
    else:
        print("stopped and saved; go on with the same command and --resume")


def spatial(args: argparse.Namespace, model: Model, settings: dict) -> tuple:
    """Stage (a): images of the subject; LoRA on the spatial transformers of layers 2 and 6."""
    paths = args.data or [EXAMPLES / "subject"]
    files = find_files(paths, IMAGE_ENDINGS, "image")
    prompts = prompts_of(args.prompt, files)
    pixels = torch.stack([read_image(file, settings["size"])
                          for file in tqdm(files, desc="images", leave=False)])
    layers = settings["spatial_layers"]
    add_lora(model.unet, "spatial", layers, settings["rank"], settings["dropout"])
    keep_data(pixels, args)
    z = encode(model, rearrange(pixels, "n c h w -> n c 1 h w"), args.seed)
    text = model.encode_text(prompts)

    def losses(generator):
        return spatial_loss(model.unet, z, text, settings["batch_size"], generator)
    metadata = {"kind": "spatial", "spatial_layers": layers, "data_sha256": fingerprint(files)}
    return losses, prompts[0] if args.prompt is None else args.prompt, metadata, []


def temporal(args: argparse.Namespace, model: Model, settings: dict) -> tuple:
    """Stage (b): a clip of the motion; LoRA on the motion modules of layers 2 and 5."""
    require_motion(model)
    paths = args.data or [EXAMPLES / "motion.mp4"]
    files = find_files(paths, VIDEO_ENDINGS, "video")
    prompts = prompts_of(args.prompt, files)
    pixels = torch.stack([read_video(file, settings["frames"], settings["fps"], settings["size"])
                          for file in tqdm(files, desc="videos", leave=False)])
    layers = settings["temporal_layers"]
    add_lora(model.unet, "temporal", layers, settings["rank"], settings["dropout"])
    keep_data(rearrange(pixels, "n c f h w -> (n f) c h w"), args)
    z = encode(model, pixels, args.seed)
    text = model.encode_text(prompts)

    def losses(generator):
        return temporal_loss(model.unet, z, text, settings["debiased"],
                             settings["least_timestep"], generator)
    metadata = {"kind": "temporal", "temporal_layers": layers, "data_sha256": fingerprint(files)}
    return losses, prompts[0] if args.prompt is None else args.prompt, metadata, []


def test_time_training(args: argparse.Namespace, model: Model, settings: dict) -> tuple:
    """Stage (c): both adapters twice, as frozen references and as the student that they guide."""
    require_motion(model)
    if args.rank is not None:
        raise UserError("--rank: stage ttt takes the rank of the adapters that it joins; "
                        "leave it out")
    metadata, above = {"kind": "joined"}, []
    for kind, given in (("spatial", args.spatial), ("temporal", args.temporal)):
        given = OUTPUT / kind if given is None else given
        file = given / "adapter.safetensors" if given.is_dir() else given
        if not file.is_file():
            raise UserError(f"--{kind} {given}: no adapter there; run --stage {kind} first, or "
                            f"name its adapter.safetensors")
        load_lora(model.unet, file, name=f"{kind}_reference")
        read = load_lora(model.unet, file, name=kind, dropout=settings["dropout"])
        if read.metadata.get("kind") != kind:
            raise UserError(f"--{kind} {file}: holds a {read.metadata.get('kind', 'foreign')} "
                            f"LoRA, not what --stage {kind} trains")
        metadata |= {f"{kind}_layers": read.metadata[f"{kind}_layers"],
                     f"{kind}_prompt": read.metadata["prompt"],
                     f"{kind}_sha256": fingerprint([file])}
        if (base := read.metadata.get("base_model", model.name)) != model.name:
            print(f"{file}: was trained on {base}, is used on {model.name}")
        settings["rank"] = int(read.metadata["rank"])
        above += kept_data(file)

    subject, motion = metadata["spatial_prompt"], metadata["temporal_prompt"]
    doing = motion.partition(" is ")[2]         # "a man is lifting weights" -> "lifting weights"
    prompt = f"{subject} is {doing}" if args.prompt is None else args.prompt
    appearance_prompt = (f"{subject} is doing something" if args.appearance_prompt is None
                         else args.appearance_prompt)
    motion_prompt = f"an object is {doing}" if args.motion_prompt is None else args.motion_prompt
    if not doing and None in (args.prompt, args.motion_prompt):
        raise UserError(f"the motion's prompt \"{motion}\" does not say \"... is ...\": give "
                        f"--prompt and --motion-prompt")
    print(f"target: {prompt}\nappearance reference: {appearance_prompt}\n"
          f"motion reference: {motion_prompt}")
    metadata |= {"appearance_prompt": appearance_prompt, "motion_prompt": motion_prompt}
    stage = joining(model, prompt, appearance_prompt, motion_prompt, settings)
    return stage.losses, prompt, metadata, above


def fingerprint(files: list[Path]) -> str:
    """SHA-256 of what a run learns from, so that it is not resumed with something else."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def require_motion(model: Model) -> None:
    if model.unet.config.motion is None:
        raise UserError(f"--model {model.name} has no motion module: give one with --motion-module")


def prompts_of(given: str | None, files: list[Path]) -> list[str]:
    """One prompt a file: the text file beside it, else --prompt, else the one beside its folder."""
    prompts = [caption_beside(file) or (caption_beside(file.parent) if given is None else given)
               for file in files]
    if None in prompts:
        raise UserError(f"--prompt: say what {files[prompts.index(None)]} shows, or put the words "
                        f"into {files[prompts.index(None)].with_suffix('.txt')}")
    print("prompt: " + "\n        ".join(dict.fromkeys(prompts)))
    return prompts


@torch.no_grad()
def encode(model: Model, pixels: Tensor, seed: int) -> Tensor:
    """(n 3 f H W) -> sampled latents (n 4 f h w), fp32, one image at a time."""
    generator = torch.Generator().manual_seed(seed)
    images = rearrange(pixels, "n c f h w -> (n f) 1 c h w").to(model.device, model.dtype)
    z = torch.cat([model.vae.encode(image, generator).float()
                   for image in tqdm(images, desc="encoding", leave=False)])
    return rearrange(z, "(n f) c h w -> n c f h w", n=len(pixels)).contiguous()


def keep_data(pixels: Tensor, args: argparse.Namespace) -> None:
    """Write what is learned from, as the model sees it: (f 3 H W) -> data.png, a row of squares."""
    if not args.resume:
        write_video(as_frames(pixels), args.output / "data.png")


def kept_data(adapter: Path) -> list[Tensor]:
    """The strip beside an adapter as frames, uint8 (f H W 3); nothing if it is not there."""
    strip = adapter.parent / "data.png"
    if not strip.exists():
        return []
    with Image.open(strip) as image:
        squares = [image.crop((x, 0, x + image.height, image.height))
                   for x in range(0, image.width, image.height)]
    return [as_frames(torch.stack([to_square(square, image.height) for square in squares]))]


def sheet_drawer(model: Model, prompt: str, settings: dict, rows: list[tuple[str, ...]],
                 above: list[Tensor], motion: bool):
    """A function that draws a row of samples for each set of adapters, below the rows `above`."""
    text, empty = model.encode_text([prompt, ""]).split(1)
    noise = initial_noise(model, settings["frames"], settings["size"], seed=0)

    def draw(path: Path) -> None:
        clips = []
        for names in rows:
            with active(model.unet, *names):
                *_, z = ddim(model.unet, noise.to(model.device), text, empty,
                             ddim_timesteps(settings["sampling_steps"]), settings["guidance"],
                             motion)
            clips.append(decode_frames(model, z))
        every = max(1, len(clips[0]) // 8)
        same_size = [clip for clip in above if clip.shape[1:] == clips[0].shape[1:]]
        write_video(contact_sheet([clip[::every] if len(clip) > 8 else clip
                                   for clip in same_size + clips]), path)
    return draw


if __name__ == "__main__":
    run(main)
