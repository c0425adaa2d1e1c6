"""The tiny CLIP as a judge of what a picture or clip shows. Axes: f frames, H W pixels, d width."""

from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from ..world import clips as world, subjects
from .parts import load_clip


def as_pixels(frames: Tensor) -> Tensor:
    """(n H W 3) uint8 -> (n 3 H W) in [-1, 1]."""
    return rearrange(frames, "n h w c -> n c h w").float() / 127.5 - 1


def picture_caption(kind: str, colour: str | None, scene: str) -> str:
    """ "an orange ball on the snow" """
    words = f"{colour} {kind}" if colour else kind
    return ("an " if words[0] in "aeiou" else "a ") + f"{words} {world.SCENES[scene]}"


class Judge:
    """Zero-shot choices: the caption that fits best among those that differ in one attribute."""

    OPTIONS = {"subject": tuple(subjects.DRAWINGS), "colour": tuple(subjects.COLOURS),
               "scene": tuple(world.SCENES)}

    def __init__(self, folder: str | Path):
        self.clip, self.tokenizer = load_clip(folder)
        self.known = {}

    @torch.no_grad()
    def embed_captions(self, captions: list[str]) -> Tensor:
        """(m d), unit vectors; each caption is computed once."""
        if new := [caption for caption in captions if caption not in self.known]:
            vectors = self.clip.embed_text(self.tokenizer(new), self.tokenizer.end)
            self.known.update(zip(new, vectors))
        return torch.stack([self.known[caption] for caption in captions])

    @torch.no_grad()
    def embed_frames(self, frames: Tensor) -> Tensor:
        """(f H W 3) uint8 -> (f d), unit vectors."""
        return self.clip.embed_images(as_pixels(frames))

    def consistency(self, frames: Tensor) -> float:
        """Mean cosine of the embeddings of consecutive frames, (f H W 3) uint8."""
        embedded = self.embed_frames(frames)
        return (embedded[1:] * embedded[:-1]).sum(1).mean().item()

    def choices(self, frames: Tensor, kind: str, colour: str | None, scene: str) -> dict[str, str]:
        """What (f H W 3) uint8 show, each attribute chosen with the other two given, by the mean
        cosine over the frames; no colour where the caption names none."""
        said = {"subject": kind, "colour": colour, "scene": scene}
        embedded, chosen = self.embed_frames(frames), {}
        for attribute, options in self.OPTIONS.items():
            if said[attribute] is None:
                continue
            captions = [picture_caption(*(said | {attribute: option}).values())
                        for option in options]
            scores = (embedded @ self.embed_captions(captions).T).mean(0)
            chosen[attribute] = options[scores.argmax().item()]
        return chosen
