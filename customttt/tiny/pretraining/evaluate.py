"""Score the tiny model, on seeds that training never drew from, with 95% intervals.

    python -m customttt.tiny.pretraining.evaluate clip|vae|unet|motion --model weights/tiny

clip: CLIP's choice of kind, colours and scene on real frames, the other two attributes given.
vae: the same choices on reconstructed frames, and the reconstructions' error.
unet: the same choices on sampled images, each for a caption drawn at random.
motion: the same on sampled clips, the motion measured from the frames, and how alike CLIP finds
consecutive frames, beside rendered clips of the same captions.
"""

import math
import statistics
from pathlib import Path

import torch
from einops import rearrange
from torch import Generator, Tensor
from tqdm import tqdm

from ...diffusion import ddim, ddim_timesteps
from ...errors import UserError, check_writable, command_parser, run_command
from ...files.load import load_model
from ...media.clips import as_frames, contact_sheet, write_frames
from ...model.model import Model
from ...paper.intervals import shown
from ..world import clips as world, subjects
from .data import draw_clips, draw_frames
from .judge import Judge
from .measure import classify_motion
from .parts import load_vae


class Tally:
    """Answers by question; `print` gives the share of right ones with Wilson's 95% interval, or the
    mean of numbers with Student's."""

    def __init__(self):
        self.answers = {}

    def add(self, question: str, answer: bool | float) -> None:
        self.answers.setdefault(question, []).append(answer)

    def print(self) -> None:
        for question, answers in sorted(self.answers.items()):
            n, mean = len(answers), statistics.mean(answers)
            if isinstance(answers[0], bool):
                low, high = wilson(sum(answers), n)
                found = f"{mean:6.1%}  [{low:.1%}, {high:.1%}]"
            else:
                found = shown(answers)
            print(f"{question:28} {found}  n = {n}")


def wilson(right: int, n: int) -> tuple[float, float]:
    z, share = 1.96, right / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return middle - half, middle + half


def add_choices(tally: Tally, judge: Judge, frames: Tensor, clip: world.Clip,
                name: str = "") -> None:
    """What CLIP chooses, against the clip's own."""
    subject = clip.subject
    chosen, group = judge.choices(frames, subject, clip.scene), group_of(subject)
    tally.add(name + "scene", chosen["scene"] == clip.scene)
    for within in ("", f", {group}", f", {subject.kind}"):
        tally.add(f"{name}kind{within}", chosen["kind"] == subject.kind)
    tally.add(f"{name}colours, {group}", chosen["colours"] == subject.colours)
    tally.add(f"{name}body colour, {group}", chosen["colours"][0] == subject.colours[0])


def group_of(subject: subjects.Subject) -> str:
    if subject.kind in subjects.PLAIN:
        return "plain"
    return "usual" if subject == subjects.USUAL[subject.kind] else "three named"


@torch.no_grad()
def evaluate_clip(folder: Path, n: int, seed: int, vae=None) -> None:
    """On real frames; with a VAE, on its reconstructions too."""
    judge, tally, errors = Judge(folder), Tally(), []
    generator = Generator().manual_seed(seed)
    for _ in range(0, n, 20):
        clips = draw_clips(generator, 20)
        pixels, at = draw_frames(generator, clips)
        kinds = {"": pixels} if vae is None else {
            "real ": pixels, "vae ": vae.decode(vae.encode(pixels))}
        for name, some in kinds.items():
            for clip, frame in zip(clips, as_frames(some)):
                add_choices(tally, judge, frame[None], clip, name)
        if vae is not None:
            mask = torch.stack([world.subject_mask(clip, [k])[0] for clip, k in zip(clips, at)])
            square = (kinds["vae "].clamp(-1, 1) - pixels).square().mean(1) / 4     # of 0..1
            errors += [(e.mean().item(), (e * m).sum().item() / m.sum().item())
                       for e, m in zip(square, mask)]
    tally.print()
    for what, squares in zip(("whole frame", "subject's pixels"), zip(*errors)):
        decibels = [-10 * math.log10(square) for square in squares]
        print(f"{what:28} {shown(decibels, '{:.2f}')} dB  n = {len(decibels)}")


