"""What the tiny model is trained on: vocabulary, captions, frames and clips of the tiny world.

Axes: n images or clips, H W pixels.
"""

from collections import Counter

import torch
from torch import Generator, Tensor

from ..tokenizer import END, START, Tokenizer, byte_symbols
from . import world
from .judge import as_pixels
from .world import Clip, choice, uniform


def make_tokenizer(length: int = 77) -> Tokenizer:
    """Every byte, and byte-pair merges (Sennrich et al. 2016) until each of WORDS is one token."""
    spelled = [(*word[:-1], word[-1] + "</w>") for word in world.WORDS]
    merges = []
    while any(len(symbols) > 1 for symbols in spelled):
        counts = Counter(pair for symbols in spelled for pair in zip(symbols, symbols[1:]))
        best = max(sorted(counts), key=counts.get)
        merges.append(best)
        spelled = [merge(symbols, best) for symbols in spelled]
    single = byte_symbols()
    tokens = [*single, *(s + "</w>" for s in single), *("".join(pair) for pair in merges), START, END]
    return Tokenizer({token: i for i, token in enumerate(tokens)}, merges, length)


def merge(symbols: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    joined, at = [], 0
    while at < len(symbols):
        size = 2 if symbols[at:at + 2] == pair else 1
        joined.append("".join(symbols[at:at + size]))
        at += size
    return tuple(joined)


def describe(clip: Clip, generator: Generator, motion: float) -> tuple[str, tuple]:
    """A caption of the clip, and the (kind, colour, scene) that it names; None where it does not.

    `motion`: how often the motion word is said. One caption in ten leaves the subject open, one in
    ten the scene, so that short and general prompts mean something too.
    """
    def happens(probability: float) -> bool:
        return uniform(generator, 0, 1) < probability

    kind, colour, scene = clip.subject.kind, clip.subject.colours[0] * clip.names_colour, clip.scene
    text = clip.subject_caption
    if happens(0.1):
        text, kind, colour = "an object", None, None
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
    return text, (kind, colour or None, scene)


def draw_clips(generator: Generator, n: int) -> list[Clip]:
    return [world.sample_clip(generator) for _ in range(n)]


def draw_frames(generator: Generator, clips: list[Clip]) -> tuple[Tensor, list[int]]:
    """One frame of each clip, at a random time: pixels (n 3 H W) in [-1, 1], and which."""
    at = torch.randint(world.FRAMES, (len(clips),), generator=generator).tolist()
    frames = torch.stack([world.render_frame(clip, k) for clip, k in zip(clips, at)])
    return as_pixels(frames), at


def fits(named: list[tuple], clips: list[Clip]) -> Tensor:
    """(images, captions) bool: whether nothing that the caption names is wrong for the image."""
    truth = [(clip.subject.kind, clip.subject.colours[0], clip.scene) for clip in clips]
    return torch.tensor([[all(said in (None, true) for said, true in zip(caption, image))
                          for caption in named] for image in truth])
