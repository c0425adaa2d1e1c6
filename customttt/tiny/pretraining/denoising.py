"""What pretraining the tiny model's UNet minimises: image UNet first, then motion modules on it.

`objectives.py` has the stages before these and says what a stage is.

Axes: n images or clips, f frames, c channels, h w latent rows and columns.
"""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.func import functional_call

from ...diffusion import STEPS, add_noise, alpha_bar
from ...files import keys
from ...files.configs import motion_json, unet_json
from ...files.load import WEIGHTS
from ...files.save import position_tables, save_part
from ...losses import noise_loss
from ...model.blocks import Attention
from ...model.config import MotionConfig, UNetConfig
from ...model.motion import FramePositions, MotionModule, positional_encoding
from ...model.unet import UNet
from ..world import clips as world, motions
from .data import cached_latents, cut, describe
from .objectives import QUICK, Recipe, Stage
from .parts import fill_motion, load_image_unet, load_text_encoder, load_vae

FACTOR = 4                  # pixels a latent pixel
CROP = 8                    # latent pixels, about a subject's diameter
READERS = (1, 7, 8)         # layers whose attention to the text is asked for colours
UNET = UNetConfig(channels=(32, 64, 96, 96), latent_channels=4, text_width=96, heads=2, groups=8,
                  motion=None)      # 32 groups as in SD 1.5 would be instance norm at width 32
MOTION = MotionConfig(version=3, max_frames=32, heads=2)


def crops_stage(folder: Path, work: Path, recipe: Recipe) -> Stage:
    """The image UNet on crops around the subject, a quarter of a frame each and as much cheaper:
    shapes are what takes longest to learn, and most of a frame is scene."""
    unet = UNet(UNET)
    nn.init.zeros_(unet.conv_out.weight)
    return image_stage(unet, folder, work, recipe, cropped=True)


def unet_stage(folder: Path, work: Path, recipe: Recipe) -> Stage:
    """The same UNet on whole frames."""
    unet = load_image_unet(folder)
    unet.requires_grad_(True)
    return image_stage(unet, folder, work, recipe, cropped=False)


