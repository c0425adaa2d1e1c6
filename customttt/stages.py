"""The three stages of CustomTTT: one step of each, top to bottom.

Legend: z clean latents (b 4 f h w), c text embeddings (b 77 d), eps noise, t timesteps (b,). A step
takes what it learns from, the stage's settings (recipes.py), `draw`, its random numbers (draws.py),
and `backward`, which runs a loss's backward pass; gradients add up. A step calls it on each loss
before it computes the next, so that one graph is held at a time; and inside the loss's `with
lora_on`, so that what the backward pass computes again (model/frozen.py) has the same LoRAs. In (a)
and (b) the UNet holds one LoRA, which is on.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from . import recipes
from .diffusion import ddim, ddim_timesteps
from .draws import Draws
from .lora import lora_on
from .losses import preservation_loss, spatial_loss, temporal_loss
from .model.unet import UNet
from .run.data import (Texts, add_data_flags, add_ttt_flags, prepare_spatial, prepare_temporal,
                       prepare_ttt)
from .run.stage import Stage

Backward = Callable[[Tensor], None]


def spatial_step(unet: UNet, z: Tensor, c: Tensor, settings: dict, draw: Draws,
                 backward: Backward) -> None:
    """Stage (a), the subject: predict the noise in single images, motion modules out (supplement,
    section 1). z (n 4 1 h w) and c (n 77 d): the images and their texts."""
    some = draw.some(len(z), settings["batch_size"])
    z, c = z[some], c[some]
    eps, t = draw.noise_like(z), draw.timesteps(z)
    backward(spatial_loss(unet, z, c, eps, t))


def temporal_step(unet: UNet, z: Tensor, c: Tensor, settings: dict, draw: Draws,
                  backward: Backward) -> None:
    """Stage (b), the motion: predict the noise in a clip (supplement, section 1), and
    MotionDirector's appearance-debiased term. z (n 4 f h w) and c (n 77 d): the clips and their
    texts."""
    one = draw.some(len(z), 1)
    z, c = z[one], c[one]
    eps, t = draw.noise_like(z), draw.timesteps(z, settings["least_timestep"])
    k = draw.frame(z) if settings["debiased"] else None
    backward(temporal_loss(unet, z, c, eps, t, k))


def ttt_step(unet: UNet, texts: Texts, shape: tuple[int, ...], settings: dict, draw: Draws,
             backward: Backward) -> tuple[Tensor, Tensor]:
    """Stage (c), test-time training: the student keeps to what each teacher samples (paper, the two
    preservation losses). `texts`: of the target prompt, of the two teachers' (appearance, motion)
    and of no words, each (1 77 d). `shape`: of the latents, (1 4 f h w).

      z_s = DDIM(spatial teacher, "a teddy bear is doing something"), motion modules out
      z_t = DDIM(temporal teacher, "an object is lifting weights"), motion modules in
      L   = || student(z_s noised by eps',  t',  "a teddy bear is lifting weights") - eps'  ||^2
          + || student(z_t noised by eps'', t'', "a teddy bear is lifting weights") - eps'' ||^2

    The UNet holds four LoRAs. Two are the teachers, as (a) and (b) left them, without dropout. Two
    are the student, "spatial" and "temporal": they start from the same weights, and they alone are
    trained. Returns z_s and z_t, for whoever wants to look at them.
    """
    timesteps, t_ref = reference_timesteps(settings)
    guidance, device = settings["reference_guidance"], texts.target.device

    with lora_on(unet, "spatial_teacher"):
        noise = draw.noise(shape, device)
        if settings["reference_noise"] == "one":        # every frame starts alike
            noise = noise[:, :, :1].expand(shape)
        *_, z_s = ddim(unet, noise, texts.appearance, texts.empty, timesteps, guidance,
                       motion=False, t_end=t_ref)
    with lora_on(unet, "temporal_teacher"):
        noise = draw.noise(shape, device)
        *_, z_t = ddim(unet, noise, texts.motion, texts.empty, timesteps, guidance,
                       motion=True, t_end=t_ref)

    with lora_on(unet, "spatial", "temporal"):
        # The appearance preservation loss.
        eps, t = draw.noise_like(z_s), noising_timesteps(z_s, timesteps[-1], settings, draw)
        backward(preservation_loss(unet, z_s, texts.target, eps, t, t_ref))
        # The temporal preservation loss.
        eps, t = draw.noise_like(z_t), noising_timesteps(z_t, timesteps[-1], settings, draw)
        backward(preservation_loss(unet, z_t, texts.target, eps, t, t_ref))
    return z_s, z_t


def reference_timesteps(settings: dict) -> tuple[list[int], int]:
    """The timesteps of the teachers' DDIM steps, and t_ref, where their latents stand then (-1:
    clean).

    "uniform": the steps are spaced over the schedule, 801, 601, 401, 201, 1. "next", the other
    reading: they are the first of the sampling schedule, so the reference latents are still noisy.
    """
    steps = settings["reference_steps"]
    if settings["reference_timestep"] == "uniform":
        return ddim_timesteps(steps), -1
    schedule = ddim_timesteps(settings["sampling_steps"])
    return schedule[:steps], schedule[steps]


def noising_timesteps(z: Tensor, last: int, settings: dict, draw: Draws) -> Tensor:
    """(b,), where reference latents are noised to: from `least_timestep` on, or `last`, the
    timestep that the teachers' last DDIM step started from."""
    if settings["reference_timestep"] == "uniform":
        return draw.timesteps(z, settings["least_timestep"])
    return torch.full((len(z),), last, device=z.device)


TEACHERS, STUDENT = ("spatial_teacher", "temporal_teacher"), ("spatial", "temporal")
SPATIAL = Stage("spatial", "spatial", recipes.SPATIAL, add_data_flags, prepare_spatial,
                spatial_step, trained=("spatial",), rows=(("spatial",),), motion=False)
TEMPORAL = Stage("temporal", "temporal", recipes.TEMPORAL, add_data_flags, prepare_temporal,
                 temporal_step, trained=("temporal",), rows=(("temporal",),))
TTT = Stage("ttt", "joined", recipes.TTT, add_ttt_flags, prepare_ttt, ttt_step, trained=STUDENT,
            rows=((),                   # the base model
                  TEACHERS[:1],         # the subject alone
                  TEACHERS[1:],         # the motion alone
                  TEACHERS,             # the two as they are
                  STUDENT))             # the two after test-time training
STAGES = {stage.name: stage for stage in (SPATIAL, TEMPORAL, TTT)}
