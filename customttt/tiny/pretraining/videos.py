"""Text to video: the tiny motion modules, on clips, in the frozen image UNet.

Axes: n clips, f frames, c channels, h w latent rows and columns.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.func import functional_call

from ...diffusion import TIMESTEPS
from ...files import keys
from ...files.save import save_motion
from ...model.config import MotionConfig
from ...model.motion import FramePositions, MotionModule, positional_encoding
from ...model.unet import UNet
from ..world import clips as world
from .data import Machine, cached_latents
from .denoising import Captions, asking_heads, attend_in_fp32, noised, weighted_loss
from .objectives import Recipe, Stage
from .parts import fill_motion, load_image_unet, load_vae

MOTION = MotionConfig(version=3, max_frames=32, heads=2)


def few_stage(folder: Path, work: Path, recipe: Recipe, machine: Machine) -> Stage:
    """Motion modules on four frames of a clip, at random: what tells one motion from another is how
    frames far apart differ, and clips are what there must be many of."""
    unet = load_image_unet(folder, MOTION)
    for module in unet.modules():
        if isinstance(module, MotionModule):
            start_motion(module)
    return clips_stage(unet, folder, work, recipe, machine, frames=4, noisiest=0.75)


def start_motion(module: MotionModule) -> None:
    """The identity; and attention that starts at its own frame. PyTorch's own start is near
    uniform: then every frame gets the mean over all, which does not say which frame it is."""
    nn.init.zeros_(module.proj_out.weight)
    nn.init.zeros_(module.proj_out.bias)
    block = module.block
    for attention, norm, scale in ((block.attn1, block.norm1, 4), (block.attn2, block.norm2, 2)):
        nn.init.constant_(norm.weight, 0.3)         # so that places in time weigh more than content
        for linear, size in ((attention.to_q, scale), (attention.to_k, scale),
                             (attention.to_v, 1), (attention.to_out, 1)):
            with torch.no_grad():
                nn.init.eye_(linear.weight).mul_(size)


def half_stage(folder: Path, work: Path, recipe: Recipe, machine: Machine) -> Stage:
    """The same on eight frames."""
    unet = load_image_unet(folder, MOTION)
    fill_motion(unet, folder)
    return clips_stage(unet, folder, work, recipe, machine, frames=8, noisiest=0.25)


def motion_stage(folder: Path, work: Path, recipe: Recipe, machine: Machine) -> Stage:
    """The same on whole clips."""
    unet = load_image_unet(folder, MOTION)
    fill_motion(unet, folder)
    return clips_stage(unet, folder, work, recipe, machine, frames=world.FRAMES, noisiest=0.25)


def clips_stage(unet: UNet, folder: Path, work: Path, recipe: Recipe, machine: Machine, frames: int,
                noisiest: float) -> Stage:
    """The image UNet is frozen and in the machine's quick dtype; the motion modules are in fp32.

    `noisiest`: the share of timesteps from the noisiest tenth, where the verb alone tells where the
    subject will be; the others are from all.

    On fewer frames than a clip's, only those from layer 2 on are trained: layers 0 and 1 are the
    dearest, and need no backward pass then; and errors are those of z, so that place and colour,
    decided where noise is strong, weigh more than texture. Heads that are thrown away afterwards
    ask some layers where the subject is and how it moves, frame by frame.
    """
    whole = frames == world.FRAMES
    freeze(unet, 0 if whole else 2, machine.quick)
    clips, _, latents, _ = cached_latents(work / "clips.pt", load_vae(folder), recipe.examples,
                                          seed=12, frames=world.FRAMES, machine=machine)
    places = torch.stack([place_and_speed(clip) for clip in clips])
    texts = Captions(folder, machine)
    shown: dict[str, Tensor] = {}       # "frames": which frames of the clips a step sees
    show_frames(unet, shown)
    if machine.device.type == "cpu":
        attend_in_fp32(unet)
    seen, heads = asking_heads(unet, (5, 6, 7), answers=places.shape[-1], places=16)

    def draw(generator: Generator) -> tuple[Tensor, ...]:
        n = recipe.batch
        i = torch.randint(len(clips), (n,), generator=generator)
        captions = texts.draw([clips[k] for k in i], generator, motion=0.95)
        low = 0.9 * TIMESTEPS * (torch.rand(n, generator=generator) < noisiest)
        t = (low + (TIMESTEPS - low) * torch.rand(n, generator=generator)).long()
        t = t.clamp(max=TIMESTEPS - 1)      # the sum can round to 1000
        some = torch.randperm(world.FRAMES, generator=generator)[:frames].sort().values
        z = latents[i][:, :, some].float()
        return (*noised(z, t, generator, power=0.5 if whole else 1), t, texts.tokenizer(captions),
                some, places[i][:, some])

    def loss(x_t: Tensor, eps: Tensor, weight: Tensor, t: Tensor, ids: Tensor, some: Tensor,
             asked: Tensor) -> Tensor:
        shown["frames"] = some
        quick = {name: p.to(machine.quick) for name, p in unet.named_parameters()
                 if p.requires_grad}
        inputs = x_t.to(machine.quick), t, texts.embed(ids).to(machine.quick)
        eps_hat = functional_call(unet, quick, inputs).float()
        return weighted_loss(eps_hat, eps, weight) + 0.3 * path_error(seen, heads, asked)

    return Stage(nn.ModuleDict({"unet": unet, "heads": heads}), draw, loss,
                 lambda folder: save_motion(unet, folder), alike=True)


def freeze(unet: UNet, first: int, quick: torch.dtype) -> None:
    """All but the motion modules of the layers from `first` on; what is frozen is in `quick`."""
    for name, p in unet.named_parameters():
        p.requires_grad_(keys.is_motion(name) and int(name.split(".")[1]) >= first)
        if not p.requires_grad:
            p.data = p.data.to(quick)


def path_error(seen: dict[str, Tensor], heads: nn.ModuleDict, asked: Tensor) -> Tensor:
    """How far the heads' answers are from `asked` (n f answers)."""
    maps = {i: F.adaptive_avg_pool2d(out[0].float(), 4).flatten(1) for i, out in seen.items()}
    errors = [F.mse_loss(head(F.layer_norm(maps[i], maps[i].shape[1:])), asked.flatten(0, 1))
              for i, head in heads.items()]
    return torch.stack(errors).mean()


def place_and_speed(clip: world.Clip) -> Tensor:
    """(f, 7): x, y, log radius, their change a frame, and how fast it turns, each about 1."""
    path = clip.trajectory()
    path = torch.cat([path[:, :2], path[:, 2:3].log(), path[:, 3:]], 1)     # x y log-radius angle
    speed = torch.gradient(path, dim=0)[0]
    places = (path[:, :3] - torch.tensor([32, 32, 2.7])) / torch.tensor([9, 9, 0.25])
    return torch.cat([places, speed[:, :3] / torch.tensor([2, 2, 0.05]),
                      speed[:, 3:].abs() / 0.4], 1)


def show_frames(unet: UNet, shown: dict[str, Tensor]) -> None:
    """Give frames their own places in the clip, where only `shown["frames"]` of it are seen."""
    for module in unet.modules():
        if isinstance(module, FramePositions):
            module.register_forward_hook(lambda m, inputs, position: positional_encoding(
                world.FRAMES, position.shape[1], position.device)[shown["frames"]].to(
                    position.dtype))