def image_stage(unet: UNet, folder: Path, work: Path, recipe: Recipe, cropped: bool) -> Stage:
    """Text to image, on single frames of clips, so that a subject may be anywhere in the frame.

    Two lessons beside the noise, each small in the loss:

    A photo shows what its verb says; here a frame of "moving left" could be one of "moving right",
    so nothing would carry the verb to where motion modules can read it, once this UNet is frozen.
    Heads that are thrown away afterwards ask for it: which motion, from the means of some layers.

    Which of three colour words is the bow's is slow to learn from the noise alone. In READERS the
    first head of the attention to the text is asked for the colour word of what a pixel shows.
    """
    clips, at, latents = cached_latents(work / "frames.pt", load_vae(folder), recipe.examples,
                                        seed=11, frames=1)
    corners = torch.stack([crop_corner(clip, k) for clip, k in zip(clips, at)])
    parts = torch.stack([F.avg_pool2d(world.part_coverage(clip, k), FACTOR).half()
                         for clip, k in zip(clips, at)])                    # (n 3 h w)
    texts = Captions(folder)
    seen, read, heads = {}, reading_heads(unet), nn.ModuleDict()
    attend_in_fp32(unet)
    for i in (1, 2, 4, 6, 7):
        unet.layers[i].register_forward_hook(lambda m, inputs, out, i=str(i): seen.update({i: out}))
        heads[str(i)] = nn.Linear(UNET.channels[min(i, 8 - i, 3)], len(motions.MOTIONS))

    def predict(x_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
        weights = {name: p.to(QUICK) for name, p in unet.named_parameters()}
        return functional_call(unet, weights, (x_t.to(QUICK), t, text.to(QUICK)),
                               {"motion": False}).float()

    def loss(generator: Generator) -> Tensor:
        n = recipe.batch
        some = torch.randint(len(clips), (n,), generator=generator)
        captions = texts.draw([clips[k] for k in some], generator, motion=0.7)
        z, shown = latents[some].float(), parts[some].float()
        if cropped:
            jitter = torch.randint(-1, 2, (n, 2), generator=generator)
            z, shown = (cut(maps, corners[some] + jitter, CROP) for maps in (z[:, :, 0], shown))
            z = z[:, :, None]
        t = torch.randint(STEPS, (n,), generator=generator)
        noise = denoising_loss(predict, z, texts.embed(captions), t, generator)
        word = torch.tensor([motions.MOTIONS.index(clips[k].motion.word)
                             if clips[k].motion.word in caption else -1
                             for k, caption in zip(some, captions)])
        of_verbs = [F.cross_entropy(head(seen[i][0].float().mean((2, 3))), word, ignore_index=-1,
                                    reduction="sum") / n for i, head in heads.items()]
        said = torch.tensor([colour_tokens(clips[k], caption)
                             for k, caption in zip(some, captions)])
        misread = [misreading(log_p, shown, said) for log_p in read.values()]
        return noise + 0.03 * torch.stack(of_verbs).mean() + 0.05 * torch.stack(misread).mean()

    def save(folder: Path) -> None:
        save_part(unet, keys.diffusers_unet, unet_json(UNET), folder / "unet" / WEIGHTS,
                  torch.float16)

    return Stage(nn.ModuleDict({"unet": unet, "heads": heads}), loss, save)


def reading_heads(unet: UNet) -> dict[str, Tensor]:
    """By the name of each attention to the text in READERS: log probabilities (n (h w) tokens) of
    its first head, in the latest forward pass."""
    read = {}

    def keep(name: str, attention: Attention, inputs: tuple[Tensor, Tensor]) -> None:
        pixels, text = inputs
        d = attention.to_q.out_features // attention.heads
        q, k = attention.to_q(pixels)[..., :d].float(), attention.to_k(text)[..., :d].float()
        read[name] = (q @ k.mT * d ** -0.5).log_softmax(-1)

    for name, module in unet.named_modules():
        if name.endswith("attn2") and int(name.split(".")[1]) in READERS \
                and not keys.is_motion(name):
            module.register_forward_hook(lambda m, inputs, y, name=name: keep(name, m, inputs))
    return read


def colour_tokens(clip: world.Clip, caption: str) -> list[int]:
    """Where the colour words of body, detail and accent stand among the caption's tokens (every
    word is one, after the start token); 0 for those that it does not say."""
    words, said = ["", *caption.split()], clip.subject.said
    return ([words.index(colour) if colour in words else 0 for colour in said] + [0, 0, 0])[:3]


def misreading(log_p: Tensor, parts: Tensor, said: Tensor) -> Tensor:
    """Mean surprise at the right colour word, over the pixels that show a part whose colour is said.

    log_p (n (h w) tokens) of a layer; parts (n 3 H W), how much of each pixel shows which part;
    said (n 3), the token of each part's colour, or 0.
    """
    side = round(log_p.shape[1] ** 0.5)
    weight = F.adaptive_avg_pool2d(parts, side).flatten(2) * (said > 0)[..., None]      # (n 3 hw)
    right = log_p.gather(2, said[:, None].expand(-1, log_p.shape[1], -1)).mT            # (n 3 hw)
    return -(weight * right).sum() / weight.sum().clamp(min=1)


def crop_corner(clip: world.Clip, frame: int) -> Tensor:
    """x and y, in latent pixels, of the window of CROP by CROP with the subject in its middle."""
    return (clip.trajectory()[frame, :2] / FACTOR - CROP / 2).round().long()


def few_stage(folder: Path, work: Path, recipe: Recipe) -> Stage:
    """Motion modules on four frames of a clip, at random: what tells one motion from another is how
    frames far apart differ, and clips are what there must be many of."""
    unet = load_image_unet(folder, MOTION)
    for module in unet.modules():
        if isinstance(module, MotionModule):
            start_motion(module)
    return clips_stage(unet, folder, work, recipe, frames=4, noisiest=0.75)


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


def half_stage(folder: Path, work: Path, recipe: Recipe) -> Stage:
    """The same on eight frames."""
    unet = load_image_unet(folder, MOTION)
    fill_motion(unet, folder)
    return clips_stage(unet, folder, work, recipe, frames=8, noisiest=0.25)


def motion_stage(folder: Path, work: Path, recipe: Recipe) -> Stage:
    """The same on whole clips."""
    unet = load_image_unet(folder, MOTION)
    fill_motion(unet, folder)
    return clips_stage(unet, folder, work, recipe, frames=world.FRAMES, noisiest=0.25)


def clips_stage(unet: UNet, folder: Path, work: Path, recipe: Recipe, frames: int,
                noisiest: float) -> Stage:
    """The image UNet is frozen and in QUICK precision; the motion modules are kept in fp32.

    `noisiest`: the share of timesteps from the noisiest tenth, where the verb alone tells where the
    subject will be; the others are from all.

    On fewer frames than a clip's, only those from layer 2 on are trained: layers 0 and 1 are the
    dearest, and need no way back then; and errors are those of z, so that place and colour,
    decided where noise is strong, weigh more than texture. Heads that are thrown away afterwards
    ask some layers where the subject is and how it moves, frame by frame.
    """
    whole = frames == world.FRAMES
    for name, p in unet.named_parameters():
        p.requires_grad_(keys.is_motion(name) and (whole or int(name.split(".")[1]) >= 2))
    trained = {name: p for name, p in unet.named_parameters() if p.requires_grad}
    for p in unet.parameters():
        if not p.requires_grad:
            p.data = p.data.to(QUICK)
    clips, _, latents = cached_latents(work / "clips.pt", load_vae(folder), recipe.examples,
                                       seed=12, frames=world.FRAMES)
    places = torch.stack([place_and_speed(clip) for clip in clips])
    texts = Captions(folder)
    shown: dict[str, Tensor] = {}       # "frames": which frames of the clips a step sees
    show_frames(unet, shown)
    attend_in_fp32(unet)
    seen, heads = {}, nn.ModuleDict()
    for i in (5, 6, 7):
        unet.layers[i].register_forward_hook(lambda m, inputs, out, i=str(i): seen.update({i: out}))
        heads[str(i)] = nn.Linear(UNET.channels[8 - i] * 16, places.shape[-1])

    def predict(x_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
        weights = {name: p.to(QUICK) for name, p in trained.items()}
        return functional_call(unet, weights, (x_t.to(QUICK), t, text.to(QUICK))).float()

    def loss(generator: Generator) -> Tensor:
        i = torch.randint(len(clips), (recipe.batch,), generator=generator)
        text = texts.embed(texts.draw([clips[k] for k in i], generator, motion=0.95))
        low = 0.9 * STEPS * (torch.rand(recipe.batch, generator=generator) < noisiest)
        t = (low + (STEPS - low) * torch.rand(recipe.batch, generator=generator)).long()
        t = t.clamp(max=STEPS - 1)      # the sum can round to 1000
        some = torch.randperm(world.FRAMES, generator=generator)[:frames].sort().values
        shown["frames"] = some
        noise = denoising_loss(predict, latents[i][:, :, some].float(), text, t, generator,
                               power=0.5 if whole else 1)
        asked = places[i][:, some].flatten(0, 1)                            # ((n f) answers)
        maps = {i: F.adaptive_avg_pool2d(out[0].float(), 4).flatten(1) for i, out in seen.items()}
        errors = [F.mse_loss(head(F.layer_norm(maps[i], maps[i].shape[1:])), asked)
                  for i, head in heads.items()]
        return noise + 0.3 * torch.stack(errors).mean()

    def save(folder: Path) -> None:
        save_part(unet, keys.diffusers_unet, motion_json(unet.config),
                  folder / "motion_adapter" / WEIGHTS, torch.float16, only=keys.is_motion,
                  constants=position_tables(unet))

    return Stage(nn.ModuleDict({"unet": unet, "heads": heads}), loss, save)


def place_and_speed(clip: world.Clip) -> Tensor:
    """(f, 7): x, y, log radius, their change a frame, and how fast it turns, each about 1."""
    path = clip.trajectory()
    path = torch.cat([path[:, :2], path[:, 2:3].log(), path[:, 3:]], 1)     # x y log-radius angle
    speed = torch.gradient(path, dim=0)[0]
    places = (path[:, :3] - torch.tensor([32, 32, 2.7])) / torch.tensor([9, 9, 0.25])
    return torch.cat([places, speed[:, :3] / torch.tensor([2, 2, 0.05]),
                      speed[:, 3:].abs() / 0.4], 1)


def attend_in_fp32(unet: UNet) -> None:
    """A CPU's bfloat16 kernel of attention is slow on the way back."""
    for attention in unet.modules():
        if isinstance(attention, Attention):
            for linear in (attention.to_q, attention.to_k, attention.to_v):
                linear.register_forward_hook(lambda m, inputs, y: y.float())
            attention.to_out.register_forward_pre_hook(
                lambda m, inputs: inputs[0].to(m.weight.dtype))


def show_frames(unet: UNet, shown: dict[str, Tensor]) -> None:
    """Give frames their own places in the clip, where only `shown["frames"]` of it are seen."""
    for module in unet.modules():
        if isinstance(module, FramePositions):
            module.register_forward_hook(lambda m, inputs, position: positional_encoding(
                world.FRAMES, position.shape[1])[shown["frames"]].to(position.dtype))


class Captions:
    """Captions of clips as the frozen text encoder's embeddings, each computed once."""

    def __init__(self, folder: Path):
        self.text_encoder, self.tokenizer = load_text_encoder(folder)
        self.known = {}

    def draw(self, clips: list[world.Clip], generator: Generator, motion: float) -> list[str]:
        """One in ten is empty, for classifier-free guidance; `motion`: how often a verb is said."""
        texts = [describe(clip, generator, motion)[0] for clip in clips]
        return [text * (torch.rand((), generator=generator).item() > 0.1) for text in texts]

    @torch.no_grad()
    def embed(self, captions: list[str]) -> Tensor:
        """(n 77 d)"""
        for text in set(captions) - self.known.keys():
            self.known[text] = self.text_encoder(self.tokenizer([text]))[0]
        return torch.stack([self.known[text] for text in captions])


def denoising_loss(predict: Callable, z: Tensor, text: Tensor, t: Tensor, generator: Generator,
                   power: float = 0.5) -> Tensor:
    """noise_loss, weighted so that all timesteps count about the same: unweighted, those with
    little noise, where only texture is left to decide, make up most of it (Choi et al. 2022).

    The weight is 1 / SNR^power, signal-to-noise ratio; at power 1, the error is that of z. It is
    limited to 256^power. z (n 4 f h w), t (n,); `predict` maps x_t, t, text to eps_hat.
    """
    eps = torch.randn(z.shape, generator=generator)
    eps_hat = predict(add_noise(z, eps, t), t, text)
    a = alpha_bar(t)
    weight = ((1 - a) / a).clamp(max=256) ** power
    errors = torch.stack([noise_loss(*pair) for pair in zip(eps_hat, eps)])
    return (weight * errors).mean()
