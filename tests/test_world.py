"""The tiny world is what it says: exact truths, held-out subjects and motions, readable motions."""

from math import pi

import pytest
import torch
import torch.nn.functional as F

from customttt.tiny.pretraining.measure import classify_motion, find_subject, measure_trajectory
from customttt.tiny.world import clips as world, motions, subjects

STILL = ("spinning", "standing still")


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(1234)


def clips(generator, n, **kinds):
    return [world.sample_clip(generator, **kinds) for _ in range(n)]


def blurred(frames, generator):
    """Half the resolution and back, and noise of 8 grey levels: worse than a fair VAE."""
    pictures = F.avg_pool2d(frames.permute(0, 3, 1, 2).float(), 2)
    pictures = F.interpolate(pictures, scale_factor=2, mode="bilinear", align_corners=False)
    pictures = pictures + 8 * torch.randn(pictures.shape, generator=generator)
    return pictures.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


# -------------------------------------------------------------------------- the renderer

def test_a_clip_is_decided_by_the_generator_alone(generator):
    clip = world.sample_clip(generator)
    again = world.sample_clip(torch.Generator().manual_seed(1234))
    assert clip == again != world.sample_clip(generator)

    torch.manual_seed(0)
    frames = world.render(clip)
    torch.manual_seed(1)
    assert frames.shape == (16, 64, 64, 3) and frames.dtype == torch.uint8
    assert torch.equal(frames, world.render(again))
    assert torch.equal(frames[5], world.render_frame(clip, 5))
    assert torch.equal(frames[::4], world.render(clip, slice(0, 16, 4)))


def test_only_the_subject_moves(generator):
    for clip in clips(generator, 50):
        outside = (world.subject_mask(clip) == 0).all(dim=0)
        frames = world.render(clip)[:, outside]
        assert (frames == frames[:1]).all()


def test_trajectory_and_mask_are_exact(generator):
    pixel = torch.arange(64) + 0.5
    for clip in clips(generator, 50, kinds=["ball"]):
        mask, (x, y, radius, _) = world.subject_mask(clip), clip.trajectory().T
        area = mask.sum((1, 2))
        torch.testing.assert_close(mask.sum(1) @ pixel / area, x, atol=0.15, rtol=0)
        torch.testing.assert_close(mask.sum(2) @ pixel / area, y, atol=0.15, rtol=0)
        expected = pi * (0.94 * radius + world.OUTLINE) ** 2
        torch.testing.assert_close(area, expected, atol=0, rtol=0.01)


def test_subjects_are_big_and_inside_the_frame(generator):
    for clip in clips(generator, 300):
        x, y, radius, _ = clip.trajectory().T
        assert 10 < radius.min() and radius.max() < 20.01
        room = torch.stack([x, y, 64 - x, 64 - y]) - radius
        assert room.min() > -2, clip


@pytest.mark.parametrize("word", motions.MOTIONS)
def test_motions_are_large(word, generator):
    for clip in clips(generator, 50, words=[word]):
        x, y, radius, angle = clip.trajectory().T
        travel = max(x.max() - x.min(), y.max() - y.min())
        if word in ("growing", "shrinking"):
            assert travel == 0 and radius.max() / radius.min() > 1.5
        elif word in STILL:
            assert travel == 0 and (abs(angle[-1] - angle[0]) > 1.4 * pi) == (word == "spinning")
        else:
            assert travel > (12 if word == "bouncing" else 15)


def test_parts_lie_in_the_subject_and_have_their_colours(generator):
    for clip in clips(generator, 20, kinds=tuple(subjects.COMPOSED)):
        shown = world.part_coverage(clip, 3)
        assert shown.min() >= 0 and shown.sum(0).max() <= 1 + 1e-5
        assert (shown.sum(0) <= world.subject_mask(clip)[3] + 1e-5).all()
        # Where a part fills a pixel, the pixel has its colour.
        frame = world.render(clip)[3] / 255
        for part, colour in zip(shown, clip.subject.colours):
            off = frame[part > 0.99] - torch.tensor(subjects.COLOURS[colour])
            assert len(off) and off.abs().max() < 0.25


# ------------------------------------------------------------------------------ captions

def test_captions():
    still = motions.STANDING_STILL

    def clip(kind, colours, scene):
        subject = subjects.Subject(kind, colours)
        return world.Clip(subject, still, scene, (32.0, 32.0), 15.0, 0.0, 0)

    orange = clip("ball", ("orange",), "snow")
    assert orange.caption == "an orange ball is standing still on the snow"
    assert orange.image_caption == "an orange ball on the snow"
    teddy = clip("teddy bear", subjects.USUAL["teddy bear"].colours, "night")
    assert teddy.caption == "a teddy bear is standing still in the night"
    fish = clip("fish", ("pink", "red", "blue"), "sea")
    assert fish.image_caption == "a pink red blue fish in the sea"
    assert fish.caption == "a pink red blue fish is standing still in the sea"


def test_a_caption_tells_the_colouring(generator):
    """Different subjects have different captions; the usual one's alone has no colour."""
    drawn = {subjects.sample_subject(generator, kind)
             for kind in subjects.DRAWINGS for _ in range(2000)}
    assert len({subject.caption for subject in drawn}) == len(drawn)
    assert {subject for subject in drawn if not subject.said} == set(subjects.USUAL.values())
    assert set(subjects.USUAL) == set(subjects.COMPOSED)
    assert not any(map(subjects.is_held_out, subjects.USUAL.values()))


