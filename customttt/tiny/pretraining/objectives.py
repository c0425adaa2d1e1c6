"""What pretraining the tiny CLIP and VAE trains, on what, and towards what; `denoising.py` goes on.

A stage function takes the model folder that holds the parts trained before, the folder of working
files, and the recipe; a step's loss takes the generator that everything random is drawn from.

Axes: n images, c channels, H W pixels.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ...files import keys
from ...files.configs import text_json, vae_json
from ...files.load import WEIGHTS
from ...files.save import save_part
from ...files.tokenizers import save_tokenizer
from ...model.clip import CLIP
from ...model.config import TextConfig, VAEConfig, VisionConfig
from ...model.tokenizer import Tokenizer
from ...model.vae import VAE
from ..world import clips as world, subjects
from ..world.chance import choice, uniform
from ..world.subjects import recoloured
from .data import TAUGHT, describe, draw_clips, draw_frames, fits, make_tokenizer
from .judge import PARTS, picture_caption
from .parts import load_clip, load_vae, save_clip

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
           "tune": Recipe(steps=600, batch=96, lr=8e-4),
           "vae": Recipe(steps=2000, batch=8, lr=1.5e-3),
           "decoder": Recipe(steps=3000, batch=8, lr=1.5e-3),
           "crops": Recipe(steps=5000, batch=64, lr=1e-3, examples=20000),
           "unet": Recipe(steps=3000, batch=128, lr=6e-4, examples=20000),
           "few": Recipe(steps=3700, batch=16, lr=1e-3, muon_lr=4e-3, examples=6000),
           "half": Recipe(steps=2400, batch=8, lr=1e-3, muon_lr=3e-3, examples=6000),
           "motion": Recipe(steps=3600, batch=4, lr=8e-4, muon_lr=2.4e-3, examples=6000)}


@dataclass(frozen=True)
class Stage:
    module: nn.Module                       # what requires a gradient in it is trained
    loss: Callable[[Generator], Tensor]     # of one step, on what the generator draws
    save: Callable[[Path], None]            # writes the module's part of the model folder


def clip_stage(folder: Path, work: Path, recipe: Recipe) -> Stage:
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

    def loss(generator: Generator) -> Tensor:
        # In three batches of four all pictures share a scene: else scene and colour tell most pairs
        # apart, and shapes are learned last (43% right after 400 steps, the others 100%).
        return contrastive_loss(clip, tokenizer, recipe.batch, generator, one_scene=0.75)

    def save(folder: Path) -> None:
        save_tokenizer(tokenizer, folder / "tokenizer")
        save_towers(clip, tokenizer, folder)

    return Stage(clip, loss, save)


def tune_stage(folder: Path, work: Path, recipe: Recipe) -> Stage:
    """Both towers again, on scenes drawn evenly, which `clip` hardly had."""
    clip, tokenizer = load_clip(folder)
    clip.requires_grad_(True)
    return Stage(clip, lambda generator: contrastive_loss(clip, tokenizer, recipe.batch, generator),
                 lambda folder: save_towers(clip, tokenizer, folder))


def contrastive_loss(clip: CLIP, tokenizer: Tokenizer, batch: int, generator: Generator,
                     one_scene: float = 0.0) -> Tensor:
    """`one_scene`: how often all pictures of the batch share a scene.

    Among the captions to choose from are two of every picture with a part's colour wrong: other
    pictures of the batch differ in so much that the parts' colours would hardly be needed.
    """
    shared = uniform(generator, 0, 1) < one_scene
    scenes = (choice(generator, world.SCENES),) if shared else tuple(world.SCENES)
    clips = draw_clips(generator, batch, scenes, TAUGHT)
    wrong = [replace(c, subject=recoloured(generator, c.subject)) for c in clips * 2]
    captions, said = zip(*(describe(c, generator, motion=0.4) for c in clips + wrong))
    ids = tokenizer(list(captions))
    ids = ids[:, :(ids == tokenizer.end).int().argmax(1).max() + 1]     # causal: the rest is idle
    pixels, _ = draw_frames(generator, clips)
    logits = clip.logit_scale.exp().clamp(max=100) * (
        clip.embed_images(pixels) @ clip.embed_text(ids, tokenizer.end).T)
    own = torch.arange(batch)
    fitting = fits(said, clips)
    fitting[own, own] = False
    logits = logits.masked_fill(fitting, -math.inf)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits[:, :batch].T, own)) / 2


def save_towers(clip: CLIP, tokenizer: Tokenizer, folder: Path) -> None:
    """Both towers for the scores, and the text tower as the model's text encoder."""
    save_clip(clip, tokenizer, folder)
    save_part(clip.text_model, keys.public_text, text_json(clip.text_model.config),
              folder / "text_encoder" / "model.safetensors", torch.float16)


