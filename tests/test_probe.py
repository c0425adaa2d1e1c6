"""The probe of the layers: its command, and that layers without text change nothing."""

import json
import sys
import zlib
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from customttt.errors import UserError
from customttt.paper import probe

FLAGS = ["--frames", "2", "--sampling-steps", "1", "--size", "32"]


@pytest.fixture
def call(monkeypatch, tmp_path, model_folder, capsys):
    def call(*flags):
        monkeypatch.setattr(sys, "argv", [
            "probe", "--model", str(model_folder), "--clip", str(model_folder / "clip"),
            "--output", str(tmp_path), *FLAGS, *map(str, flags)])
        probe.main()
        return capsys.readouterr().out
    return call


def test_two_pairs(call, tmp_path, monkeypatch):
    """Layers 3 and 5 equal no probe exactly; the other process's pair is taken from it."""
    pytest.importorskip("matplotlib")
    probed, done = probe.probe_pair, []
    monkeypatch.setattr(probe, "probe_pair", lambda *args: done.append(args[2]) or probed(*args))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert "|" not in call("subject", "--number", "2") and len(done) == 1
    monkeypatch.setenv("RANK", "0")
    printed = call("subject", "--number", "2")
    result = json.loads((tmp_path / "probe-subject-seed-0.json").read_text())
    assert len(done) == len(set(done)) == len(result["pairs"]) == 2
    for pair, scores in result["pairs"]:
        assert tuple(pair) in done and len(scores) == 1 + 9 + 8 + 1
        assert scores["3"] == scores["5"] == scores["none"]
        assert scores["6 and 3"] == scores["6"] == scores["6 and 5"]
        assert all(scores[str(i)] != scores["none"] for i in (0, 1, 2, 4, 6, 7, 8))
    assert probe.table(result) in printed and "| 6 | " in printed and "| 0.200 |" in printed
    for name in ("heat-CLIP-T", "grid-0", "grid-1"):
        with Image.open(tmp_path / f"probe-subject-seed-0-{name}.png") as picture:
            assert picture.width > 400
    assert call("subject", "--number", "2") == printed and len(done) == 2      # all kept

    call("subject", "--number", "1", "--sampling-steps", "2")                   # another clip
    assert len(done) == 3
    other = json.loads((tmp_path / "probe-subject-seed-0.json").read_text())
    assert other["pairs"][0][1] != result["pairs"][0][1]


def test_motions_have_their_fidelity(call, tmp_path, monkeypatch):
    """1 to the clip of p* in all layers itself; as no probe where no text is read; 0 where no point
    can be followed."""
    pytest.importorskip("matplotlib")

    def scores(tracker):
        monkeypatch.setitem(probe.TRACKERS, "cotracker", tracker)
        monkeypatch.setattr("customttt.paper.tracks.cotracker_model",
                            lambda: SimpleNamespace(to=placed.append))
        placed = []
        printed = call("motion", "--number", "1", "--tracker", "cotracker", "--output",
                       tmp_path / tracker.__name__)
        assert "| CLIP-T(p*) | minus none | motion fidelity | minus none | " in printed
        result = json.loads((tmp_path / tracker.__name__ / "probe-motion-seed-0.json").read_text())
        found = {name: each[2] for name, each in result["pairs"][0][1].items()}
        zeros = [f"*layer {name}* 1" for name, score in found.items() if score == 0]
        assert f"motion fidelity is 0: {', '.join(zeros) or 'none'}." in printed
        assert placed == ["cpu"]
        return found

    def scattered(frames):      # points at random, by a frame's bytes
        return 100 * torch.stack([torch.rand(20, 2, generator=torch.Generator().manual_seed(
            zlib.crc32(frame.tobytes()))) for frame in frames], dim=1)

    def nothing(frames):
        return torch.empty(0, len(frames), 2)

    found = scores(scattered)
    assert found["all"] == 1 and found["3"] == found["5"] == found["none"] < 1
    assert len(set(found.values())) == 1 + 7 + 6 + 1       # none, layers alone, with 2, all
    assert set(scores(nothing).values()) == {0}
    assert {path.name for path in tmp_path.glob("scattered/*-heat-*.png")} == {
        "probe-motion-seed-0-heat-CLIP-T.png", "probe-motion-seed-0-heat-motion-fidelity.png"}


