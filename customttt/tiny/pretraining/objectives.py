"""What pretraining the tiny CLIP and VAE trains, on what, and towards what; `images.py` goes on.

A stage function takes the model folder that holds the parts trained before, the folder of working
files, the recipe and the machine. A step first draws all that is random, on the CPU, then computes
its loss, on the device.

Axes: n images, c channels, H W pixels.
"""

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ...files.save import save_text_encoder, save_vae
from ...files.tokenizers import save_tokenizer
from ...model.clip import CLIP
from ...model.config import TextConfig, VAEConfig, VisionConfig
from ...model.tokenizer import Tokenizer
from ...model.vae import VAE
from ..world import clips as world, subjects
from ..world.chance import choice, uniform
from .data import (BFLOAT16, Machine, cut, describe, draw_clips, draw_frames, fits,
                   make_tokenizer)
from .judge import of_kind
from .parts import load_towers, load_vae, longest, save_clip

LATENT_DEVIATION = 0.5      # of the scaled latents


@dataclass(frozen=True)
class Recipe:
    """AdamW, some with Muon (Jordan et al. 2024); linear warm-up, cosine to a hundredth."""

    steps: int
    batch: int
    lr: float
    weight_decay: float = 0.01
    warm_up: int = 100
    average: float = 0.998      # decay of the exponential average of the weights
    examples: int = 0           # clips whose latents are computed beforehand
    muon_lr: float = 0.0        # of Muon, for the matrices; 0: AdamW for them too


RECIPES = {"clip": Recipe(steps=800, batch=96, lr=1.5e-3),
           "vision": Recipe(steps=5000, batch=48, lr=1.5e-3),
           "tune": Recipe(steps=1300, batch=96, lr=4e-4),
           "vae": Recipe(steps=2000, batch=8, lr=1.5e-3),
           "sharpen": Recipe(steps=4600, batch=16, lr=1.5e-3),
           "whole": Recipe(steps=3000, batch=8, lr=5e-4),
           "crops": Recipe(steps=5000, batch=96, lr=1e-3, muon_lr=2e-3, examples=20000),
           "unet": Recipe(steps=4000, batch=96, lr=1e-3, muon_lr=2e-3, examples=20000),
           "few": Recipe(steps=3700, batch=16, lr=1e-3, muon_lr=4e-3, examples=6000),
           "half": Recipe(steps=2400, batch=8, lr=1e-3, muon_lr=3e-3, examples=6000),
           "motion": Recipe(steps=3600, batch=4, lr=8e-4, muon_lr=2.4e-3, examples=6000)}


@dataclass(frozen=True)
class Stage:
    module: nn.Module                                   # what requires a gradient in it is trained
    draw: Callable[[Generator], tuple[Tensor, ...]]     # one step's batch
    loss: Callable[..., Tensor]                         # of a batch
    save: Callable[[Path], None]                        # writes its part of the model folder
    alike: bool     # all batches have one shape, so that a GPU can replay a step


def clip_stage(folder: Path, work: Path, recipe: Recipe, machine: Machine) -> Stage:
    """Contrastive (Radford et al. 2021); a caption that also fits another image is no negative."""
    tokenizer = make_tokenizer()
    text = TextConfig(vocabulary=len(tokenizer.vocabulary), width=96, layers=3, heads=4,
                      inner_width=384, length=77)
    vision = VisionConfig(width=96, layers=4, heads=4, inner_width=384, image_size=world.SIZE,
                          patch=8)
    clip = CLIP(text, vision, projection=96)
    nn.init.normal_(clip.text_model.token_embedding.weight, std=0.02)       # as in CLIP
    nn.init.normal_(clip.text_model.position_embedding.weight, std=0.01)
    nn.init.normal_(clip.vision_model.position_embedding.weight, std=0.02)

    def draw(generator: Generator) -> tuple[Tensor, ...]:
        # In three batches of four all pictures share a scene: else scene and colour tell most pairs
        # apart, and shapes are learned last (43% right after 400 steps, the others 100%).
        shared = uniform(generator, 0, 1) < 0.75
        scenes = (choice(generator, world.SCENES),) if shared else tuple(world.SCENES)
        clips = draw_clips(generator, recipe.batch, scenes)
        return draw_frames(generator, clips)[0], *draw_captions(tokenizer, clips, generator)

    def loss(pixels: Tensor, *captions: Tensor) -> Tensor:
        return contrastive_loss(clip, tokenizer.end, pixels, *captions)

    def save(folder: Path) -> None:
        save_tokenizer(tokenizer, folder / "tokenizer")
        save_towers(clip, tokenizer, folder)

    return Stage(clip, draw, loss, save, alike=False)


