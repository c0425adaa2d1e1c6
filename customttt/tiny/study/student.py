"""What test-time training does to its student: how far it goes, and how much there is to learn.

  python -m customttt.tiny.study.student ["" "--learning-rate 3e-5" ...]

One row a setting (flags of train.py's ttt stage): how many percent of the trained weights and of
the predicted noise changed; how far the losses were above the teacher's before, and how training
changed them; what the references show. What a setting gains, `search ttt` says, on the same
combinations and LoRAs. The UNet holds the teachers and, as one LoRA, the student that they trained.
"""

import argparse
import json
import math
from pathlib import Path

import torch
from einops import rearrange
from safetensors import safe_open
from torch import Generator, Tensor

from ...diffusion import add_noise
from ...draws import Draws
from ...errors import UserError, command_parser, run_command
from ...files.lora_files import load_lora
from ...files.reading import read_metadata
from ...lora import lora_on
from ...losses import noise_loss
from ...media.clips import as_pixels
from ...model.model import Model
from ...model.unet import UNet
from ...paper import tables
from ...paper.flags import check_shared
from ...paper.rows import Scorer, Unit
from ...run.data import Texts
from ...run.loop import autocast
from ...run.options import open_model
from ...sampling import decode_frames, latent_shape
from ...stages import TEACHERS, noising_timesteps, reference_timesteps, ttt_step
from . import search
from .protocol import combination_of
from .scores import measured

TRAINED = ("joined",)
UNSEEN_SEED = 10 ** 6       # of references that no training drew
DRAWS = 8                   # of each, for the losses


def change(before: Path, after: Path) -> float:
    """||joined - trained|| / ||trained|| over the tensors of one LoRA file."""
    with safe_open(before, "pt") as old, safe_open(after, "pt") as new:
        pairs = [(old.get_tensor(key), new.get_tensor(key)) for key in old.keys()]
    return math.sqrt(sum((b - a).square().sum().item() for a, b in pairs)
                     / sum(a.square().sum().item() for a, _ in pairs))


@torch.no_grad()
def noise_change(model: Model, prompt: str, frames: Tensor) -> float:
    """||eps after - eps before|| / ||eps before||, on a clip noised to five timesteps."""
    pixels = as_pixels(frames).to(model.device, model.dtype)
    z = rearrange(model.vae.encode(pixels).float(), "f c h w -> 1 c f h w")
    text, generator = model.encode_text([prompt]), Generator().manual_seed(0)
    before, after = [], []
    for t in torch.tensor([[100], [300], [500], [700], [900]], device=model.device):
        x_t = add_noise(z, torch.randn(z.shape, generator=generator).to(model.device), t)
        for on, predicted in ((TEACHERS, before), (TRAINED, after)):
            with lora_on(model.unet, *on):
                predicted.append(model.unet(x_t, t, text))
    before, after = torch.cat(before), torch.cat(after)
    return ((after - before).norm() / before.norm()).item()


@torch.no_grad()
def preservation(unet: UNet, texts: Texts, shape: tuple[int, ...],
                 settings: dict) -> dict[str, float]:
    """The losses of test-time training on references of other draws: how much is there to learn?

    For each of the two, how far the student's was above that of the teacher, under the teacher's
    prompt, before training, and how training changed it.
    """
    teachers = {"appearance": (TEACHERS[:1], texts.appearance, False),
                "motion": (TEACHERS[1:], texts.motion, True)}
    student = {"before": (TEACHERS, texts.target, True), "after": (TRAINED, texts.target, True)}
    losses = {name: dict.fromkeys(("teacher", "before", "after"), 0.0) for name in teachers}
    draw, (timesteps, t_ref) = Draws(UNSEEN_SEED), reference_timesteps(settings)
    for _ in range(DRAWS):
        references = ttt_step(unet, texts, shape, settings, draw, backward=lambda loss: None)
        for (name, teacher), z_ref in zip(teachers.items(), references):
            eps = draw.noise_like(z_ref)
            t = noising_timesteps(z_ref, timesteps[-1], settings, draw)
            x_t = add_noise(z_ref, eps, t, t_ref)
            for who, (on, text, motion) in {"teacher": teacher, **student}.items():
                with lora_on(unet, *on):
                    losses[name][who] += noise_loss(unet(x_t, t, text, motion), eps).item()
    found = {}
    for name, of in losses.items():
        found[f"{name} loss above the teacher's, before"] = of["before"] / of["teacher"] - 1
        found[f"change of {name} loss"] = of["after"] / of["before"] - 1
    return found


def student_scorer(args: argparse.Namespace) -> Scorer:
    """Of a row with test-time training; shares in percent."""
    def scores(clip: Tensor, unit: Unit, loras: dict[str, Path]) -> dict[str, float]:
        model, precision = open_model(args)
        with autocast(model.device, precision):
            return scores_of(model, clip, unit, loras)

    def scores_of(model: Model, clip: Tensor, unit: Unit,
                  loras: dict[str, Path]) -> dict[str, float]:
        for name, file in zip((*TEACHERS, *TRAINED), loras.values()):
            load_lora(model.unet, file, name=name)
        told = read_metadata(loras["ttt"])
        settings = json.loads(told["recipe"])
        texts = Texts(*model.encode_text([unit.prompt, told["appearance_prompt"],
                                          told["motion_prompt"], ""]).split(1))
        shape = latent_shape(model, settings["frames"], settings["size"])
        found = {"change of spatial weights": change(loras["spatial"], loras["ttt"]),
                 "change of temporal weights": change(loras["temporal"], loras["ttt"]),
                 "change of predicted noise": noise_change(model, unit.prompt, clip),
                 **preservation(model.unet, texts, shape, settings)}
        return {f"{name}, %": 100 * value for name, value in found.items()} | of_references(
            model, texts, shape, settings, unit)
    return Scorer("student", {"draws": DRAWS}, scores)


@torch.no_grad()
def of_references(model: Model, texts: Texts, shape: tuple[int, ...], settings: dict,
                  unit: Unit) -> dict[str, float]:
    """The true scores of one draw of each."""
    drawn = ttt_step(model.unet, texts, shape, settings, Draws(UNSEEN_SEED),
                     backward=lambda loss: None)
    found = {}
    for name, z_ref in zip(("appearance", "motion"), drawn):
        scores = measured(combination_of(unit.group, unit.prompt), decode_frames(model, z_ref),
                          seed=0)
        found |= {f"{what}, {name} reference": scores[what] for what in ("identity", "motion")}
    return found


def main() -> None:
    parser = command_parser(__doc__)
    parser.add_argument("settings", nargs="*", help="flags of the ttt stage")
    search.add_flags(parser)
    args = parser.parse_args()
    if args.tracker != parser.get_default("tracker"):
        raise UserError("--tracker: no score of the student follows points; leave it out")
    check_shared(args)
    rows = search.rows_of("ttt", args.settings or [""])[1:]     # all have a student
    tables.make(args, "student", tables.units_of(rows, search.groups_of(args)),
                [student_scorer(args)], [], "customttt.tiny.study.student")


if __name__ == "__main__":
    run_command(main)
