"""The work of each row, as this project does it: `ROWS[row](job)` -> a function that does it once.

Also run with an older checkout of `customttt` in the place of this one's (--before).
"""

import inspect
import subprocess
import sys
from functools import partial
from pathlib import Path

import torch

import customttt
from customttt.diffusion import ddim, ddim_timesteps, guided_noise
from customttt.draws import Draws
from customttt.lora import add_lora
from customttt.recipes import SPATIAL, TEMPORAL, TTT
from customttt.run.data import Texts
from customttt.run.loop import autocast
from customttt.sampling import decode_frames
from customttt.stages import STAGES, spatial_step, temporal_step, ttt_step

EVERY_SPATIAL, EVERY_TEMPORAL = (0, 1, 2, 4, 6, 7, 8), (0, 1, 2, 3, 5, 6, 7, 8)


def load(job):
    return lambda: touched(customttt.load_model(job.model, device=job.device, dtype=job.dtype))


def touched(model) -> None:
    """Read every page of a model that may be a mapped file."""
    for part in (model.text_encoder, model.vae, model.unet):
        for p in part.parameters():
            p.view(-1)[::1024].sum()


def opened(job, motion: bool = True):
    """The model without its encoders, as in training."""
    arguments = {"motion": motion}      # an older checkout has no such argument
    arguments = {name: value for name, value in arguments.items()
                 if name in inspect.signature(customttt.load_model).parameters}
    model = customttt.load_model(job.model, device=job.device, dtype=job.dtype, **arguments)
    model.text_encoder = model.vae.encoder = None
    model.unet.requires_grad_(False)
    return model


def forward(job):
    unet = opened(job).unet
    return torch.no_grad()(lambda: unet(job.clip(), job.timestep(), job.text()))


def denoise(job):
    """One guided DDIM step."""
    unet, text, empty = opened(job).unet, job.text(), job.text()
    return torch.no_grad()(lambda: guided_noise(unet, job.clip(), 500, text, empty, 9.0, True))


def reference(job):
    """The motion reference of a ttt step: five guided DDIM steps."""
    model, text, empty = opened(job), job.text(), job.text()
    add_lora(model.unet, "temporal", (2, 5))
    model.unet.eval()
    return lambda: list(ddim(model.unet, job.clip().float(), text, empty, ddim_timesteps(5), 9.0))


def decode(job):
    model = opened(job)
    return lambda: decode_frames(model, job.clip())


def trained(model, stage: str) -> list:
    """What the stage trains; all else is frozen (written out, older checkouts lack `train_only`)."""
    parameters = list(STAGES[stage].parameters(model).values())
    model.unet.requires_grad_(False)
    for p in parameters:
        p.requires_grad_(True)
    return parameters


def training(job, model, stage: str, step):
    """One step of a stage, with Lion: what run/loop.py does between two lines of its log."""
    optimizer = customttt.Lion(trained(model, stage), lr=1e-5)
    scaler = torch.amp.GradScaler(job.device.type, enabled=job.precision == "fp16")
    draws = Draws(0)
    model.unet.train()

    def backward(loss):
        with torch.autocast(job.device.type, enabled=False):
            scaler.scale(loss).backward()

    def once():
        optimizer.zero_grad()
        with autocast(job.device, job.precision):
            step(draws, backward)
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    return once


def spatial(job, layers=None, convolutions: bool = False, model=None):
    model = model or opened(job, motion=False)
    add_lora(model.unet, "spatial", layers or (2, 6), convolutions=convolutions)
    z, text = job.clip()[:, :, :1].float(), job.text()
    return training(job, model, "spatial", partial(
        spatial_step, model.unet, z, text, SPATIAL.values(model.unet)))


def temporal(job, layers=None, model=None):
    model = model or opened(job)
    add_lora(model.unet, "temporal", layers or (2, 5))
    return training(job, model, "temporal", partial(
        temporal_step, model.unet, job.clip().float(), job.text(),
        TEMPORAL.values(model.unet) | {"debiased": True}))


def placement(job, full: bool = False):
    """A spatial and a temporal step, one after the other: with the paper's two placements, or on
    every layer and the 1x1 convolutions too (DiffDirector)."""
    model = opened(job)
    first = spatial(job, EVERY_SPATIAL if full else None, full, model)
    second = temporal(job, EVERY_TEMPORAL if full else None, model)

    def once():
        for kind, step in (("spatial", first), ("temporal", second)):
            with customttt.lora.lora_on(model.unet, kind):
                trained(model, kind)
                step()
    return once


def ttt(job):
    model = opened(job)
    for kind, layers in (("spatial", (2, 6)), ("temporal", (2, 5))):
        add_lora(model.unet, kind, layers, dropout=0.0, name=f"{kind}_teacher")
        add_lora(model.unet, kind, layers)
    texts = Texts(*(job.text() for _ in range(4)))
    return training(job, model, "ttt", partial(
        ttt_step, model.unet, texts, job.shape, TTT.values(model.unet)))


def tiny(job):
    """The default run of the miniature, from start to end: three stages and a sample."""
    program = Path(customttt.__file__).parents[1]

    def once():
        for name, *flags in job.commands:
            subprocess.run([sys.executable, program / name, *flags], cwd=job.folder, check=True,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return once


ROWS = {each.__name__: each for each in
        (load, forward, denoise, spatial, temporal, placement, reference, ttt, decode, tiny)}