def draw_captions(tokenizer: Tokenizer, clips: list[world.Clip],
                  generator: Generator) -> tuple[Tensor, ...]:
    """What `contrastive_loss` wants beside the pictures: token ids of a caption each (n m); which
    captions fit which pictures (n n); which pictures are of composed subjects (k,); and ids of ten
    captions for each of those, (k 10 m'): its own, then those that differ in a colour or in the
    kind alone, which a batch rarely has."""
    captions, told = zip(*(describe(each, generator, motion=0.4) for each in clips))
    composed = [i for i, each in enumerate(clips) if each.subject.kind in subjects.COMPOSED]
    near = [replace(clips[i], subject=subject).image_caption for i in composed
            for subject in [clips[i].subject, *misnamed(clips[i].subject, generator)]]
    ids = longest(tokenizer(list(captions)), tokenizer.end)
    near_ids = longest(tokenizer(near), tokenizer.end) if near else ids[:0]
    return (ids, fits(told, clips), torch.tensor(composed, dtype=torch.long),
            near_ids.view(len(composed), 10, near_ids.shape[1]))


def contrastive_loss(clip: CLIP, end: int, pixels: Tensor, ids: Tensor, fit: Tensor,
                     composed: Tensor, near: Tensor) -> Tensor:
    """Between the pictures and a caption of each; and, for a composed subject, between its own
    caption and those near it (`draw_captions`)."""
    scale = clip.logit_scale.exp().clamp(max=100)
    images = clip.embed_images(pixels)
    logits = scale * images @ clip.embed_text(ids, end).T
    own = torch.arange(len(ids), device=ids.device)
    logits = logits.masked_fill(fit & (own != own[:, None]), -math.inf)
    loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    if not len(composed):
        return loss
    texts = clip.embed_text(near.flatten(0, 1), end).unflatten(0, near.shape[:2])
    logits = scale * torch.einsum("n d, n m d -> n m", images[composed], texts)
    return loss + F.cross_entropy(logits, torch.zeros_like(composed))


def misnamed(subject: subjects.Subject, generator: Generator) -> list[subjects.Subject]:
    """Nine near it: each two of its colours exchanged, each of the three replaced, each other
    composed kind in its place."""
    a, b, c = subject.colours
    rest = [colour for colour in subjects.COLOURS if colour not in subject.colours]
    x, y, z = (choice(generator, rest) for _ in range(3))
    return [subjects.Subject(subject.kind, colours) for colours in (
        (b, a, c), (c, b, a), (a, c, b), (x, b, c), (a, y, c), (a, b, z))] + [
        of_kind(subject, kind) for kind in subjects.COMPOSED if kind != subject.kind]


def save_towers(clip: CLIP, tokenizer: Tokenizer, folder: Path) -> None:
    """Both towers for the scores, and the text tower as the model's text encoder."""
    save_clip(clip, tokenizer, folder)
    save_text_encoder(clip.text_model, folder)


def vision_stage(folder: Path, work: Path, recipe: Recipe, machine: Machine) -> Stage:
    """The image tower on, the text tower locked (Zhai et al. 2022)."""
    return towers_stage(folder, recipe, locked=True)


def tune_stage(folder: Path, work: Path, recipe: Recipe, machine: Machine) -> Stage:
    """Both towers again, on scenes drawn evenly, which `clip` hardly had."""
    return towers_stage(folder, recipe, locked=False)


def towers_stage(folder: Path, recipe: Recipe, locked: bool) -> Stage:
    """Contrastive, with heads that are thrown away afterwards. A vision transformer learns shapes
    slowly; the heads make every patch a lesson (Jiang et al. 2021): in mid-tower, where the
    subject's centre lies from here, in radii; at the end, on the subject, which kind it is, and
    from the whole, the colours of its parts.
    """
    clip, tokenizer = load_towers(folder)
    kinds, colours = tuple(subjects.DRAWINGS), tuple(subjects.COLOURS)
    vision, width = clip.vision_model, clip.vision_model.config.width

    def head(answers: int) -> nn.Module:
        return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, answers))

    heads = nn.ModuleDict({"where": head(2), "which": head(len(kinds)),
                           "colours": head(3 * len(colours))})
    clip.requires_grad_(not locked)
    for part in (vision, clip.visual_projection):
        part.requires_grad_(True)
    seen = {}
    vision.layers[1].register_forward_hook(lambda m, i, x: seen.update(middle=x))
    vision.layers[-1].register_forward_hook(lambda m, i, x: seen.update(last=x))
    middles = torch.arange(vision.config.patch / 2, world.SIZE, vision.config.patch)

    def draw(generator: Generator) -> tuple[Tensor, ...]:
        clips = draw_clips(generator, recipe.batch)
        pixels, at = draw_frames(generator, clips)
        places = torch.stack([c.trajectory()[k] for c, k in zip(clips, at)])
        x, y, radius, _ = places.T[..., None, None]
        dx, dy = torch.broadcast_tensors((middles - x) / radius, (middles[:, None] - y) / radius)
        offsets = torch.stack([dx, dy], -1).flatten(1, 2)                   # (n patches 2)
        kind = torch.tensor([kinds.index(c.subject.kind) for c in clips])
        asked = torch.tensor([[*map(colours.index, c.subject.colours), -1, -1][:3] for c in clips])
        return offsets, kind, asked, pixels, *draw_captions(tokenizer, clips, generator)

    def loss(offsets: Tensor, kind: Tensor, asked: Tensor, pixels: Tensor,
             *captions: Tensor) -> Tensor:
        contrastive = contrastive_loss(clip, tokenizer.end, pixels, *captions)
        where = F.smooth_l1_loss(heads["where"](seen["middle"][:, 1:]), offsets)
        on_it = offsets.norm(dim=-1) < 1                                    # (n patches)
        which = heads["which"](seen["last"])                                # (n 1+patches kinds)
        of_patches = F.cross_entropy(which[:, 1:].mT, kind[:, None].where(on_it, -1),
                                     ignore_index=-1)
        painted = heads["colours"](seen["last"][:, 0]).unflatten(1, (3, -1)).transpose(1, 2)
        return contrastive + where + of_patches + F.cross_entropy(which[:, 0], kind) \
            + F.cross_entropy(painted, asked, ignore_index=-1)

    return Stage(nn.ModuleDict({"clip": clip, "heads": heads}), draw, loss,
                 lambda folder: save_towers(clip, tokenizer, folder), alike=False)