def vision_stage(folder: Path, work: Path, recipe: Recipe) -> Stage:
    """The image tower on, the text tower locked (Zhai et al. 2022), against every possible caption.

    A vision transformer learns shapes slowly. Two heads that are thrown away afterwards make every
    patch a lesson (Jiang et al. 2021): in mid-tower, where the subject's centre lies from here, in
    radii; at the end, on the subject, which kind it is and its parts' colours.
    """
    clip, tokenizer = load_clip(folder)
    kinds, colours, scenes = tuple(subjects.DRAWINGS), tuple(subjects.COLOURS), tuple(world.SCENES)
    every = {subject: i for i, subject in enumerate(subjects.every_subject())}
    captions = [picture_caption(subject, scene) for subject in every for scene in scenes]
    with torch.no_grad():                                                   # (subjects*scenes d)
        table = torch.cat([clip.embed_text(tokenizer(captions[k:k + 250])[:, :20], tokenizer.end)
                           for k in range(0, len(captions), 250)])
    vision, width = clip.vision_model, clip.vision_model.config.width
    module = nn.ModuleDict({
        "tower": vision, "projection": clip.visual_projection,
        "where": nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2)),
        "which": nn.Sequential(nn.LayerNorm(width),
                               nn.Linear(width, len(kinds) + len(PARTS) * len(colours)))})
    module.requires_grad_(True)
    seen = {}
    vision.layers[1].register_forward_hook(lambda m, i, x: seen.update(middle=x))
    vision.layers[-1].register_forward_hook(lambda m, i, x: seen.update(last=x))
    middles = torch.arange(vision.config.patch / 2, world.SIZE, vision.config.patch)

    def loss(generator: Generator) -> Tensor:
        clips = draw_clips(generator, recipe.batch, kinds=TAUGHT)
        pixels, at = draw_frames(generator, clips)
        own = [every[c.subject] * len(scenes) + scenes.index(c.scene) for c in clips]
        contrastive = F.cross_entropy(30 * clip.embed_images(pixels) @ table.T, torch.tensor(own))

        places = torch.stack([c.trajectory()[k] for c, k in zip(clips, at)])
        x, y, radius, _ = places.T[..., None, None]
        dx, dy = torch.broadcast_tensors((middles - x) / radius, (middles[:, None] - y) / radius)
        offsets = torch.stack([dx, dy], -1).flatten(1, 2)                   # (n patches 2)
        where = F.smooth_l1_loss(module["where"](seen["middle"][:, 1:]), offsets)
        on_it = offsets.norm(dim=-1) < 1                                    # (n patches)
        which = module["which"](seen["last"])                               # (n 1+patches kinds)
        answers = torch.tensor([[kinds.index(c.subject.kind),
                                 *(colours.index(colour) for colour in c.subject.colours),
                                 *[-1] * (len(PARTS) - len(c.subject.colours))] for c in clips])
        of_patches = answers[:, None].expand(*on_it.shape, -1)[on_it]
        return contrastive + where + answered(which[:, 0], answers) \
            + answered(which[:, 1:][on_it], of_patches)

    def answered(logits: Tensor, answers: Tensor) -> Tensor:
        """Kind, then the parts' colours; -1 where a plain subject has no such part."""
        each = logits.split([len(kinds)] + [len(colours)] * len(PARTS), dim=-1)
        return sum(F.cross_entropy(some, answer, ignore_index=-1)
                   for some, answer in zip(each, answers.T))

    return Stage(module, loss, lambda folder: save_clip(clip, tokenizer, folder))


def vae_stage(folder: Path, work: Path, recipe: Recipe) -> Stage:
    """No adversary and no perceptual net: a rendered world can spare them."""
    vae = VAE(VAEConfig(channels=(24, 48, 96), resnets=1, latent_channels=4, groups=8, scale=1.0))

    def loss(generator: Generator) -> Tensor:
        return reconstruction_loss(vae, generator, recipe.batch)

    @torch.no_grad()
    def save(folder: Path) -> None:
        clips = draw_clips(Generator().manual_seed(0), 256)
        pixels, _ = draw_frames(Generator().manual_seed(0), clips)
        scale = LATENT_DEVIATION / vae.posterior(pixels)[0].std().item()
        save_part(vae, keys.diffusers_vae, vae_json(replace(vae.config, scale=round(scale, 5))),
                  folder / "vae" / WEIGHTS, torch.float16)

    return Stage(vae, loss, save)


def decoder_stage(folder: Path, work: Path, recipe: Recipe) -> Stage:
    """The decoder on, the encoder locked: latents stay what they are, and with them the UNets."""
    vae = load_vae(folder)
    vae.decoder.requires_grad_(True)

    def save(folder: Path) -> None:
        save_part(vae, keys.diffusers_vae, vae_json(vae.config), folder / "vae" / WEIGHTS,
                  torch.float16)

    return Stage(vae, lambda generator: reconstruction_loss(vae, generator, recipe.batch), save)


def reconstruction_loss(vae: VAE, generator: Generator, batch: int) -> Tensor:
    """L1 + MSE, and a little KL, of fresh frames; the subject is small and is what counts, so its
    pixels weigh four times as much as the scene's."""
    clips = draw_clips(generator, batch)
    pixels, at = draw_frames(generator, clips)
    mask = torch.stack([world.subject_mask(clip, [k])[0] for clip, k in zip(clips, at)])[:, None]
    mean, deviation = vae.posterior(pixels)
    z = mean + deviation * torch.randn(mean.shape, generator=generator)
    error = vae.decoder(vae.post_quant_conv(z)) - pixels
    weight = (1 + 3 * mask) / (1 + 3 * mask).mean()
    kl = (mean.square() + deviation.square() - 1) / 2 - deviation.log()
    return (weight * (error.abs() + error.square())).mean() + 2e-5 * kl.mean()