def test_every_word_is_in_the_vocabulary(generator):
    held_out = [world.make_clip(s, m, "sea", generator) for s in subjects.HELD_OUT_SUBJECTS.values()
                for m in motions.HELD_OUT_MOTIONS.values()]
    said = {w for c in clips(generator, 2000) + held_out for w in c.caption.split()}
    said |= set("a photo of an object something is doing something".split())
    assert said == set(world.WORDS) and list(world.WORDS) == sorted(world.WORDS)


def test_every_attribute_is_drawn_evenly(generator):
    drawn = clips(generator, 4000)
    for attribute, n in ((lambda c: c.subject.kind, 10), (lambda c: c.motion.word, 10),
                         (lambda c: c.scene, 5)):
        values = [attribute(c) for c in drawn]
        counts = [values.count(v) for v in set(values)]
        assert len(counts) == n and min(counts) > 0.8 * len(drawn) / n
    usual = [not c.subject.said for c in drawn if c.subject.kind in subjects.COMPOSED]
    assert sum(usual) / len(usual) == pytest.approx(subjects.USUAL_SHARE, abs=0.05)


# ------------------------------------------------------------------------------ held out

def test_held_out_subjects_never_occur_in_pretraining(generator):
    held_out = subjects.HELD_OUT_SUBJECTS.values()
    assert len(set(held_out)) == len(held_out) >= 9
    for kind in subjects.COMPOSED:
        own = [s for s in held_out if s.kind == kind]
        assert len(own) >= 2
        drawn = {subjects.sample_subject(generator, kind).colours for _ in range(7000)}
        assert len(drawn) > 250  # of 8 * 7 * 6 = 336 colourings
        for colours in drawn:
            for subject in own:
                shared = sum(a == b for a, b in zip(colours, subject.colours))
                assert shared <= 1 and set(colours) != set(subject.colours)


def test_held_out_motions_are_far_from_every_pretraining_motion(generator):
    assert len(motions.HELD_OUT_MOTIONS) >= 10
    drawn = [clip.trajectory() for clip in clips(generator, 3000)]
    star = subjects.Subject("star", ("red",))
    for name, motion in motions.HELD_OUT_MOTIONS.items():
        assert motion.word in motions.MOTIONS and name not in motions.MOTIONS
        path = world.make_clip(star, motion, "snow", generator).trajectory()
        assert max(motions.trajectory_agreement(path, other) for other in drawn) < 0.8, name
        assert min(distance(path, other) for other in drawn) > 0.5, name


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """In [0, 2], of two trajectories, each moved to mean zero and scaled to norm one: 0 is the same
    path up to place and amplitude."""
    a, b = (p - p.mean(dim=0) for p in map(motions.weighted, (a, b)))
    return (a / a.norm() - b / b.norm()).norm().item()


def test_pretraining_draws_no_held_out_path(generator):
    assert all(c.motion.path == c.motion.word in motions.MOTIONS for c in clips(generator, 5000))


def test_trajectory_comparisons():
    t = torch.linspace(0, 1, 16)
    right = torch.stack([20 * t, 0 * t, 0 * t + 15, 0 * t], dim=1)
    down, left = right[:, [1, 0, 2, 3]], right * torch.tensor([-1, 1, 1, 1])
    still = right[:1].expand(16, 4)
    moved_and_wider = right * torch.tensor([1.5, 1, 1, 1]) + torch.tensor([9, -7, 0, 0.2])
    agreement = motions.trajectory_agreement
    assert agreement(right, right) == pytest.approx(1) and distance(right, right) < 1e-3
    assert agreement(right, moved_and_wider) > 0.99 and distance(right, moved_and_wider) < 1e-3
    assert abs(agreement(right, down)) < 0.05 and distance(right, down) == pytest.approx(2**0.5)
    assert agreement(right, left) < -0.9 and distance(right, left) == pytest.approx(2)
    assert agreement(still, still) == pytest.approx(1) and agreement(right, still) < 0.25
    assert agreement(right[:, :3], right[:, :3]) == pytest.approx(1)


# ------------------------------------------------------------------------------ measured

@pytest.mark.parametrize("degrade", [lambda frames, _: frames, blurred], ids=["sharp", "blurred"])
def test_motion_is_measured_from_frames_alone(degrade, generator):
    drawn, right = clips(generator, 200), 0
    for clip in drawn:
        frames, truth = degrade(world.render(clip), generator), clip.trajectory()
        measured = measure_trajectory(frames)
        right += classify_motion(frames) == clip.motion.word
        for axis in (0, 1):
            if truth[:, axis].std() > 2:
                assert torch.corrcoef(torch.stack([measured[:, axis], truth[:, axis]]))[0, 1] > 0.95
        if clip.motion.word not in STILL:
            assert motions.trajectory_agreement(measured, truth[:, :3]) > 0.8, clip
    assert right / len(drawn) >= 0.97


def test_held_out_motions_are_measured(generator):
    for motion in motions.HELD_OUT_MOTIONS.values():
        if motion.word not in STILL:
            for subject in list(subjects.HELD_OUT_SUBJECTS.values())[::3]:
                clip = world.make_clip(subject, motion, "sand", generator)
                measured = measure_trajectory(blurred(world.render(clip), generator))
                assert motions.trajectory_agreement(measured, clip.trajectory()[:, :3]) > 0.8, clip


def test_frames_without_a_subject():
    grey = torch.full((16, 64, 64, 3), 128, dtype=torch.uint8)
    assert not find_subject(grey).any()
    assert measure_trajectory(grey).tolist() == [[32.0, 32.0, 0.0]] * 16
    assert classify_motion(grey) == "standing still"