def vae_stage(folder: Path, work: Path, recipe: Recipe, machine: Machine) -> Stage:
    """No adversary and no perceptual net: a rendered world can spare them."""
    vae = VAE(VAEConfig(channels=(24, 48, 96), resnets=1, latent_channels=4, groups=8, scale=1.0))
    return reconstruction_stage(vae, recipe, crop=world.SIZE)


def sharpen_stage(folder: Path, work: Path, recipe: Recipe, machine: Machine) -> Stage:
    """Longer, on crops around the subject: a quarter of a frame each, with all that is hard."""
    vae = load_vae(folder)
    vae.requires_grad_(True)
    return reconstruction_stage(vae, recipe, crop=32)


def whole_stage(folder: Path, work: Path, recipe: Recipe, machine: Machine) -> Stage:
    """The decoder alone, on whole frames again: its norms are over the frame, so that after crops
    it drew pink clouds beside small subjects. Latents stay, and so does all that was trained on
    them."""
    vae = load_vae(folder)
    for part in (vae.post_quant_conv, vae.decoder):
        part.requires_grad_(True)
    return replace(reconstruction_stage(vae, recipe, crop=world.SIZE),
                   save=lambda folder: save_vae(vae, folder))


def reconstruction_stage(vae: VAE, recipe: Recipe, crop: int) -> Stage:
    """L1 + MSE, and a little KL, of fresh frames; the subject is small and is what counts, so its
    pixels weigh four times as much as the scene's. `crop`: the side of a window around it."""
    def draw(generator: Generator) -> tuple[Tensor, ...]:
        clips = draw_clips(generator, recipe.batch)
        pixels, at = draw_frames(generator, clips)
        mask = torch.stack([world.subject_mask(clip, [k]) for clip, k in zip(clips, at)])
        if crop < world.SIZE:
            corners = torch.stack([clip.trajectory()[k, :2] for clip, k in zip(clips, at)])
            corners = corners - crop / 2 + torch.randint(-4, 5, corners.shape, generator=generator)
            pixels, mask = (cut(maps, corners.long(), crop) for maps in (pixels, mask))
        side = crop // vae.factor
        noise = torch.randn((len(clips), vae.config.latent_channels, side, side),
                            generator=generator)
        return pixels, mask, noise

    def loss(pixels: Tensor, mask: Tensor, noise: Tensor) -> Tensor:
        return reconstruction_loss(vae, pixels, mask, noise)

    return Stage(vae, draw, loss, lambda folder: save_normalised(vae, folder), alike=True)


def reconstruction_loss(vae: VAE, pixels: Tensor, mask: Tensor, noise: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=BFLOAT16):
        mean, deviation = (each.float() for each in vae.posterior(pixels))
        z = mean + deviation * noise
        error = vae.decoder(vae.post_quant_conv(z)).float() - pixels
    weight = (1 + 3 * mask) / (1 + 3 * mask).mean()
    kl = (mean.square() + deviation.square() - 1) / 2 - deviation.log()
    return (weight * (error.abs() + error.square())).mean() + 2e-5 * kl.mean()


@torch.no_grad()
def save_normalised(vae: VAE, folder: Path) -> None:
    """With each channel of the latents moved to mean 0 and one deviation, which is what noise has;
    the 1x1 convolutions on both sides of them take that up exactly."""
    clips = draw_clips(Generator().manual_seed(0), 256)
    pixels, _ = draw_frames(Generator().manual_seed(0), clips)
    mean, _ = vae.posterior(pixels.to(vae.quant_conv.weight.device))
    middle, deviation = mean.mean((0, 2, 3)), mean.std((0, 2, 3))
    vae = deepcopy(vae)
    into, out = vae.quant_conv, vae.post_quant_conv
    c = len(middle)
    out.bias += out.weight[..., 0, 0] @ middle
    out.weight *= deviation[:, None, None]
    into.bias[:c] -= middle
    for part in (into.weight, into.bias):
        part[:c] /= deviation.view(-1, *[1] * (part.ndim - 1))
    into.bias[c:] -= 2 * deviation.log()
    vae.config = replace(vae.config, scale=LATENT_DEVIATION)
    save_vae(vae, folder)
