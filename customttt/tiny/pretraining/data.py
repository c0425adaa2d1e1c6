"""What the tiny model is trained on: vocabulary, captions, frames and clips of the tiny world.

Axes: n images or clips, H W pixels.
"""

from collections import Counter
from pathlib import Path

import torch
from einops import rearrange
from torch import Generator, Tensor
from tqdm import trange

from ...errors import writing
from ...model.tokenizer import END, START, Tokenizer, byte_symbols, merge
from ...model.vae import VAE
from ..world import clips as world
from ..world.chance import uniform
from ..world.clips import Clip
from ..world.subjects import COMPOSED, DRAWINGS
from .judge import as_pixels

TAUGHT = (*DRAWINGS, *COMPOSED)     # composed kinds twice: they have three colours to learn


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
    """A caption of the clip, and the (subject, scene) that it says; None where it does not.

    `motion`: how often the motion word is said. One caption in ten leaves the subject open, one in
    ten the scene, so that short and general prompts mean something too.
    """
    def happens(probability: float) -> bool:
        return uniform(generator, 0, 1) < probability

    subject, scene = clip.subject, clip.scene
    text = subject.words
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


def draw_clips(generator: Generator, n: int, scenes=tuple(world.SCENES),
               kinds=tuple(DRAWINGS)) -> list[Clip]:
    return [world.sample_clip(generator, kinds, scenes=scenes) for _ in range(n)]


def draw_frames(generator: Generator, clips: list[Clip]) -> tuple[Tensor, list[int]]:
    """One frame of each clip, at a random time: pixels (n 3 H W) in [-1, 1], and which."""
    at = torch.randint(world.FRAMES, (len(clips),), generator=generator).tolist()
    return render_frames(clips, at), at


def render_frames(clips: list[Clip], at: list[int]) -> Tensor:
    return as_pixels(torch.stack([world.render_frame(clip, k) for clip, k in zip(clips, at)]))


def fits(named: list[tuple], clips: list[Clip]) -> Tensor:
    """(images, captions) bool: whether nothing that the caption says is wrong for the image. All
    of a subject's colours count, since a caption names all or means the usual ones."""
    truth = [(clip.subject, clip.scene) for clip in clips]
    return torch.tensor([[all(said in (None, true) for said, true in zip(caption, image))
                          for caption in named] for image in truth])


@torch.no_grad()
def cached_latents(path: Path, vae: VAE, count: int, seed: int,
                   frames: int) -> tuple[list[Clip], list[int], Tensor]:
    """`count` clips, a random frame of each, and latents (n 4 f h w) in fp16: of all or that frame.

    Encoded once: kept in `path`, to be deleted when the VAE changes.
    """
    generator = Generator().manual_seed(seed)
    clips = draw_clips(generator, count, kinds=TAUGHT)
    at = torch.randint(world.FRAMES, (count,), generator=generator).tolist()
    if path.is_file():
        return clips, at, torch.load(path, weights_only=True)
    latents, chunk = [], 32 // frames
    for start in trange(0, count, chunk, desc=f"encoding {path.stem}", mininterval=5):
        some = clips[start:start + chunk]
        pixels = render_frames(some, at[start:start + chunk]) if frames == 1 else as_pixels(
            torch.cat([world.render(clip) for clip in some]))
        latents.append(rearrange(vae.encode(pixels), "(n f) c h w -> n c f h w", f=frames).half())
    latents = torch.cat(latents).contiguous()
    with writing(path) as temporary:
        torch.save(latents, temporary)
    return clips, at, latents
