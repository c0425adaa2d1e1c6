"""What the paper's Table 1 compares with, on the same base model, as stages of train.py:

  full-spatial, full-temporal                Full LoRA: CustomTTT's (a) and (b), in every layer
  diffdirector-spatial, diffdirector         AnimateDiff-MotionDirector (ExponentialML)
  motiondirector-spatial, motiondirector     MotionDirector (Zhao et al. 2023)
  dreamvideo-word, -identity, -motion        DreamVideo (Wei et al. 2023): dreamvideo.py

Each subject stage learns from images, each motion stage from a video; both files together are the
system: sample.py --lora output/diffdirector-spatial output/diffdirector --prompt ... DreamVideo's
files are no LoRAs; customttt/paper/rows.py samples it.

Trainable parameters at Stable Diffusion 1.5's size, rank 32, spatial and temporal together:

  Full LoRA        28,864,512    the paper prints 28.26M
  DiffDirector     30,461,952    30.46M
  MotionDirector   25,681,920    21.26M: 21,258,240 on its own base, ModelScope's model

DiffDirector and MotionDirector share one step, the dual path. Here they differ in what the spatial
LoRA is put on: DiffDirector has every Linear of a spatial transformer and its two 1x1 convolutions,
MotionDirector neither the convolutions nor the cross-attention; and in their learning rates and
Lion's betas (DiffDirector has its own, the others the recipe's, which for images are longer at tiny
size).
Legend: z clean latents (b 4 f h w), c text embeddings (b n d), eps noise, t timesteps (b,).
"""

import contextlib
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from .. import recipes
from ..draws import Draws
from ..files.lora_files import save_lora
from ..lora import lora_on, lora_parameters, put_lora, targets
from ..losses import spatial_loss, temporal_loss
from ..model.model import Model
from ..model.unet import UNet
from ..recipes import Recipe, Setting
from ..run.data import add_data_flags, prepare_temporal, read_images
from ..run.stage import Job, Stage
from ..stages import SPATIAL, TEMPORAL, Backward
from .dreamvideo import DREAMVIDEO

EVERY_SPATIAL = Setting((0, 1, 2, 4, 6, 7, 8), "every layer that has one", "with spatial LoRA",
                        zero=True)
EVERY_TEMPORAL = Setting((0, 1, 2, 3, 5, 6, 7, 8), "every layer with motion modules in v1 and v3",
                         "with temporal LoRA", zero=True)


def changed(recipe: Recipe, full: dict[str, Setting], tiny: dict[str, Setting] | None = None,
            ) -> Recipe:
    """A recipe with other values; where they differ, the tiny model's own go too."""
    kept = {name: setting for name, setting in recipe.tiny.items() if name not in full}
    return Recipe(recipe.full | full, kept | (tiny or {}))


def renamed(stage: Stage, name: str, recipe: Recipe) -> Stage:
    return replace(stage, name=name, kind=name, recipe=recipe)


# ---------------------------------------------------------------------------------- Full LoRA

FULL_SPATIAL = renamed(SPATIAL, "full-spatial",
                       changed(recipes.SPATIAL, {"spatial_layers": EVERY_SPATIAL}))
FULL_TEMPORAL = renamed(TEMPORAL, "full-temporal",
                        changed(recipes.TEMPORAL, {"temporal_layers": EVERY_TEMPORAL}))


# ---------------------------------------------------------------------------------- dual path

def put_spatial(unet: UNet, settings: dict) -> None:
    """The spatial LoRA, where the system has it."""
    for target in targets(unet, "spatial", settings["spatial_layers"], settings["convolutions"]):
        if settings["cross_attention"] or ".attn2." not in target:
            put_lora(unet, target, "spatial", settings["rank"], settings["dropout"])


def prepare_images(model: Model, settings: dict, args: Namespace) -> Job:
    put_spatial(model.unet, settings)
    job = read_images(model, settings, args)
    lora = {name: settings[name] for name in ("spatial_layers", "rank")}
    return replace(job, metadata=lora | job.metadata)


def prepare_video(model: Model, settings: dict, args: Namespace) -> Job:
    job = prepare_temporal(model, settings, args)
    put_spatial(model.unet, settings)
    return job


def dual_path_step(unet: UNet, z: Tensor, c: Tensor, settings: dict, draw: Draws,
                   backward: Backward) -> None:
    """MotionDirector (Zhao et al. 2023), dual path: the spatial path takes the video's appearance
    on itself, so that the temporal path is left with its motion.

      L_spatial  = || eps_hat(frame k; spatial LoRA) - eps_k ||^2
      L_temporal = the loss of stage (b), both LoRAs on; it trains the temporal one alone

    Both paths see one noise and one timestep. With probability `switch_off` the spatial LoRA is off
    and not trained in a step. Motion modules are out of the spatial path: those of
    AnimateDiff-MotionDirector return their input when they get one frame.
    """
    one = draw.some(len(z), 1)
    z, c = z[one], c[one]
    eps, t = draw.noise_like(z), draw.timesteps(z, settings["least_timestep"])
    off = draw.chance(settings["switch_off"])
    k, anchor = draw.frame(z), draw.frame(z) if settings["debiased"] else None
    if not off:
        with lora_on(unet, "spatial"):
            backward(spatial_loss(unet, z[:, :, k:k + 1], c, eps[:, :, k:k + 1], t))
    with lora_on(unet, *(() if off else ("spatial",)), "temporal"), frozen(unet, "spatial"):
        backward(temporal_loss(unet, z, c, eps, t, anchor))


