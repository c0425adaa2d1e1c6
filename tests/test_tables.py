"""The tables as commands: what makes a LoRA or a clip names it, and nothing is made twice."""

import argparse
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from customttt.errors import UserError
from customttt.files.load import load_model
from customttt.files.lora_files import save_lora
from customttt.lora import add_lora
from customttt.paper import cache, tables
from customttt.paper.systems import COMPARED
from customttt.stages import STAGES

pytest.importorskip("cv2")


@pytest.fixture
def trained(monkeypatch, model_folder):
    """In place of train.py, a random LoRA of the stage; a list of the calls' flags."""
    calls = []

    def run_train(*flags):
        calls.append(flags)
        given = dict(zip(flags[::2], flags[1::2]))
        unet = load_model(model_folder).unet
        torch.manual_seed(len(calls))
        for kind in ("spatial", "temporal"):
            if given["--stage"] in (kind, "ttt"):
                add_lora(unet, kind, (2,), rank=2)
        save_lora(unet, Path(given["--output"]) / cache.ADAPTER, {"kind": given["--stage"]})
    monkeypatch.setattr(cache, "run_train", run_train)
    return calls


@pytest.fixture
def protocol(tmp_path, model_folder):
    shutil.copytree(model_folder / "examples", tmp_path / "data")
    file = tmp_path / "data" / "protocol.json"
    file.write_text(json.dumps({"groups": [{
        "images": "subject", "subject": "a teddy bear", "video": "motion.mp4",
        "motion": "a red ball is circling", "prompts": ["a teddy bear is circling"]}]}))
    return file


@pytest.fixture
def call(monkeypatch, tmp_path, protocol, model_folder, capsys):
    def call(table, *flags):
        monkeypatch.setattr(sys, "argv", [
            "tables", str(table), "--protocol", str(protocol), "--model", str(model_folder),
            "--clip", str(model_folder / "clip"), "--output", str(tmp_path / "out"),
            "--frames", "2", "--size", "32", "--sampling-steps", "1", *flags])
        tables.main()
        return capsys.readouterr().out
    return call


def test_table_4(call, trained, tmp_path):
    """The subject and the motion are learned once, test-time training five times less one."""
    printed = call(4)
    stages = [flags[1] for flags in trained]
    assert sorted(stages) == ["spatial", "temporal", "ttt", "ttt", "ttt", "ttt"]
    assert "| 5 reference steps |" in printed and "| without test-time training |" in printed
    first = (tmp_path / "out/table-4.json").read_text()
    assert call(4).splitlines()[-1] == printed.splitlines()[-1] and len(trained) == 6   # all kept
    assert (tmp_path / "out/table-4.json").read_text() == first
    shutil.rmtree(tmp_path / "out/clips")                   # clips are made anew, LoRAs are not
    call(4)
    assert (tmp_path / "out/table-4.json").read_text() == first and len(trained) == 6
    (tmp_path / "data/subject.txt").touch()
    next((tmp_path / "data/subject").iterdir()).unlink()    # another subject: trained anew
    call(4)
    assert len(trained) == 6 + 1 + 4


def test_rows_are_the_papers():
    assert [row.name for row in tables.TABLES[1]] == [
        "Full LoRA", "DiffDirector", "MotionDirector", "DreamVideo", "CustomTTT"]
    assert len(tables.TABLES[3]) == 4 + 1
    for row in [row for rows in tables.TABLES.values() for row in rows]:
        assert set(row.subject + row.motion) <= STAGES.keys() | COMPARED.keys()


def test_dreamvideo_gets_its_word(tmp_path, monkeypatch, protocol):
    """Each stage of a system is given the ones before it."""
    calls = []

    def run_train(*flags):
        given = dict(zip(flags[::2], flags[1::2]))
        calls.append(given)
        file = Path(given["--output"]) / cache.ADAPTER
        file.parent.mkdir(parents=True)
        file.write_text(given["--stage"])
    monkeypatch.setattr(cache, "run_train", run_train)
    row, [group] = tables.TABLES[1][3], tables.read_protocol(protocol)
    files = tables.train_row(cache.Cache(tmp_path / "out", (), 0), row, group, "a prompt")
    assert [each["--stage"] for each in calls] == [file.read_text() for file in files] == [
        "dreamvideo-word", "dreamvideo-identity", "dreamvideo-motion"]
    assert calls[1]["--word"] == str(files[0]) and calls[2]["--data"].endswith("motion.mp4")


def test_bad_input(protocol, tmp_path, monkeypatch):
    protocol.write_text(json.dumps({"groups": [{"images": "subject"}]}))
    with pytest.raises(UserError, match="must have \"groups\", each with images, motion"):
        tables.read_protocol(protocol)
    monkeypatch.setattr(cache.subprocess, "run", lambda *_, **__: argparse.Namespace(
        returncode=2, stderr="error: no such file\n"))
    with pytest.raises(UserError, match="train.py --stage spatial: error: no such file"):
        cache.run_train("--stage", "spatial")
