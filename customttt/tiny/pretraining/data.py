"""What the tiny model is trained on: vocabulary, captions, frames and clips of the tiny world.

Axes: n images or clips, H W pixels.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from einops import rearrange
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ...files.reading import save_pickled
from ...media.clips import as_pixels
from ...model.tokenizer import END, START, Tokenizer, byte_symbols, merge
from ...model.vae import VAE
from ...paper.ranks import rank_of_ranks
from ..world import clips as world
from ..world.chance import uniform
from ..world.clips import Clip

# A CPU without instructions for bfloat16 is slower in it than in fp32.
BFLOAT16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
FACTOR = 4                  # pixels a latent pixel


@dataclass(frozen=True)
class Machine:
    """Where a stage runs: the device, and how many processes draw for it (0: its own)."""

    device: torch.device = torch.device("cpu")
    workers: int = 0

    @property
    def quick(self) -> torch.dtype:
        """Of the UNet in training."""
        return torch.bfloat16 if BFLOAT16 or self.device.type == "cuda" else torch.float32

    def each(self, function: Callable, order: Sequence[int]) -> DataLoader:
        """function(k) for k in order; what the workers draw is ready before it is wanted."""
        ahead = {"multiprocessing_context": "fork", "prefetch_factor": 4} if self.workers else {}
        return DataLoader(Drawn(function), batch_size=None, sampler=order, num_workers=self.workers,
                          pin_memory=self.device.type == "cuda", **ahead)


@dataclass(frozen=True)
class Drawn(Dataset):
    function: Callable

    def __getitem__(self, k: int):
        return self.function(k)


def make_tokenizer(length: int = 77) -> Tokenizer:
    """Every byte, and byte-pair merges (Sennrich et al. 2016) until each of WORDS is one token."""
    spelled = [[*word[:-1], word[-1] + "</w>"] for word in world.WORDS]
    merges = []
    while any(len(symbols) > 1 for symbols in spelled):
        counts = Counter(pair for symbols in spelled for pair in zip(symbols, symbols[1:]))
        best = max(sorted(counts), key=counts.get)
        merges.append(best)
        spelled = [merge(symbols, best) for symbols in spelled]
    single = byte_symbols()
    tokens = [*single, *(s + "</w>" for s in single), *("".join(pair) for pair in merges),
              START, END]
    return Tokenizer({token: i for i, token in enumerate(tokens)}, merges, length)


def describe(clip: Clip, generator: Generator, motion: float) -> tuple[str, tuple]:
    """A caption of the clip, and the (subject, scene) that it tells; None where it does not.

    `motion`: how often the motion word is said. One caption in ten leaves the subject open, one in
    ten the scene, so that short and general prompts mean something too.
    """
    def happens(probability: float) -> bool:
        return uniform(generator, 0, 1) < probability

    subject, scene = clip.subject, clip.scene
    text = subject.caption
    if happens(0.1):
        text, subject = "an object", None
    if happens(motion):
        text += f" is {clip.motion.word}"
    elif happens(0.3):
        text += " is doing something"
    if happens(0.1):
        scene = None
    else:
        text += f" {world.SCENES[scene]}"
    if happens(0.1):
        text = "a photo of " + text
    return text, (subject, scene)


def draw_clips(generator: Generator, n: int, scenes=tuple(world.SCENES)) -> list[Clip]:
    return [world.sample_clip(generator, scenes=scenes) for _ in range(n)]


def draw_frames(generator: Generator, clips: list[Clip]) -> tuple[Tensor, list[int]]:
    """One frame of each clip, at a random time: pixels (n 3 H W) in [-1, 1], and which."""
    at = torch.randint(world.FRAMES, (len(clips),), generator=generator).tolist()
    return as_pixels(torch.stack([world.render_frame(clip, k) for clip, k in zip(clips, at)])), at


def cut(maps: Tensor, corners: Tensor, side: int) -> Tensor:
    """(n c H W), and x and y of n corners (n 2) -> (n c side side), kept inside the map."""
    corners = corners.clamp(0, maps.shape[-1] - side).tolist()
    return torch.stack([each[:, y:y + side, x:x + side] for each, (x, y) in zip(maps, corners)])


def fits(told: list[tuple], clips: list[Clip]) -> Tensor:
    """(images, captions) bool: whether nothing that the caption tells is wrong for the image."""
    return torch.tensor([[all(said in (None, true) for said, true in zip(caption, image))
                          for caption in told]
                         for image in ((clip.subject, clip.scene) for clip in clips)])


@torch.no_grad()
def cached_latents(path: Path, vae: VAE, count: int, seed: int, frames: int,
                   machine: Machine) -> tuple[list[Clip], list[int], Tensor, Tensor]:
    """`count` clips, a random frame of each, latents (n 4 f h w) in fp16, of all or that frame, and
    how much of each latent pixel shows which part in that frame, (n 3 h w) in fp16.

    Made once, each process its share: kept in `path`, to be deleted when the VAE changes.
    """
    generator = Generator().manual_seed(seed)
    clips = draw_clips(generator, count)
    at = torch.randint(world.FRAMES, (count,), generator=generator).tolist()
    path = path.with_stem(f"{path.stem}-{count}")
    if path.is_file():
        return clips, at, *torch.load(path, weights_only=True)
    rank, processes = rank_of_ranks()
    own, chunk = {}, 32 // frames
    vae = vae.to(machine.device)

    def rendered(start: int) -> tuple[int, Tensor, Tensor]:
        some = list(zip(clips, at))[start:start + chunk]
        pixels = torch.cat([world.render(clip, [k] if frames == 1 else slice(None))
                            for clip, k in some])
        parts = torch.stack([world.part_coverage(clip, k) for clip, k in some])
        return start, pixels, F.avg_pool2d(parts, FACTOR).half()

    share = range(0, count, chunk)[rank::processes]
    for start, pixels, parts in tqdm(machine.each(rendered, share), f"encoding {path.stem}",
                                     mininterval=5, disable=rank > 0):
        with torch.autocast("cpu", torch.bfloat16, enabled=BFLOAT16):
            z = vae.encode(as_pixels(pixels.to(machine.device)))
        own[start] = rearrange(z, "(n f) c h w -> n c f h w", f=frames).half().cpu(), parts
    shares = [own]
    if processes > 1:
        shares = [None] * processes
        dist.all_gather_object(shares, own)
    made = {start: both for share in shares for start, both in share.items()}
    latents, parts = (torch.cat(each) for each in zip(*(made[start] for start in sorted(made))))
    if rank == 0:
        save_pickled((latents, parts), path)
    return clips, at, latents, parts
