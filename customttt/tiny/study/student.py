"""What test-time training does to its student: how far it goes, and how much there is to learn.

The UNet holds the teachers and, as one LoRA, the student that they trained.
"""

import math
from pathlib import Path

import torch
from einops import rearrange
from safetensors import safe_open
from torch import Generator, Tensor

from ...diffusion import add_noise
from ...draws import Draws
from ...lora import lora_on
from ...losses import noise_loss
from ...model.model import Model
from ...model.unet import UNet
from ...run.data import Texts
from ...stages import TEACHERS, noising_timesteps, reference_timesteps, ttt_step
from ..pretraining.judge import as_pixels
from .scores import Combination

STUDENT = ("joined",)
UNSEEN_SEED = 10 ** 6       # of references that no training drew
DRAWS = 8                   # of each, for the losses


def change(before: Path, after: Path) -> float:
    """||joined - trained|| / ||trained|| over the tensors of one LoRA file."""
    with safe_open(before, "pt") as old, safe_open(after, "pt") as new:
        pairs = [(old.get_tensor(key), new.get_tensor(key)) for key in old.keys()]
    return math.sqrt(sum((b - a).square().sum().item() for a, b in pairs)
                     / sum(a.square().sum().item() for a, _ in pairs))


@torch.no_grad()
def noise_change(model: Model, combination: Combination, frames: Tensor) -> float:
    """||eps after - eps before|| / ||eps before||, on a clip noised to five timesteps."""
    z = rearrange(model.vae.encode(as_pixels(frames)), "f c h w -> 1 c f h w")
    text, generator = model.encode_text([combination.prompt]), Generator().manual_seed(0)
    before, after = [], []
    for t in torch.tensor([[100], [300], [500], [700], [900]]):
        x_t = add_noise(z, torch.randn(z.shape, generator=generator), t)
        for on, predicted in ((TEACHERS, before), (STUDENT, after)):
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
    teachers = {"appearance": (TEACHERS[:1], texts.spatial_teacher, False),
                "motion": (TEACHERS[1:], texts.temporal_teacher, True)}
    student = {"before": (TEACHERS, texts.target, True), "after": (STUDENT, texts.target, True)}
    losses = {name: dict.fromkeys(("teacher", "before", "after"), 0.0) for name in teachers}
    draw, (_, t_ref) = Draws(UNSEEN_SEED), reference_timesteps(settings)
    for _ in range(DRAWS):
        references = ttt_step(unet, texts, shape, settings, draw, backward=lambda loss: None)
        for (name, teacher), z_ref in zip(teachers.items(), references):
            eps, t = draw.noise_like(z_ref), noising_timesteps(z_ref, t_ref, settings, draw)
            x_t = add_noise(z_ref, eps, t, t_ref)
            for who, (on, text, motion) in {"teacher": teacher, **student}.items():
                with lora_on(unet, *on):
                    losses[name][who] += noise_loss(unet(x_t, t, text, motion), eps).item()
    found = {}
    for name, of in losses.items():
        found[f"{name} loss above the teacher's, before"] = of["before"] / of["teacher"] - 1
        found[f"change of {name} loss"] = of["after"] / of["before"] - 1
    return found
