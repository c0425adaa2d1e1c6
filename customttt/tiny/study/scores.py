"""How good a clip of the tiny world is, where its subject, motion and scene are known.

  identity     how much of the subject's colours is right: what two palettes (shares of the
               subject's pixels nearest to each colour) have in common, the clip's and the rendered
               truth's. It is blind to shape and place: a ball in the body's colour has much of it
               (customttt.tiny.study.metrics)
  motion       agreement of the measured trajectory with the true one (`trajectory_agreement`)
  CLIP-T       mean cosine of the embeddings of the frames and of the truth's caption, which names
               the colours that the prompt leaves to the images
  words        of subject and scene, the share that CLIP's zero-shot choice gets right

Axes: f frames, H W pixels.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ...paper.metrics import clip_t
from ..pretraining.judge import Judge
from ..pretraining.measure import find_subject, measure_trajectory
from ..world.clips import SCENES, Clip, make_clip, render
from ..world.motions import HELD_OUT_MOTIONS, STANDING_STILL, trajectory_agreement
from ..world.subjects import COLOURS, HELD_OUT_SUBJECTS

IMAGES = 4      # rendered, of the subject, that a clip is held against
# The trajectory of "pendulum" stands still, so that agreement with it would say nothing.
MOVING = tuple(name for name in HELD_OUT_MOTIONS if name != "pendulum")


@dataclass(frozen=True)
class Combination:
    """A held-out subject, a held-out motion, and the scene of the target prompt."""

    subject: str
    motion: str
    scene: str

    @property
    def prompt(self) -> str:
        return f"a {HELD_OUT_SUBJECTS[self.subject].kind} {self._doing}"

    @property
    def caption(self) -> str:
        """The prompt with the subject's colours."""
        return f"{HELD_OUT_SUBJECTS[self.subject].caption} {self._doing}"

    @property
    def _doing(self) -> str:
        return f"is {HELD_OUT_MOTIONS[self.motion].word} {SCENES[self.scene]}"


def combinations(start: int, count: int) -> list[Combination]:
    """Of 120, all different, those from `start` on: subjects, motions and scenes in turn."""
    subjects, scenes = list(HELD_OUT_SUBJECTS), list(SCENES)
    return [Combination(subjects[k % len(subjects)],
                        MOVING[(k + k // len(subjects)) % len(MOVING)],
                        scenes[(k + 2) % len(scenes)]) for k in range(start, start + count)]


def other_subject(name: str) -> str:
    """Another held-out subject of the same kind: the control of identity."""
    same = [other for other, subject in HELD_OUT_SUBJECTS.items()
            if subject.kind == HELD_OUT_SUBJECTS[name].kind]
    return same[(same.index(name) + 1) % len(same)]


def other_motion(name: str) -> str:
    return MOVING[(MOVING.index(name) + 1) % len(MOVING)]


def palette(frames: Tensor) -> Tensor:
    """(f H W 3) uint8 -> the share of the subject's pixels that is nearest to each colour word."""
    pixels = frames[find_subject(frames)].float() / 255
    colours = torch.tensor(list(COLOURS.values()))
    bright = pixels[pixels.amax(1) > 0.3]       # the outline and the eyes are dark on every subject
    nearest = torch.cdist(bright, colours).argmin(1)
    return torch.bincount(nearest, minlength=len(colours)) / max(len(bright), 1)


def measured(combination: Combination, frames: Tensor, seed: int) -> dict[str, float]:
    """Identity and motion of (f H W 3) uint8; the truth is rendered in the combination's scene."""
    subject, motion = HELD_OUT_SUBJECTS[combination.subject], HELD_OUT_MOTIONS[combination.motion]
    generator = Generator().manual_seed(seed)
    truths = [render(make_clip(subject, STANDING_STILL, combination.scene, generator), [0])
              for _ in range(IMAGES)]
    true_palette = torch.stack([palette(truth) for truth in truths]).mean(0)
    path = Clip(subject, motion, combination.scene, (32.0, 32.0), 14.0, 0.0, 0).trajectory()
    return {"identity": torch.minimum(palette(frames), true_palette).sum().item(),
            "motion": trajectory_agreement(measure_trajectory(frames), path[:len(frames), :3])}


@torch.no_grad()
def judged(judge: Judge, combination: Combination, frames: Tensor) -> dict[str, float]:
    """CLIP-T and words of (f H W 3) uint8."""
    subject = HELD_OUT_SUBJECTS[combination.subject]
    embedded = judge.embed_frames(frames)
    chosen = judge.choices(frames, subject, combination.scene)
    return {"CLIP-T": clip_t(embedded, judge.embed_captions([combination.caption])[0]),
            "words": ((chosen["kind"] == subject.kind)
                      + (chosen["scene"] == combination.scene)) / 2}
