"""The tiny CLIP as a judge of what a picture or clip shows. Axes: f frames, H W pixels, d width."""

from itertools import permutations
from pathlib import Path

import torch
from torch import Tensor

from ...media.clips import to_images
from ...paper.clip import prepare
from ...paper.metrics import consistency
from ..world import clips as world, subjects
from ..world.subjects import Subject
from .parts import load_towers, longest


def of_kind(subject: Subject, kind: str) -> Subject:
    """Another kind in the same colours, as far as a caption can say it."""
    if kind in subjects.PLAIN:
        return Subject(kind, subject.colours[:1])
    return Subject(kind, subject.said) if len(subject.said) == 3 else subjects.USUAL[kind]


def recoloured(kind: str) -> list[Subject]:
    """Every colouring of a kind, its usual one too."""
    return [Subject(kind, colours) for colours in permutations(
        subjects.COLOURS, 1 if kind in subjects.PLAIN else 3)]


class Judge:
    """Zero-shot choices: the caption that fits best among those that differ in one attribute."""

    def __init__(self, folder: str | Path):
        self.clip, self.tokenizer = load_towers(folder)
        self.known = {}

    @torch.no_grad()
    def embed_captions(self, captions: list[str]) -> Tensor:
        """(m d), unit vectors; each caption is computed once."""
        if new := [caption for caption in captions if caption not in self.known]:
            ids = longest(self.tokenizer(new), self.tokenizer.end)
            vectors = self.clip.embed_text(ids, self.tokenizer.end)
            self.known.update(zip(new, vectors))
        return torch.stack([self.known[caption] for caption in captions])

    @torch.no_grad()
    def embed_frames(self, frames: Tensor) -> Tensor:
        """(f H W 3) uint8 -> (f d), unit vectors."""
        size = self.clip.vision_model.config.image_size
        return self.clip.embed_images(torch.stack([prepare(image, size)
                                                   for image in to_images(frames)]))

    def consistency(self, frames: Tensor) -> float:
        """Mean cosine of the embeddings of consecutive frames, (f H W 3) uint8."""
        return consistency(self.embed_frames(frames))

    def choices(self, frames: Tensor, subject: Subject, scene: str) -> dict:
        """The kind, the colours and the scene that (f H W 3) uint8 show, each chosen with the other
        two given, by the mean cosine over the frames. Of three colours all are chosen at once."""
        options = {
            "kind": {kind: (of_kind(subject, kind), scene) for kind in subjects.DRAWINGS},
            "colours": {each.colours: (each, scene) for each in recoloured(subject.kind)},
            "scene": {each: (subject, each) for each in world.SCENES}}
        embedded, chosen = self.embed_frames(frames), {}
        for attribute, shown in options.items():
            captions = self.embed_captions([world.image_caption(*each)
                                           for each in shown.values()])
            chosen[attribute] = list(shown)[(embedded @ captions.T).mean(0).argmax().item()]
        return chosen