@contextlib.contextmanager
def frozen(unet: UNet, name: str) -> Iterator[None]:
    """Inside the `with`, no gradient reaches the LoRA of this name."""
    parameters = lora_parameters(unet, name).values()
    before = [parameter.requires_grad for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, trained in zip(parameters, before):
            parameter.requires_grad_(trained)


class DualPath(Stage):
    """Learns from a video; its file holds the temporal LoRA. The spatial one is the video's
    appearance, which MotionDirector leaves behind when it samples."""

    def groups(self, parameters: dict[str, nn.Parameter], settings: dict) -> list[dict]:
        spatial = [p for name, p in parameters.items() if ".spatial." in name]
        temporal = [p for name, p in parameters.items() if ".temporal." in name]
        return [{"params": temporal, "lr": settings["learning_rate"]},
                {"params": spatial, "lr": settings["spatial_learning_rate"]}]

    def save(self, model: Model, path: Path, metadata: dict) -> None:
        save_lora(model.unet, path, metadata, ("temporal",))


def placed(convolutions: bool, cross_attention: bool, source: str) -> dict[str, Setting]:
    return {"spatial_layers": EVERY_SPATIAL,
            "convolutions": Setting(convolutions, source, "LoRA on the 1x1 convolutions, too"),
            "cross_attention": Setting(cross_attention, source, "LoRA on cross-attention, too")}


SWITCH_OFF = {"switch_off": Setting(0.2, "MotionDirector_train.py", "chance of no spatial LoRA",
                                    zero=True, below=1)}
TINY_SPATIAL_RATE = {"spatial_learning_rate": Setting(
    recipes.SPATIAL.tiny["learning_rate"].value, "tiny: of --stage spatial")}

DD = placed(True, True, "AnimateDiff-MotionDirector: all of Transformer3DModel") | {
    "betas": Setting((0.9, 0.999), "AnimateDiff-MotionDirector: train.py", "of Lion", zero=True,
                     below=1)}
DIFFDIRECTOR_SPATIAL = replace(
    renamed(SPATIAL, "diffdirector-spatial", changed(recipes.SPATIAL, DD)), prepare=prepare_images)
DIFFDIRECTOR = DualPath(
    "diffdirector", "diffdirector", changed(
        recipes.TEMPORAL, DD | SWITCH_OFF | {
            "temporal_layers": EVERY_TEMPORAL,
            "spatial_learning_rate": Setting(
                1e-5, "AnimateDiff-MotionDirector: 1e-4 / 10 for Lion", "of the spatial LoRA")},
        TINY_SPATIAL_RATE),
    add_data_flags, prepare_video, dual_path_step, trained=("spatial", "temporal"),
    rows=(("temporal",), ("spatial", "temporal")))

MD = placed(False, False, "MotionDirector: utils/lora.py, attn1 and ff of Transformer2DModel")
MD_RATE = Setting(5e-5, "MotionDirector: 5e-4 with AdamW, / 10 for Lion", "of the spatial LoRA")
MOTIONDIRECTOR_SPATIAL = replace(
    renamed(SPATIAL, "motiondirector-spatial", changed(
        recipes.SPATIAL, MD | {"learning_rate": MD_RATE},
        {"learning_rate": TINY_SPATIAL_RATE["spatial_learning_rate"]})),
    prepare=prepare_images)
MOTIONDIRECTOR = replace(DIFFDIRECTOR, name="motiondirector", kind="motiondirector", recipe=changed(
    recipes.TEMPORAL, MD | SWITCH_OFF | {
        "temporal_layers": EVERY_TEMPORAL, "spatial_learning_rate": MD_RATE}, TINY_SPATIAL_RATE))

SYSTEMS = {         # Table 1's name: the stages that learn a subject, those that learn a motion
    "Full LoRA": ((FULL_SPATIAL,), (FULL_TEMPORAL,)),
    "DiffDirector": ((DIFFDIRECTOR_SPATIAL,), (DIFFDIRECTOR,)),
    "MotionDirector": ((MOTIONDIRECTOR_SPATIAL,), (MOTIONDIRECTOR,)),
    "DreamVideo": (DREAMVIDEO[:2], DREAMVIDEO[2:]),
}
COMPARED = {stage.name: stage for subject, motion in SYSTEMS.values()
            for stage in (*subject, *motion)}