def test_what_is_damaged_is_named(call, tmp_path):
    pytest.importorskip("matplotlib")
    call("subject", "--number", "1")
    for name in ("scores.json", "clips.png"):
        file = next(tmp_path.glob(f"probes/*/{name}"))
        kept = file.read_bytes()
        file.write_bytes(b"{")
        with pytest.raises(UserError, match=f"{file.parent.name}: is damaged .* makes it again"):
            call("subject", "--number", "1")
        file.write_bytes(kept)


def test_subjects_are_not_tracked(call):
    with pytest.raises(UserError, match="--tracker: goes with motion"):
        call("subject", "--tracker", "lucas-kanade")


def test_no_pairs(call):
    with pytest.raises(UserError, match="--number 0: must be positive"):
        call("subject", "--number", "0")


def test_no_pair_is_left_out_unasked(tmp_path):
    file = tmp_path / "pairs.txt"
    file.write_text("a cat | a dog\n" * 101)
    asked = SimpleNamespace(kind="motion", pairs=file, number=None)
    assert len(probe.chosen_pairs(asked)) == 101
    asked.number = 102
    with pytest.raises(UserError, match="--number 102: there are 101 pairs; give at most as many"):
        probe.chosen_pairs(asked)
    assert len(probe.chosen_pairs(SimpleNamespace(kind="motion", pairs=None, number=None))) == 100


def test_pairs(tmp_path):
    for kind in probe.FIRST:
        pairs = probe.tiny_pairs(kind)
        assert len(set(pairs)) == len(pairs) >= 100
        assert all(p != star for p, star in pairs)
        words = {"subject": probe.SUBJECTS, "motion": probe.MOTIONS}[kind]
        for few in zip(*pairs[:14]):        # p of the pairs that results have, and p*
            assert all(word in " ".join(few) for word in (*words, *probe.PLACES))
    (tmp_path / "pairs.txt").write_text("\ufeffa cat | a dog\n\na man is running | a man is skiing\n")
    assert probe.read_pairs(tmp_path / "pairs.txt")[0] == ("a cat", "a dog")
    assert probe.read_pairs(tmp_path / "pairs.txt")[1] == ("a man is running", "a man is skiing")
    (tmp_path / "bad.txt").write_text("a cat\n")
    for name, said in (("bad.txt", "each line must be two prompts"), ("none", "cannot be read")):
        with pytest.raises(UserError, match=said):
            probe.read_pairs(tmp_path / name)


def test_a_tracker_that_cannot_be_loaded_is_said_at_once(call, monkeypatch):
    def unreachable(*of):
        raise OSError
    monkeypatch.setattr(torch.hub, "load", unreachable)
    with pytest.raises(UserError, match="torch.hub cannot load it .OSError.; use lucas-kanade"):
        call("motion", "--tracker", "cotracker")


def test_p_star_is_in_these_layers_and_is_what_is_scored(monkeypatch):
    asked = []
    monkeypatch.setattr(probe, "sample_video", lambda model, prompts, **_: asked.append(
        prompts) or torch.zeros(2, 8, 8, 3, dtype=torch.uint8))
    judge = SimpleNamespace(embed_texts=lambda pair: torch.eye(2),
                            embed_images=lambda images: torch.tensor([[0.25, 0.75]] * 2))
    scores, _ = probe.probe_pair(None, judge, ("p", "p*"), 6, defaultdict(int), 0, None)
    assert asked[:2] == [["p"] * 9, ["p*"] + ["p"] * 8] and asked[-1] == ["p*"] * 9
    assert scores["none"] == [0.75, 0.25]           # against p*, against p
