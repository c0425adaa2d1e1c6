"""The probe of the layers: its command, and that layers without text change nothing."""

import json
import sys

import pytest

from customttt.errors import UserError
from customttt.paper import probe

FLAGS = ["--frames", "2", "--sampling-steps", "1", "--size", "32", "--seed", "3"]


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
    """Layers 3 and 5 equal no probe exactly; the rest of the pairs is done by another call."""
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert "not done" in call("subject", "--number", "2")
    assert [file.name for file in tmp_path.glob("subject/0*.json")] == ["001.json"]
    monkeypatch.setenv("RANK", "0")
    printed = call("subject", "--number", "2")
    for file in tmp_path.glob("subject/0*.json"):
        scores = json.loads(file.read_text())["scores"]
        assert len(scores) == 1 + 9 + 8 + 1
        assert scores["3"] == scores["5"] == scores["none"]
        assert scores["6 and 3"] == scores["6"] == scores["6 and 5"]
        assert all(scores[str(i)] != scores["none"] for i in (0, 1, 2, 4, 6, 7, 8))
    assert (tmp_path / "subject/table.md").read_text().strip() in printed
    assert "| 6 | " in printed and "| 0.200 |" in printed
    assert (tmp_path / "subject/heat.png").exists() and (tmp_path / "subject/grid-001.png").exists()

    monkeypatch.setattr(probe, "probe_pair", None)          # nothing is made anew
    assert call("subject", "--number", "2").endswith(printed[printed.index("| p*"):])
    with pytest.raises(UserError, match="was made with sampling_steps = 1, not 3; give the same"):
        call("subject", "--sampling-steps", "3")


def test_pairs(tmp_path):
    for kind in probe.FIRST:
        pairs = probe.tiny_pairs(kind)
        assert len(set(pairs)) == len(pairs) >= 100
        assert all(p != star for p, star in pairs)
    (tmp_path / "pairs.txt").write_text("a cat | a dog\n\na man is running | a man is skiing\n")
    assert probe.read_pairs(tmp_path / "pairs.txt")[1] == ("a man is running", "a man is skiing")
    (tmp_path / "bad.txt").write_text("a cat\n")
    for name, said in (("bad.txt", "each line must be two prompts"), ("none", "cannot be read")):
        with pytest.raises(UserError, match=said):
            probe.read_pairs(tmp_path / name)
