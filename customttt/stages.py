"""The three stages of CustomTTT: one step of each, top to bottom, and what else train.py needs.

Legend: z clean latents (b 4 f h w), c text embeddings (b n d), eps noise, t timesteps (b,). A step
takes what it learns from, the stage's settings (recipes.py), `draw` (draws.py), and `backward`,
which adds a loss's gradient to what is there: it is called once a loss.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from . import recipes
from .diffusion import STEPS, ddim, ddim_timesteps
from .draws import Draws
from .files.lora_files import save_lora
from .lora import lora_on, lora_parameters
from .losses import preservation_loss, spatial_loss, temporal_loss
from .model.model import Model
from .model.unet import UNet
from .recipes import Recipe
from .run.data import (Job, Texts, add_data_flags, add_ttt_flags, prepare_spatial,
                       prepare_temporal, prepare_ttt)

Backward = Callable[[Tensor], None]


def spatial_step(unet: UNet, z: Tensor, c: Tensor, settings: dict, draw: Draws,
                 backward: Backward) -> None:
    """Stage (a), the subject: the noise in single images, motion modules out (supplement, section
    1). z (n 4 1 h w) and c (n 77 d): the images and their prompts."""
    i = draw.some(len(z), settings["batch_size"])
    eps, t = draw.noise_like(z[i]), draw.timesteps(z[i])
    backward(spatial_loss(unet, z[i], c[i], eps, t))


def temporal_step(unet: UNet, z: Tensor, c: Tensor, settings: dict, draw: Draws,
                  backward: Backward) -> None:
    """Stage (b), the motion: the noise in a clip, and the appearance-debiased term (supplement,
    section 1; Zhao et al. 2023). z (n 4 f h w) and c (n 77 d): the clips and their prompts."""
    i = draw.some(len(z), 1)
    eps, t = draw.noise_like(z[i]), draw.timesteps(z[i], settings["least_timestep"])
    k = draw.frame(z) if settings["debiased"] else None
    backward(temporal_loss(unet, z[i], c[i], eps, t, k))


def ttt_step(unet: UNet, texts: Texts, shape: tuple[int, ...], settings: dict, draw: Draws,
             backward: Backward) -> None:
    """Stage (c), test-time training: the student keeps to what each teacher draws (supplement,
    section 1). `shape`: of the latents, (1 4 f h w).

      z_s = DDIM(spatial teacher, "a teddy bear is doing something"), motion modules out
      z_t = DDIM(temporal teacher, "an object is lifting weights"), motion modules in
      L   = || student(z_s + eps',  t',  "a teddy bear is lifting weights") - eps'  ||^2
          + || student(z_t + eps'', t'', "a teddy bear is lifting weights") - eps'' ||^2

    One UNet holds four LoRAs: the teachers, as stages (a) and (b) left them, and the student,
    "spatial" and "temporal", which starts from the same weights and alone is trained.
    """
    timesteps, t_f = reference_timesteps(settings)
    guidance, device = settings["reference_guidance"], texts.target.device

    with lora_on(unet, "spatial_teacher"):
        noise = draw.noise(shape, device)
        if settings["reference_noise"] == "one":        # every frame starts alike
            noise = noise[:, :, :1].expand(shape)
        *_, z_s = ddim(unet, noise, texts.appearance, texts.empty, timesteps, guidance,
                       motion=False, t_end=t_f)
    with lora_on(unet, "temporal_teacher"):
        noise = draw.noise(shape, device)
        *_, z_t = ddim(unet, noise, texts.motion, texts.empty, timesteps, guidance,
                       motion=True, t_end=t_f)

    with lora_on(unet, "spatial", "temporal"):
        # The appearance preservation loss.
        eps, t = draw.noise_like(z_s), noising_timesteps(z_s, t_f, settings, draw)
        backward(preservation_loss(unet, z_s, texts.target, eps, t, t_f))
        # The temporal preservation loss.
        eps, t = draw.noise_like(z_t), noising_timesteps(z_t, t_f, settings, draw)
        backward(preservation_loss(unet, z_t, texts.target, eps, t, t_f))


def reference_timesteps(settings: dict) -> tuple[list[int], int]:
    """The timesteps of a reference's DDIM steps, and t_f, where its latents stand then (-1: clean).

    "uniform": the steps span the whole schedule. "next", the other reading: they are the first of
    the sampling schedule, so the reference latents are still noisy.
    """
    steps = settings["reference_steps"]
    if settings["reference_timestep"] == "uniform":
        return ddim_timesteps(steps), -1
    schedule = ddim_timesteps(settings["sampling_steps"])
    return schedule[:steps], schedule[steps]


def noising_timesteps(z_f: Tensor, t_f: int, settings: dict, draw: Draws) -> Tensor:
    """(b,), where reference latents are noised to: anywhere, or one sampling step up from t_f."""
    if settings["reference_timestep"] == "uniform":
        return draw.timesteps(z_f, settings["least_timestep"])
    return torch.tensor([t_f + STEPS // settings["sampling_steps"]], device=z_f.device)


@dataclass(frozen=True)
class Stage:
    """A training method. A further one is one more of these, in a file of its own; one that trains
    other modules than LoRA is a subclass with its own `parameters` and `save`."""

    name: str                               # of --stage
    kind: str                               # what its LoRA file says it holds
    recipe: Recipe
    add_flags: Callable[[ArgumentParser], None]         # beside the recipe's
    prepare: Callable[[Model, dict, Namespace], Job]    # puts what is trained on the model
    step: Callable[..., None]               # (unet, *job.inputs, settings, draw, backward)
    trained: tuple[str, ...]                # LoRAs
    rows: tuple[tuple[str, ...], ...]       # of its contact sheet: the LoRAs that are on in each
    motion: bool = True                     # whether motion modules are in, on that sheet

    def parameters(self, model: Model) -> dict[str, nn.Parameter]:
        """What is trained; they alone get gradients."""
        model.unet.requires_grad_(False)
        parameters = lora_parameters(model.unet, *self.trained)
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        return parameters

    def save(self, model: Model, path: Path, metadata: dict) -> None:
        save_lora(model.unet, path, metadata, self.trained)


TEACHERS, STUDENT = ("spatial_teacher", "temporal_teacher"), ("spatial", "temporal")
SPATIAL = Stage("spatial", "spatial", recipes.SPATIAL, add_data_flags, prepare_spatial,
                spatial_step, trained=("spatial",), rows=(("spatial",),), motion=False)
TEMPORAL = Stage("temporal", "temporal", recipes.TEMPORAL, add_data_flags, prepare_temporal,
                 temporal_step, trained=("temporal",), rows=(("temporal",),))
TTT = Stage("ttt", "joined", recipes.TTT, add_ttt_flags, prepare_ttt, ttt_step, trained=STUDENT,
            rows=((), TEACHERS[:1], TEACHERS[1:],       # base, subject, motion,
                  TEACHERS, STUDENT))                   # joined as they are, joined by training
STAGES = {stage.name: stage for stage in (SPATIAL, TEMPORAL, TTT)}