def evaluate_vae(folder: Path, n: int, seed: int) -> None:
    evaluate_clip(folder, n, seed, load_vae(folder))


@torch.no_grad()
def sample(model: Model, captions: list[str], guidance: float, frames: int, seed: int) -> Tensor:
    """25 DDIM steps from one noise a caption -> uint8 (n f H W 3); images for one frame."""
    side = world.SIZE // model.vae.factor
    x_t = torch.randn((len(captions), 4, frames, side, side),
                      generator=Generator().manual_seed(seed))
    text, empty = model.encode_text(captions), model.encode_text([""] * len(captions))
    *_, z = ddim(model.unet, x_t, text, empty, ddim_timesteps(25), guidance, motion=frames > 1)
    pixels = model.vae.decode(rearrange(z, "n c f h w -> (n f) c h w"))
    return rearrange(as_frames(pixels), "(n f) h w c -> n f h w c", f=frames)


def evaluate_samples(folder: Path, n: int, seed: int, guidance: float, frames: int,
                     sheet: Path | None) -> None:
    """Captions as drawn in pretraining, all naming subject and scene."""
    judge, tally, kept = Judge(folder), Tally(), []
    model = load_model(folder, motion=frames > 1)
    clips = draw_clips(Generator().manual_seed(seed), n)
    chunk = 20 if frames == 1 else 2
    for start in tqdm(range(0, n, chunk), desc=f"guidance {guidance:g}", mininterval=5):
        some = clips[start:start + chunk]
        captions = [clip.caption if frames > 1 else clip.image_caption for clip in some]
        for clip, video in zip(some, sample(model, captions, guidance, frames, seed + start)):
            add_choices(tally, judge, video, clip)
            if frames > 1:
                right = classify_motion(video) == clip.motion.word
                tally.add("motion", right)
                tally.add(f"motion, {clip.motion.word}", right)
                for name, seen in (("samples", video), ("rendered", world.render(clip))):
                    tally.add(f"consistency, {name}", judge.consistency(seen))
            kept.append(video)
    tally.print()
    if sheet is not None:
        if frames == 1:
            kept = [torch.cat(kept[k:k + 10]) for k in range(0, len(kept), 10)]
        write_frames(contact_sheet([row[::1 if frames == 1 else 2] for row in kept[:20]]), sheet)


def main() -> None:
    parser = command_parser(__doc__)
    parser.add_argument("stage", choices=["clip", "vae", "unet", "motion"])
    parser.add_argument("--model", type=Path, default=Path("weights/tiny"), help="model folder")
    parser.add_argument("--number", type=int, default=400, help="frames, images or clips")
    parser.add_argument("--seed", type=int, default=770_000)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--sheet", type=Path, help="write a contact sheet (.png) of samples there")
    arguments = parser.parse_args()
    if arguments.number < 1:
        raise UserError(f"--number {arguments.number}: must be positive")
    if not (math.isfinite(arguments.guidance) and arguments.guidance >= 0):
        raise UserError(f"--guidance {arguments.guidance}: must be 0 or more")
    if arguments.sheet is not None:
        if arguments.stage in ("clip", "vae"):
            raise UserError("--sheet: goes with unet and motion; leave it out")
        if arguments.sheet.suffix.lower() != ".png":
            raise UserError(f"--sheet {arguments.sheet}: must end in .png")
        check_writable(arguments.sheet)
    if arguments.stage in ("clip", "vae"):
        evaluate = evaluate_clip if arguments.stage == "clip" else evaluate_vae
        evaluate(arguments.model, arguments.number, arguments.seed)
    else:
        frames = 1 if arguments.stage == "unet" else world.FRAMES
        evaluate_samples(arguments.model, arguments.number, arguments.seed, arguments.guidance,
                         frames, arguments.sheet)


if __name__ == "__main__":
    run_command(main)
