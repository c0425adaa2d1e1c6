"""The tiny CLIP as a judge of what a picture or clip shows. Axes: f frames, H W pixels, d width."""

from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from ..world import clips as world, subjects
from ..world.subjects import Subject
from .parts import load_clip


def as_pixels(frames: Tensor) -> Tensor:
    """(n H W 3) uint8 -> (n 3 H W) in [-1, 1]."""
    return rearrange(frames, "n h w c -> n c h w").float() / 127.5 - 1


PARTS = ("body", "detail", "accent")


def picture_caption(subject: Subject, scene: str) -> str:
    """ "an orange ball on the snow" """
    return f"{subject.words} {world.SCENES[scene]}"


def alternatives(subject: Subject, scene: str) -> dict[str, dict[str, str]]:
    """{attribute: {option: caption}} of captions that differ in one attribute from the picture's.

    Another kind has the same colours; only its body's, if it is plain; its usual ones, if it is
    composed and the subject plain. A colour is told from those that no other part has.
    """
    kinds = {kind: Subject(kind, subject.colours[:1]) if kind in subjects.PLAIN else
             Subject(kind, subject.colours if len(subject.colours) == 3 else subjects.USUAL[kind])
             for kind in subjects.DRAWINGS}
    options = {"subject": {kind: picture_caption(each, scene) for kind, each in kinds.items()},
               "scene": {name: picture_caption(subject, name) for name in world.SCENES}}
    for part, own in enumerate(subject.colours):
        options[PARTS[part]] = {colour: picture_caption(Subject(subject.kind, tuple(
            colour if i == part else other for i, other in enumerate(subject.colours))), scene)
            for colour in subjects.COLOURS if colour == own or colour not in subject.colours}
    return options


class Judge:
    """Zero-shot choices: the caption that fits best among those that differ in one attribute."""

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

    def choices(self, frames: Tensor, subject: Subject, scene: str) -> dict[str, str]:
        """What (f H W 3) uint8 show, each attribute chosen with the others given, by the mean
        cosine over the frames: subject, scene, and the colour of body, detail and accent."""
        embedded, chosen = self.embed_frames(frames), {}
        for attribute, captions in alternatives(subject, scene).items():
            scores = (embedded @ self.embed_captions(list(captions.values())).T).mean(0)
            chosen[attribute] = list(captions)[scores.argmax().item()]
        return chosen
