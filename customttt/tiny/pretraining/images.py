"""Text to image: the tiny image UNet, on single frames of clips.

Axes: n images, f frames, c channels, h w latent rows and columns.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.func import functional_call

from ...diffusion import TIMESTEPS
from ...files.save import save_unet
from ...model.unet import UNet
from ..world import clips as world, motions
from ..world.subjects import COMPOSED
from .data import FACTOR, Machine, cached_latents, cut
from .denoising import UNET, Captions, asking_heads, attend_in_fp32, noised, weighted_loss
from .objectives import Recipe, Stage
from .parts import load_image_unet, load_vae
from .reading import colour_tokens, misreading, reading_heads

CROP = 8                    # latent pixels, about a subject's diameter


def crops_stage(folder: Path, work: Path, recipe: Recipe, machine: Machine) -> Stage:
    """The image UNet on crops around the subject, a quarter of a frame each and as much cheaper:
    shapes are what takes longest to learn, and most of a frame is scene."""
    unet = UNet(UNET)
    nn.init.zeros_(unet.conv_out.weight)
    return image_stage(unet, folder, work, recipe, machine, cropped=True)


def unet_stage(folder: Path, work: Path, recipe: Recipe, machine: Machine) -> Stage:
    """The same UNet on whole frames."""
    unet = load_image_unet(folder)
    unet.requires_grad_(True)
    return image_stage(unet, folder, work, recipe, machine, cropped=False)


def image_stage(unet: UNet, folder: Path, work: Path, recipe: Recipe, machine: Machine,
                cropped: bool) -> Stage:
    """Text to image, on single frames of clips, so that a subject may be anywhere in the frame.

    Two lessons beside the noise, each small in the loss:

    A photo shows what its verb says; here a frame of "moving left" could be one of "moving right",
    so nothing would carry the verb to where motion modules can read it, once this UNet is frozen.
    Heads that are thrown away afterwards ask for it: which motion, from the means of some layers.

    Some heads of the attention to the text are asked for the colour word of what a pixel shows
    (`reading.py`).
    """
    clips, at, latents, parts = cached_latents(work / "frames.pt", load_vae(folder),
                                               recipe.examples, seed=11, frames=1, machine=machine)
    corners = torch.stack([crop_corner(clip, k) for clip, k in zip(clips, at)])
    # A plain kind is learned long before all parts of a composed one have their colours.
    harder = torch.tensor([1.0 + (clip.subject.kind in COMPOSED) for clip in clips])
    texts = Captions(folder, machine)
    read = reading_heads(unet)
    if machine.device.type == "cpu":
        attend_in_fp32(unet)
    seen, heads = asking_heads(unet, (1, 2, 4, 6, 7), answers=len(motions.MOTIONS))

    def draw(generator: Generator) -> tuple[Tensor, ...]:
        n = recipe.batch
        some = torch.multinomial(harder, n, replacement=True, generator=generator)
        captions = texts.draw([clips[k] for k in some], generator, motion=0.7)
        z, shown = latents[some].float(), parts[some].float()
        if cropped:
            jitter = torch.randint(-1, 2, (n, 2), generator=generator)
            z, shown = (cut(maps, corners[some] + jitter, CROP) for maps in (z[:, :, 0], shown))
            z = z[:, :, None]
        t = torch.randint(TIMESTEPS, (n,), generator=generator)
        word = torch.tensor([motions.MOTIONS.index(clips[k].motion.word)
                             if clips[k].motion.word in caption else -1
                             for k, caption in zip(some, captions)])
        said = torch.tensor([colour_tokens(clips[k], caption)
                             for k, caption in zip(some, captions)])
        return *noised(z, t, generator), t, texts.tokenizer(captions), word, shown, said

    def loss(x_t: Tensor, eps: Tensor, weight: Tensor, t: Tensor, ids: Tensor, word: Tensor,
             shown: Tensor, said: Tensor) -> Tensor:
        quick = {name: p.to(machine.quick) for name, p in unet.named_parameters()}
        inputs = x_t.to(machine.quick), t, texts.embed(ids).to(machine.quick)
        eps_hat = functional_call(unet, quick, inputs, {"motion": False}).float()
        of_verbs = [F.cross_entropy(head(seen[i][0].float().mean((2, 3))), word, ignore_index=-1,
                                    reduction="sum") / len(t) for i, head in heads.items()]
        misread = [misreading(log_p, shown, said) for log_p in read.values()]
        return weighted_loss(eps_hat, eps, weight) + 0.03 * torch.stack(of_verbs).mean() \
            + 0.05 * torch.stack(misread).mean()

    return Stage(nn.ModuleDict({"unet": unet, "heads": heads}), draw, loss,
                 lambda folder: save_unet(unet, folder), alike=True)


def crop_corner(clip: world.Clip, frame: int) -> Tensor:
    """x and y, in latent pixels, of the window of CROP by CROP with the subject in its middle."""
    return (clip.trajectory()[frame, :2] / FACTOR - CROP / 2).round().long()
