"""Whole runs of train.py on the tiny model: resume, log, failures, learning."""

import itertools
import json
import shutil
import signal
import sys
from argparse import Namespace
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY
from einops import rearrange
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tqdm import tqdm

import train
from customttt.diffusion import add_noise, alpha_bar, ddim, ddim_timesteps
from customttt.draws import Draws, stream_seed
from customttt.errors import UserError
from customttt.lion import Lion
from customttt.files.lora_files import text_stems
from customttt.lora import add_lora, lora_parameters, wrapped
from customttt.losses import noise_loss
from customttt.media.clips import as_frames, write_frames
from customttt.media.images import read_image
from customttt.media.videos import read_video
from customttt.model.tokenizer import START, Tokenizer
from customttt.paper.cache import parsed
from customttt.recipes import SPATIAL, TEMPORAL, TTT
from customttt.run import checkpoint, loop, sheet
from customttt.run import train as run
from customttt.run.data import encode, joined_prompts, kept_row, prompts_of, read_clips
from customttt.run.stage import Stage, train_only
from customttt.stages import STAGES, spatial_step, temporal_step
from customttt.tiny.study.scores import palette
from test_media import gradient

SMALL = ("--size", "64", "--frames", "2", "--sampling-steps", "4", "--reference-steps", "2",
         "--reference-guidance", "1")


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """A folder with two images, a clip, and their captions."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "bear").mkdir()
    for k, frame in enumerate(gradient(2, 64, 64)):
        write_frames(frame[None], folder / "bear" / f"{k}.png")
    (folder / "bear.txt").write_text("a bear\n")
    write_frames(gradient(4, 64, 64), folder / "lifting.gif")
    (folder / "lifting.txt").write_text("a man is lifting weights")
    return folder


@pytest.fixture(scope="session")
def adapters(model_folder, data, tmp_path_factory) -> Path:
    """A folder with spatial/ and temporal/, as train.py leaves them after two steps."""
    folder = tmp_path_factory.mktemp("stages")
    with pytest.MonkeyPatch.context() as patch:
        for stage in ("spatial", "temporal"):
            command(patch, stage, model_folder, data, folder, folder / stage, "--steps", "2",
                    "--learning-rate", "0.01")
    return folder


def command(patch, stage: str, model_folder: Path, data: Path, adapters: Path, output: Path,
            *flags: str) -> int:
    """Run train.py here: the stage's own flags, small sizes, rank 4, dropout on."""
    small = [*SMALL[:6], "--rank", "4"]
    own = {"spatial": ["--data", data / "bear", "--batch-size", "2", *small],
           "temporal": ["--data", data / "lifting.gif", *small],
           "ttt": ["--spatial", adapters / "spatial", "--temporal", adapters / "temporal", *SMALL]}
    patch.setattr(sys, "argv", [str(a) for a in (
        "train.py", "--stage", stage, "--model", model_folder, "--output", output, "--seed", "3",
        "--sheet-every", "0",
        *own[stage], *flags)])
    return train.main()


@pytest.fixture
def run_stage(monkeypatch, model_folder, data, adapters):
    return lambda stage, output, *flags: command(
        monkeypatch, stage, model_folder, data, adapters, output, *flags)


def log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def state(folder: Path) -> dict:
    """Everything that must not depend on where a run was cut."""
    content = torch.load(folder / "checkpoint.pt", weights_only=True)
    momenta = {f"momentum {k}": s["m"] for k, s in content["optimizer"]["state"].items()}
    return (load_file(folder / "adapter.safetensors") | content["parameters"] | momenta
            | content["draws"] | {"cpu": content["cpu"]})


def assert_same(a: dict, b: dict) -> None:
    assert a.keys() == b.keys() and len(a) > 100
    assert all(torch.equal(a[key], b[key]) for key in a)


def interrupt_at(monkeypatch, step: int) -> None:
    """Ctrl-C in the middle of that step."""
    count, step_once = itertools.count(1), loop.update

    def interrupted(*args):
        if next(count) == step:
            signal.raise_signal(signal.SIGINT)
        return step_once(*args)
    monkeypatch.setattr(loop, "update", interrupted)


# Resume

@pytest.mark.parametrize("stage", STAGES)
def test_a_resumed_run_is_bit_identical(stage, run_stage, monkeypatch, tmp_path, capsys):
    """Four steps at once, or two, Ctrl-C, two; or one, then four with --resume."""
    flags = ("--learning-rate", "0.001", "--checkpoint-every", "3")
    run_stage(stage, tmp_path / "whole", "--steps", "4", *flags)
    run_stage(stage, tmp_path / "more", "--steps", "1", *flags)
    run_stage(stage, tmp_path / "more", "--steps", "4", "--resume", *flags)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2)
        run_stage(stage, tmp_path / "cut", "--steps", "4", *flags)
    assert "stopped and saved; go on with the same command and --resume" in capsys.readouterr().out
    assert not (tmp_path / "cut" / "adapter.safetensors").exists()
    assert len(log(tmp_path / "cut")) == 2
    run_stage(stage, tmp_path / "cut", "--steps", "4", "--resume", *flags)
    for other in ("more", "cut"):
        assert_same(state(tmp_path / "whole"), state(tmp_path / other))
        assert [line["loss"] for line in log(tmp_path / other)] == [
            line["loss"] for line in log(tmp_path / "whole")]
    first, last = (load_file(tmp_path / "whole" / f"adapter-{k:06}.safetensors") for k in (3, 4))
    assert not any(torch.equal(first[key], last[key]) for key in first)     # it does train


def test_a_run_killed_between_checkpoints_goes_on_from_the_last(run_stage, monkeypatch, tmp_path):
    flags = ("--steps", "5", "--checkpoint-every", "2")
    run_stage("spatial", tmp_path / "whole", *flags)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="power cut"):
        count, step_once = itertools.count(1), loop.update

        def cut(*args):
            if next(count) == 4:
                raise RuntimeError("power cut")
            return step_once(*args)
        patch.setattr(loop, "update", cut)
        run_stage("spatial", tmp_path / "cut", *flags)
    assert len(log(tmp_path / "cut")) == 3
    run_stage("spatial", tmp_path / "cut", *flags, "--resume")
    assert_same(state(tmp_path / "whole"), state(tmp_path / "cut"))
    assert [line["step"] for line in log(tmp_path / "cut")] == [1, 2, 3, 4, 5]


def test_ctrl_c_while_a_sheet_is_drawn_saves_that_step(run_stage, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_write_sheet", lambda *_: signal.raise_signal(signal.SIGINT))
        run_stage("spatial", tmp_path, "--steps", "4", "--sheet-every", "2")
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 2
    assert (tmp_path / "adapter-000002.safetensors").exists()


def test_a_run_killed_while_a_sheet_is_drawn_has_saved_that_step(run_stage, monkeypatch, tmp_path):
    flags = ("--steps", "3", "--sheet-every", "2")
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="power cut"):
        def cut(*_):
            raise RuntimeError("power cut")
        patch.setattr(loop, "_write_sheet", cut)
        run_stage("spatial", tmp_path, *flags)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 2
    drawn, write = [], loop._write_sheet
    monkeypatch.setattr(loop, "_write_sheet", lambda *of: drawn.append(of[1]) or write(*of))
    run_stage("spatial", tmp_path, *flags, "--resume")
    assert drawn == [2, 3]
    run_stage("spatial", tmp_path, *flags, "--resume")      # all is there: none is drawn again
    assert drawn == [2, 3]


def test_a_finished_run_that_goes_on_has_no_finished_lora_until_its_end(run_stage, monkeypatch,
                                                                       tmp_path):
    """Else the next stage and sample.py would take the shorter run's."""
    run_stage("spatial", tmp_path, "--steps", "2")
    with monkeypatch.context() as patch:
        interrupt_at(patch, 1)
        run_stage("spatial", tmp_path, "--steps", "4", "--resume")
    assert {file.name for file in tmp_path.glob("*.safetensors")} == {
        "adapter-000002.safetensors", "adapter-000003.safetensors"}
    run_stage("spatial", tmp_path, "--steps", "4", "--resume")
    assert (tmp_path / "adapter.safetensors").exists()


def test_a_finished_run_that_goes_on_is_unfinished_from_its_first_step(run_stage, monkeypatch,
                                                                      tmp_path):
    run_stage("spatial", tmp_path, "--steps", "2")
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="power cut"):
        def cut(*_):
            raise RuntimeError("power cut")
        patch.setattr(loop, "update", cut)
        run_stage("spatial", tmp_path, "--steps", "4", "--resume")
    with pytest.raises(UserError, match=r"an unfinished run \(step 2 of 4\)"):
        run_stage("spatial", tmp_path, "--steps", "4")


def test_a_run_of_slow_steps_is_saved_in_between(run_stage, monkeypatch, tmp_path):
    """However many steps there are between two checkpoints, a kill costs ten minutes at most."""
    clock = itertools.count(step=400)       # seconds, at each look
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    run_stage("spatial", tmp_path, "--steps", "5")
    assert {file.name for file in tmp_path.glob("adapter-*")} == {
        "adapter-000002.safetensors", "adapter-000004.safetensors", "adapter-000005.safetensors"}


@pytest.mark.parametrize("error, full", [
    (torch.OutOfMemoryError("CUDA out of memory. Tried ..."), "the GPU's memory"),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), "the GPU's memory"),
    (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "the GPU's memory"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "the memory"),
    (MemoryError(), "the memory")])
def test_a_sheet_that_does_not_fit_into_memory_ends_no_run(run_stage, monkeypatch, tmp_path, error,
                                                           full):
    def write(path):
        raise error
    monkeypatch.setattr(run, "sheet_writer", lambda *_: write)
    with pytest.warns(UserWarning, match=f"sheet-000002.png: not drawn, {full} is full; --sheet-ev"):
        run_stage("spatial", tmp_path, "--steps", "3", "--sheet-every", "2")
    assert len(log(tmp_path)) == 3 and (tmp_path / "adapter.safetensors").exists()
    with pytest.warns(UserWarning, match="sheet-000003.png: not drawn"):
        assert run_stage("spatial", tmp_path, "--steps", "3", "--sheet-every", "2", "--resume") == 0


def test_another_fault_of_a_sheet_ends_a_run_that_has_its_lora(run_stage, monkeypatch, tmp_path):
    def write(path):
        raise RuntimeError("sizes of tensors")
    monkeypatch.setattr(run, "sheet_writer", lambda *_: write)
    with pytest.raises(RuntimeError, match="sizes of tensors"):
        run_stage("spatial", tmp_path, "--steps", "2", "--sheet-every", "2")
    assert (tmp_path / "adapter.safetensors").exists()


def test_ctrl_c_in_the_middle_of_a_line_is_heard(monkeypatch):
    def reentrant(*_, **__):
        raise RuntimeError("reentrant call inside <_io.BufferedWriter name='<stderr>'>")
    monkeypatch.setattr("builtins.print", reentrant)
    with loop._until_interrupted() as interrupted:
        signal.raise_signal(signal.SIGINT)
        assert interrupted()


def test_after_ctrl_c_a_sheet_waits_for_the_resumed_run(run_stage, monkeypatch, tmp_path):
    flags, sheet_file = ("--steps", "4", "--sheet-every", "2"), tmp_path / "sheet-000002.png"
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2)
        run_stage("spatial", tmp_path, *flags)
    assert not sheet_file.exists()
    run_stage("spatial", tmp_path, *flags, "--resume")
    assert sheet_file.exists() and (tmp_path / "sheet-000004.png").exists()


def test_ctrl_c_in_the_last_step_still_ends_the_command(run_stage, monkeypatch, tmp_path, capsys):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2)
        assert run_stage("spatial", tmp_path, "--steps", "2") == 130
    said = capsys.readouterr().out
    assert f"trained: {tmp_path / 'adapter.safetensors'}" in said and "--resume" not in said
    assert (tmp_path / "adapter.safetensors").exists()


def test_ctrl_c_before_the_first_step_can_be_resumed(run_stage, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setattr(loop, "tqdm", lambda **kw: signal.raise_signal(signal.SIGINT) or tqdm(**kw))
        run_stage("spatial", tmp_path, "--steps", "2")
    assert log(tmp_path) == []
    run_stage("spatial", tmp_path, "--steps", "2", "--resume")
    assert len(log(tmp_path)) == 2


@pytest.mark.parametrize("flags, sentence", [
    (["--learning-rate", "0.002"], r"was started with learning_rate = 0\.001, not 0\.002"),
    (["--seed", "4"], "was started with seed = 3, not 4"),
    (["--prompt", "a hare"], "was started with prompt = 'a bear', not 'a hare'"),
    (["--precision", "bf16"], "was started with precision = 'fp32', not 'bf16'"),
    (["--steps", "1"], "--steps 1: the run in .* has done 2 already"),
])
def test_resume_refuses_another_recipe(run_stage, tmp_path, flags, sentence):
    run_stage("spatial", tmp_path, "--steps", "2", "--learning-rate", "0.001", "--prompt", "a bear")
    before = state(tmp_path)
    with pytest.raises(UserError, match=sentence):
        run_stage("spatial", tmp_path, "--resume", "--steps", "3", "--learning-rate", "0.001",
                  "--prompt", "a bear", *flags)
    assert_same(before, state(tmp_path))


def test_resume_refuses_other_captions(run_stage, data, tmp_path):
    shutil.copytree(data / "bear", tmp_path / "bear")
    flags = ("--data", tmp_path / "bear", "--prompt", "a bear", "--steps", "1")
    run_stage("spatial", tmp_path / "run", *flags)
    (tmp_path / "bear" / "0.txt").write_text("a bear on the grass")
    with pytest.raises(UserError, match="was started with other data or prompts; give the same"):
        run_stage("spatial", tmp_path / "run", *flags, "--resume")


def test_resume_refuses_other_weights_of_the_same_name(run_stage, model_folder, tmp_path):
    for k in range(2):
        shutil.copytree(model_folder, tmp_path / str(k) / "tiny")
    changed = tmp_path / "1" / "tiny" / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(changed)
    weights["decoder.conv_out.bias"] += 0.01
    save_file(weights, changed)
    run_stage("spatial", tmp_path / "run", "--steps", "1", "--model", tmp_path / "0" / "tiny")
    with pytest.raises(UserError, match="was started with another model; give the same"):
        run_stage("spatial", tmp_path / "run", "--steps", "2", "--model", tmp_path / "1" / "tiny",
                  "--resume")


def test_resume_refuses_another_motion_version(run_stage, tmp_path):
    """Versions 1 and 3 have the same weights."""
    run_stage("temporal", tmp_path, "--steps", "1")
    with pytest.raises(UserError, match="was started with another model; give the same"):
        run_stage("temporal", tmp_path, "--steps", "2", "--motion-version", "1", "--resume")


def test_a_run_of_before_files_told_the_motion_version_goes_on(run_stage, tmp_path):
    run_stage("temporal", tmp_path, "--steps", "1")
    content = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    del content["run"]["motion_version"]
    torch.save(content, tmp_path / "checkpoint.pt")
    run_stage("temporal", tmp_path, "--steps", "2", "--resume")
    assert (tmp_path / "adapter-000002.safetensors").exists()


def test_a_join_of_before_files_told_the_frame_rate_goes_on(run_stage, tmp_path):
    run_stage("ttt", tmp_path, "--steps", "1")
    content = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert content["run"].pop("fps") == 8
    torch.save(content, tmp_path / "checkpoint.pt")
    run_stage("ttt", tmp_path, "--steps", "2", "--resume")
    assert len(log(tmp_path)) == 2


def test_training_is_refused_where_recomputed_dropout_would_differ(run_stage, tmp_path,
                                                                    monkeypatch):
    opened = run.open_model

    def elsewhere(*of):
        model, precision = opened(*of)
        model.device = torch.device("mps")
        return model, precision
    monkeypatch.setattr(run, "open_model", elsewhere)
    with pytest.raises(UserError, match="^--device cpu: training is for cpu and cuda; give one"):
        run_stage("spatial", tmp_path / "out")
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def test_resume_refuses_another_kind_of_device(run_stage, tmp_path):
    run_stage("spatial", tmp_path, "--steps", "1")
    content = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    content["run"]["device"] = "cuda"
    torch.save(content, tmp_path / "checkpoint.pt")
    with pytest.raises(UserError, match="was started with device = 'cuda', not 'cpu'; give the"):
        run_stage("spatial", tmp_path, "--steps", "2", "--resume")


def test_a_sheet_of_clips_plays_at_the_rate_that_was_learned(run_stage, tmp_path):
    run_stage("temporal", tmp_path, "--steps", "1", "--sheet-every", "1", "--fps", "4")
    with Image.open(tmp_path / "sheet-000001.gif") as image:
        assert image.info["duration"] == 250


def test_the_sheet_of_the_join_plays_at_the_rate_of_its_motion(run_stage, tmp_path):
    run_stage("temporal", tmp_path / "motion", "--steps", "1", "--fps", "4")
    run_stage("ttt", tmp_path / "ttt", "--steps", "1", "--sheet-every", "1", "--temporal",
              tmp_path / "motion")
    with Image.open(tmp_path / "ttt/sheet-000001.gif") as image:
        assert image.info["duration"] == 250


def test_a_row_of_a_sheet_that_is_not_finite_is_said(model, tmp_path, monkeypatch):
    rows = iter([0.0, float("nan")])
    monkeypatch.setattr(sheet, "ddim", lambda unet, noise, *_: iter([noise + next(rows)]))
    settings = {"frames": 2, "size": 32, "sampling_steps": 1, "guidance": 1.0}
    with pytest.warns(UserWarning, match=r"a\.png, row 2: --precision: the video is not finite"):
        sheet.sheet_writer(model, "a star", settings, 0, ((), ()), [], True)(tmp_path / "a.png")
    assert (tmp_path / "a.png").exists()


def test_a_sheet_shows_eight_frames_at_most():
    for frames in range(1, 9):
        assert sheet.on_sheet(frames) == list(range(frames))
    assert sheet.on_sheet(10) == [0, 1, 2, 3, 5, 6, 7, 8]
    assert sheet.on_sheet(16) == list(range(0, 16, 2))


def test_a_run_of_another_kind_and_other_files_are_left_alone(run_stage, tmp_path):
    run_stage("spatial", tmp_path, "--steps", "1")
    (tmp_path / "adapter_model.safetensors").write_text("somebody's")
    with pytest.raises(UserError, match="holds a spatial run, not a temporal one"):
        run_stage("temporal", tmp_path, "--steps", "1")
    (tmp_path / "checkpoint.pt").unlink()
    with pytest.raises(UserError, match="adapter.safetensors: a spatial LoRA, not a temporal one"):
        run_stage("temporal", tmp_path, "--steps", "1")
    assert (tmp_path / "adapter-000001.safetensors").exists()
    run_stage("spatial", tmp_path, "--steps", "1")
    assert (tmp_path / "adapter_model.safetensors").read_text() == "somebody's"


def test_flags_of_another_stage_are_refused(run_stage, tmp_path):
    for stage, flag in (("spatial", "--motion-prompt"), ("ttt", "--data"), ("ttt", "--fps"),
                        ("ttt", "--rank")):
        with pytest.raises(UserError, match=f"{flag}: not a flag of --stage {stage}"):
            run_stage(stage, tmp_path, flag, "12")


def test_a_checkpoint_of_something_else_is_refused(run_stage, tmp_path):
    torch.save({"epoch": 3}, tmp_path / "checkpoint.pt")
    with pytest.raises(UserError, match="not a checkpoint of train.py"):
        run_stage("spatial", tmp_path, "--steps", "1")


def test_an_unfinished_run_is_not_overwritten_a_finished_one_is(run_stage, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 1)
        run_stage("spatial", tmp_path, "--steps", "3")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match=r"an unfinished run \(step 1 of 3\); go on with --resume"):
        run_stage("spatial", tmp_path, "--steps", "3")
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}
    run_stage("spatial", tmp_path, "--steps", "3", "--resume")
    run_stage("spatial", tmp_path, "--steps", "2")
    assert [line["step"] for line in log(tmp_path)] == [1, 2]
    assert not (tmp_path / "adapter-000003.safetensors").exists()


# What a run leaves

def test_log_metadata_and_files(run_stage, tmp_path):
    run_stage("ttt", tmp_path, "--steps", "2", "--checkpoint-every", "1", "--sheet-every", "1")
    for step, line in enumerate(log(tmp_path), start=1):
        assert line.keys() == {"step", "loss", "learning_rate", "seconds", "memory_gb", "skipped"}
        assert line["step"] == step and line["learning_rate"] == 1e-5 and line["skipped"] == 0
        assert line["loss"] > 0 and line["seconds"] > 0 and 0.1 < line["memory_gb"] < 10
    assert {path.name for path in tmp_path.iterdir()} == {
        "adapter.safetensors", "adapter-000001.safetensors", "adapter-000002.safetensors",
        "checkpoint.pt", "log.jsonl", "sheet-000001.gif", "sheet-000001.png",
        "sheet-000002.gif", "sheet-000002.png"}
    with safe_open(tmp_path / "adapter.safetensors", "pt") as file:
        metadata = file.metadata()
    recipe = json.loads(metadata.pop("recipe"))
    sums = [metadata.pop(f"{kind}_sha256") for kind in ("spatial", "temporal")]
    assert len(set(sums)) == 2 and all(len(each) == 64 for each in sums)
    assert metadata == {
        "format": "pt", "kind": "joined", "scale": "1", "step": "2", "spatial_rank": "4",
        "temporal_rank": "4", "fps": "8.0",
        "base_model": "tiny", "motion_version": "3", "prompt": "a bear is lifting weights",
        "spatial_layers": "[1, 2, 6, 7, 8]", "spatial_prompt": "a bear",
        "appearance_prompt": "a bear is doing something", "temporal_layers": "[2, 3, 5, 6]",
        "temporal_prompt": "a man is lifting weights",
        "motion_prompt": "an object is lifting weights"}
    assert recipe.keys() == TTT.full.keys()
    assert (recipe["steps"], recipe["betas"]) == (2, [0.9, 0.99])


@pytest.mark.parametrize("stage, layers, prompt", [
    ("spatial", "[1, 2, 6, 7, 8]", "a bear"),
    ("temporal", "[2, 3, 5, 6]", "a man is lifting weights")])
def test_metadata_of_the_first_stages(adapters, stage, layers, prompt):
    with safe_open(adapters / stage / "adapter.safetensors", "pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata.pop("recipe")).keys() == STAGES[stage].recipe.full.keys()
    assert len(metadata.pop("data_sha256")) == 64
    assert metadata == {"format": "pt", "kind": stage, f"{stage}_layers": layers,
                        "prompt": prompt, "base_model": "tiny", "rank": "4", "scale": "1",
                        "step": "2"} | ({"motion_version": "3"} if stage == "temporal" else {})


@pytest.mark.parametrize("failing", ["torch.save", "write_bytes", "replace"])
def test_checkpoints_are_atomic(run_stage, monkeypatch, tmp_path, failing):
    run_stage("spatial", tmp_path, "--steps", "1")
    before = (tmp_path / "checkpoint.pt").read_bytes()

    def fail(*args):
        if isinstance(args[0], Path) and failing == "write_bytes":
            args[0].open("wb").write(b"half")
        raise OSError(28, "No space left on device")
    with monkeypatch.context() as patch:
        if failing == "torch.save":
            patch.setattr(torch, "save", fail)
        elif failing == "write_bytes":
            patch.setattr(Path, "write_bytes", fail)
        else:
            patch.setattr("os.replace", fail)
        with pytest.raises((UserError, OSError), match="No space left on device"):
            run_stage("spatial", tmp_path, "--steps", "2", "--resume")
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert not list(tmp_path.glob(".writing-*"))


def test_sheets_change_nothing_that_is_trained(run_stage, tmp_path):
    """While one is drawn dropout is off, and draws nothing; afterwards it is on again."""
    for name, every in (("never", "0"), ("always", "1")):
        run_stage("spatial", tmp_path / name, "--steps", "3", "--learning-rate", "0.01",
                  "--sheet-every", every)
    one, other = (load_file(tmp_path / name / "adapter.safetensors")
                  for name in ("never", "always"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_the_sheet_is_what_the_readme_says(run_stage, tmp_path, monkeypatch):
    """The base model, subject only, motion only, joined as they are, after test-time training: from
    a noise that nothing is trained on. Before them the images and the clip."""
    seen, seeds, sampled, noise = [], [], sheet.ddim, sheet.initial_noise

    def ddim(unet, x, text, empty, timesteps, guidance, motion):
        seen.append(({name for _, each in wrapped(unet) for name in each.on}, guidance))
        return sampled(unet, x, text, empty, timesteps, guidance, motion)
    monkeypatch.setattr(sheet, "ddim", ddim)
    monkeypatch.setattr(sheet, "initial_noise", lambda *of: seeds.append(of[-1]) or noise(*of))
    run_stage("ttt", tmp_path, "--steps", "1", "--sheet-every", "1", "--guidance", "2")
    assert seeds == [stream_seed(3, "sheet")]
    subject, motion = {"spatial_teacher"}, {"temporal_teacher"}
    assert seen == [(on, 2.0) for on in (
        set(), subject, motion, subject | motion, {"spatial", "temporal"})]
    with Image.open(tmp_path / "sheet-000001.gif") as image:
        assert image.width // 64 == 7


def test_in_an_animation_a_shorter_clip_begins_again():
    clip = torch.zeros(2, 8, 8, 3, dtype=torch.uint8)
    clip[1] = 255
    four = sheet.side_by_side([clip], 4)
    assert torch.equal(four[2:], four[:2]) and not torch.equal(four[0], four[1])


@pytest.mark.parametrize("flags", [(), ("--gradient-checkpointing",)])
def test_gradient_checkpointing_reaches_the_unet(run_stage, tmp_path, monkeypatch, flags):
    seen = []
    monkeypatch.setattr("customttt.run.train.fit", lambda run, resume: seen.append(
        run.module.gradient_checkpointing) or (True, False))
    run_stage("spatial", tmp_path, *flags)
    assert seen == [bool(flags)]


def test_every_stream_has_the_seed_that_is_given(run_stage, tmp_path, monkeypatch):
    seen, loras = {"draws": [], "latents": []}, []
    monkeypatch.setattr(loop, "Draws", lambda seed: seen["draws"].append(seed) or Draws(seed))
    monkeypatch.setattr("customttt.run.data.encode", lambda model, pixels, seed: seen[
        "latents"].append(seed) or encode(model, pixels, seed))
    for seed in ("5", "6"):
        run_stage("spatial", tmp_path / seed, "--steps", "1", "--seed", seed)
        loras.append(load_file(tmp_path / seed / "adapter.safetensors"))
    assert seen == {"draws": [5, 6], "latents": [5, 6]}
    downs = [key for key in loras[0] if "lora_down" in key]
    assert all((loras[0][key] - loras[1][key]).abs().max() > 0.01 for key in downs)


def test_the_nearest_words_are_a_files_prompt(data, tmp_path):
    shutil.copytree(data / "bear", tmp_path / "bear")
    shutil.copy(data / "bear.txt", tmp_path)
    first, second = files = [tmp_path / "bear" / f"{k}.png" for k in range(2)]
    assert prompts_of(None, files) == ["a bear", "a bear"]      # beside the folder
    first.with_suffix(".txt").write_text("a blue bear")
    assert prompts_of("a cub", files) == ["a blue bear", "a cub"]
    first.with_suffix(".txt").write_text("a \x1b[2J bear")
    with pytest.raises(UserError, match="0.png: its prompt: holds control characters"):
        prompts_of("a cub", files)
    for each in (first.with_suffix(".txt"), tmp_path / "bear.txt"):
        each.write_text(" \n")
    with pytest.warns(UserWarning, match="is empty, and is passed over"), pytest.raises(
            UserError, match="--prompt: say what .*0.png shows"):
        prompts_of(None, files)


def test_the_prompts_of_test_time_training_are_as_given():
    stages = {"spatial_prompt": "a bear", "temporal_prompt": "a man is lifting"}
    given = Namespace(prompt=None, appearance_prompt="a cub", motion_prompt="a crane is lifting")
    assert joined_prompts(stages, given) == ("a bear is lifting", "a cub", "a crane is lifting")
    none = Namespace(prompt="a cub", appearance_prompt=None, motion_prompt=None)
    assert joined_prompts(stages, none) == ("a cub", "a bear is doing something",
                                            "an object is lifting")


def test_latents_are_of_their_seed(model):
    pixels = torch.zeros(1, 3, 1, 64, 64)
    assert not torch.equal(encode(model, pixels, 0), encode(model, pixels, 1))


def test_resume_refuses_another_optimizer(run_stage, tmp_path, monkeypatch):
    run_stage("spatial", tmp_path, "--steps", "1")
    monkeypatch.setattr(Stage, "optimizer_class", torch.optim.AdamW)
    with pytest.raises(UserError, match="optimizer = 'Lion', not 'AdamW'"):
        run_stage("spatial", tmp_path, "--steps", "2", "--resume")


def test_checkpoints_of_later_stages_go_once_this_one_can_train(tmp_path):
    def spatial(*flags: str) -> bool:
        args = parsed(STAGES["spatial"], ["--output", str(tmp_path / "spatial"), "--steps", "1",
                                          "--sheet-every", "0", *flags])
        return train.train(STAGES["spatial"], args, [later])
    later = tmp_path / "checkpoint.pt"
    later.touch()
    with pytest.raises(UserError, match="--data"):
        spatial("--data", str(tmp_path / "typo"))
    assert later.exists()
    assert spatial() and not later.exists()


def test_checkpointing_is_told_to_the_estimate_of_memory(run_stage, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("customttt.run.options.check_memory", lambda *of: seen.append(of[2:]))
    run_stage("spatial", tmp_path, "--steps", "1", "--gradient-checkpointing")
    assert seen == [(True, True)]


@pytest.mark.parametrize("motion", [False, True])
def test_a_sheet_is_sampled_as_the_recipe_says(model, tmp_path, monkeypatch, motion):
    seen, above = [], [torch.full((2, side, side, 3), 9, dtype=torch.uint8) for side in (64, 32)]

    def ddim(unet, noise, text, empty, timesteps, guidance, with_motion):
        assert torch.equal(torch.cat([text, empty]), model.encode_text(["a star", ""]))
        assert timesteps == ddim_timesteps(3) and guidance == 4 and with_motion is motion
        yield noise
    monkeypatch.setattr(sheet, "ddim", ddim)
    monkeypatch.setattr(sheet, "write_frames", lambda frames, path, *_: seen.append(frames))
    settings = {"frames": 2, "size": 64, "sampling_steps": 3, "guidance": 4.0}
    sheet.sheet_writer(model, "a star", settings, 0, ((), ()), above, motion)(tmp_path / "a.png")
    assert len(seen) == 1 + motion      # the sheet is last: where it is, its .gif is
    assert seen[-1].shape[1] == 3 * 66 and (seen[-1][0, :64, :64] == 9).all()   # not the small one


def test_resume_refuses_another_teacher(run_stage, adapters, tmp_path):
    shutil.copytree(adapters / "spatial", tmp_path / "spatial")
    file = tmp_path / "spatial" / "adapter.safetensors"
    run_stage("ttt", tmp_path / "ttt", "--steps", "1", "--spatial", tmp_path / "spatial")
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    save_file({key: value + 1 for key, value in load_file(file).items()}, file, metadata)
    with pytest.raises(UserError, match="was started with another --spatial; give the same"):
        run_stage("ttt", tmp_path / "ttt", "--steps", "2", "--resume", "--spatial",
                  tmp_path / "spatial")


def test_teachers_have_no_dropout_and_the_student_has(model, adapters, tmp_path):
    args = Namespace(spatial=adapters / "spatial", temporal=adapters / "temporal", output=tmp_path,
                     prompt=None, appearance_prompt=None, motion_prompt=None)
    STAGES["ttt"].prepare(model, TTT.values(model.unet), args)
    assert {(name, lora.dropout.p) for _, each in wrapped(model.unet)
            for name, lora in each.loras.items()} == {
        ("spatial", 0.1), ("temporal", 0.1), ("spatial_teacher", 0), ("temporal_teacher", 0)}


def test_a_clip_is_read_at_the_rate_that_is_asked_for(model, data, tmp_path, monkeypatch):
    seen, file = [], data / "lifting.gif"
    monkeypatch.setattr("customttt.run.data.read_video",
                        lambda *of: seen.append(of) or torch.zeros(3, 2, 64, 64))
    read_clips(model, {"frames": 2, "fps": 4.0, "size": 64}, Namespace(
        data=[file], prompt="a man is lifting", resume=True, seed=0, output=tmp_path))
    assert seen == [(file, 2, 4.0, 64)]


def test_sigterm_is_ctrl_c_and_a_second_one_stops_at_once():
    with loop._until_interrupted() as came:
        assert signal.getsignal(signal.SIGTERM) is signal.getsignal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert came()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


# Runs built by hand: on the model in memory, with losses of the test's choice

def run_of(model, folder: Path, step, **changes) -> loop.Run:
    settings = {name: setting.value for name, setting in TEMPORAL.full.items()} | changes
    there = tuple(name for name in STAGES["ttt"].trained if lora_parameters(model.unet, name))
    stage = replace(STAGES["ttt"], trained=there)
    parameters = stage.parameters(model)
    train_only(model.unet, parameters)
    return loop.Run(folder, model.unet, parameters, stage.optimizer(parameters, settings), step,
                    partial(stage.save, model), None, settings, {"kind": "joined"}, "fp32", 0,
                    "none", 100, sheet_every=0)


def a_clip(frames: int = 2) -> torch.Tensor:
    """Latents of something that moves: a bright spot walks along the rows. (1 4 f 8 8)"""
    z = -0.5 * torch.ones(1, 4, frames, 8, 8)
    for k in range(frames):
        z[:, :, k, 2 * k % 8:2 * k % 8 + 2, 2:6] = torch.tensor([2, 1, -2, 1.5]).view(4, 1, 1)
    return z


def all_loras(model, rank: int = 8) -> None:
    add_lora(model.unet, "spatial", (0, 1, 2, 4, 6, 7, 8), rank, dropout=0)
    add_lora(model.unet, "temporal", (0, 1, 2, 3, 5, 6, 7, 8), rank, dropout=0)


def test_good_steps_in_between_keep_a_run_going_and_losses_add_up(model, tmp_path, monkeypatch):
    all_loras(model)
    monkeypatch.setattr(loop, "MOST_SKIPPED", 3)
    count, p = itertools.count(1), next(iter(STAGES["ttt"].parameters(model).values()))

    def step(draws, backward):
        bad = next(count) % 2 == 0
        for loss in (1.0, 2.0):
            backward((p * 0).sum() + loss * (float("nan") if bad else 1))
    assert loop.fit(run_of(model, tmp_path, step, steps=5), resume=False) == (True, False)
    assert [line["loss"] for line in log(tmp_path)] == [3] * 5
    assert log(tmp_path)[-1]["skipped"] == 4


def test_a_checkpoint_keeps_scaler_and_skipped(model, tmp_path):
    all_loras(model)
    run, cpu = run_of(model, tmp_path, None), torch.device("cpu")
    first, second = (checkpoint.State(run, torch.amp.GradScaler("cpu", init_scale=scale), Draws(0),
                                      cpu) for scale in (8.0, 4.0))
    first.skipped = 7
    first.save()
    second.load()
    assert second.skipped == 7 and second.scaler.get_scale() == 8


def test_handlers_of_signals_are_put_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with loop._until_interrupted():
        assert signal.getsignal(signal.SIGINT) is not before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def temporal_run(model, z, text, **settings):
    """temporal_step on these latents, as a function of draws and backward."""
    settings = TEMPORAL.values(model.unet) | {"debiased": False, "least_timestep": 0} | settings
    return partial(temporal_step, model.unet, z, text, settings)


def test_a_step_whose_loss_is_not_finite_is_counted_and_made_again(model, tmp_path):
    all_loras(model)
    count, weights = itertools.count(1), []
    good = temporal_run(model, a_clip(), model.encode_text(["a"]))

    def step(draws, backward):
        weights.append(model.unet.layers[2].motion_modules[0].block.ff.out.loras[
            "temporal"].up.weight.detach().clone())
        bad = next(count) in (2, 4)
        good(draws, lambda loss: backward(loss * float("nan") if bad else loss))
    assert loop.fit(run_of(model, tmp_path, step, steps=5), resume=False) == (True, False)
    assert [line["step"] for line in log(tmp_path)] == [1, 2, 3, 4, 5]
    assert [line["skipped"] for line in log(tmp_path)] == [0, 1, 2, 2, 2]
    moved = [not torch.equal(a, b) for a, b in itertools.pairwise(weights)]
    assert moved == [True, False, True, False, True, True]      # after each of seven tries but one
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["skipped"] == 2


@pytest.mark.parametrize("value", ["loss", "gradient"])
def test_many_skipped_steps_in_a_row_stop_with_a_sentence(model, tmp_path, value):
    parameter = add_lora(model.unet, "temporal", (2,), rank=2)[0]

    def step(draws, backward):      # sqrt has a finite value and an infinite slope at 0
        backward(parameter.sum() * float("inf") if value == "loss" else
                 (parameter * 0).sum().sqrt())
    with pytest.raises(UserError, match="not finite for 20 steps in a row; try --precision fp32"):
        loop.fit(run_of(model, tmp_path, step, steps=50), resume=False)
    assert log(tmp_path) == []


def test_learning_is_real(model, tmp_path, capsys):
    """One clip, every layer's LoRA: the loss falls, and what is sampled moves to the clip."""
    z, (text, empty) = a_clip(), model.encode_text(["a spot walks", ""]).split(1)
    all_loras(model)
    g = torch.Generator().manual_seed(1)
    fixed = [(torch.randn(z.shape, generator=g), torch.tensor([t])) for t in range(50, 1000, 100)]
    noise = torch.randn((4, *z.shape[1:]), generator=g)

    @torch.no_grad()
    def judge() -> dict[str, float]:
        loss, error = [], []
        for eps, t in fixed:
            x_t, a = add_noise(z, eps, t), alpha_bar(t).item()
            eps_hat = model.unet(x_t, t, text)
            loss.append(noise_loss(eps_hat, eps))
            error.append((((x_t - (1 - a) ** 0.5 * eps_hat) / a ** 0.5 - z).norm() / z.norm()))
        *_, sampled = ddim(model.unet, noise, text.repeat(4, 1, 1), empty, ddim_timesteps(10), 1)
        far = (sampled - z).flatten(1).norm(dim=1) / z.norm()
        colours = [clip.mean(dim=(-1, -2)).flatten(1) for clip in (sampled, z)]     # of each frame
        return {"noise loss": torch.stack(loss).mean().item(),
                "error of x_0 in one step": torch.stack(error).mean().item(),
                "error of the samples": far.mean().item(),
                "cosine of the samples' colours": F.cosine_similarity(*colours).mean().item()}

    before = judge()
    loop.fit(run_of(model, tmp_path, temporal_run(model, z, text), steps=80, learning_rate=1e-3,
                    weight_decay=0.0), resume=False)
    model.unet.eval()
    after = judge()
    with capsys.disabled():
        print("\none clip, 80 steps: " + ", ".join(
            f"{what} {before[what]:.2f} -> {after[what]:.2f}" for what in before))
    loss, one_step, far, cosine = ((before[what], after[what]) for what in before)
    assert loss[1] < 0.6 * loss[0] and one_step[1] < 0.9 * one_step[0]
    assert far[1] < 0.95 * far[0] and cosine[1] > cosine[0] + 0.1


def test_the_subject_is_learned(model, tmp_path, capsys):
    """The default stage: images of the prompt take on the example teddy's own colours."""
    pixels = torch.stack([read_image(file, 64)
                          for file in sorted((TINY / "examples" / "subject").glob("*.png"))])
    z = encode(model, rearrange(pixels, "n c h w -> n c 1 h w"), seed=0)
    text, empty = model.encode_text(["a teddy bear", ""]).split(1)
    settings = SPATIAL.values(model.unet)
    add_lora(model.unet, "spatial", settings["spatial_layers"], settings["rank"])
    noise = torch.randn((8, *z.shape[1:]), generator=torch.Generator().manual_seed(1))

    @torch.no_grad()
    def identity() -> float:
        *_, sampled = ddim(model.unet, noise, text.repeat(8, 1, 1), empty.repeat(8, 1, 1),
                           ddim_timesteps(15), settings["guidance"], motion=False)
        drawn, true = (torch.stack([palette(frame[None]) for frame in as_frames(images)])
                       for images in (model.vae.decode(sampled[:, :, 0]), pixels))
        return torch.minimum(drawn, true.mean(0)).sum(1).mean().item()

    before = identity()
    step = partial(spatial_step, model.unet, z, text.repeat(len(z), 1, 1), settings)
    loop.fit(run_of(model, tmp_path, step, **settings), resume=False)
    model.unet.eval()
    after = identity()
    with capsys.disabled():
        print(f"\nshare of the teddy's colours: {before:.2f} -> {after:.2f}")
    assert after > before + 0.3


def test_the_motion_is_learned(model, tmp_path, capsys):
    """In a hundred of the default's 250 steps: the clip is seen better through strong noise."""
    settings = TEMPORAL.values(model.unet) | {"steps": 100}
    pixels = read_video(TINY / "examples" / "motion.mp4", settings["frames"], 8, 64)
    z = encode(model, pixels[None], seed=0)
    text = model.encode_text([(TINY / "examples" / "motion.txt").read_text().strip()])
    add_lora(model.unet, "temporal", settings["temporal_layers"], settings["rank"])
    g = torch.Generator().manual_seed(1)
    fixed = [(torch.randn(z.shape, generator=g), torch.tensor([t])) for t in (800, 850, 900)]

    @torch.no_grad()
    def error() -> float:
        return torch.stack([noise_loss(model.unet(add_noise(z, eps, t), t, text), eps)
                            for eps, t in fixed]).mean().item()

    before = error()
    step = partial(temporal_step, model.unet, z, text, settings)
    loop.fit(run_of(model, tmp_path, step, **settings), resume=False)
    model.unet.eval()
    after = error()
    with capsys.disabled():
        print(f"\nthe clip's noise loss at t = 800 to 900: {before:.5f} -> {after:.5f}")
    assert after < 0.8 * before


@pytest.mark.parametrize("stage, error", [("spatial", 2e-3), ("temporal", 0.1), ("ttt", 0.02)])
def test_bf16_on_a_cpu_has_the_losses_of_fp32(run_stage, tmp_path, stage, error):
    """Mixed precision: LoRAs and log are fp32, and the losses nearly the same (0.0005, 0.04 and
    0.006 were measured)."""
    for precision in ("fp32", "bf16"):
        run_stage(stage, tmp_path / precision, "--steps", "2", "--precision", precision,
                  "--gradient-checkpointing")
    mixed, exact = ([line["loss"] for line in log(tmp_path / precision)]
                    for precision in ("bf16", "fp32"))
    assert mixed == pytest.approx(exact, rel=error) and mixed != exact
    tensors = load_file(tmp_path / "bf16" / "adapter.safetensors")
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
    assert any("lora_up" in key and tensor.any() for key, tensor in tensors.items())


def test_weights_decay_by_their_setting(model, tmp_path):
    p = add_lora(model.unet, "temporal", (2,), rank=2)[0]
    before = p.detach().clone()
    loop.fit(run_of(model, tmp_path, lambda draws, backward: backward((p * 0).sum()), steps=1,
                    learning_rate=0.5, weight_decay=0.5), resume=False)
    assert torch.allclose(p, 0.75 * before, rtol=1e-6)


def test_groups_have_their_own_rates(model, tmp_path):
    parameters = add_lora(model.unet, "temporal", (2,), rank=2)
    before = [p.detach().clone() for p in parameters]
    run = run_of(model, tmp_path, lambda draws, backward: backward(sum(map(torch.sum, parameters))),
                 steps=1)
    run.optimizer = Lion([{"params": parameters[:1], "lr": 0.0},
                          {"params": parameters[1:], "lr": 0.5}], 1e-3, weight_decay=0.0)
    loop.fit(run, resume=False)
    moved = [(p - b).abs().max().item() for p, b in zip(parameters, before)]
    assert moved[0] == 0 and moved[1:] == pytest.approx([0.5] * (len(parameters) - 1), abs=1e-6)


def test_resume_refuses_other_images_under_the_same_words(run_stage, data, tmp_path):
    """And does not draw them into data.png."""
    shutil.copytree(data / "bear", tmp_path / "bear")
    flags = ("--data", tmp_path / "bear", "--prompt", "a bear")
    run_stage("spatial", tmp_path / "run", "--steps", "1", *flags)
    before = (tmp_path / "run" / "data.png").read_bytes()
    write_frames(gradient(1, 64, 64).flip(1), tmp_path / "bear" / "0.png")
    with pytest.raises(UserError, match="was started with other data or prompts; give the same"):
        run_stage("spatial", tmp_path / "run", "--steps", "2", "--resume", *flags)
    assert (tmp_path / "run" / "data.png").read_bytes() == before


def test_every_part_counts_in_the_checksum(model):
    before = model.checksum()
    for part in (model.text_encoder, model.vae, model.unet.layers[0].spatial_transformers,
                 model.unet.layers[0].motion_modules):
        weight = next(part.parameters())
        kept = weight.detach().clone()
        weight.data.view(-1)[0] += 1
        assert model.checksum() != before
        weight.data.copy_(kept)
    assert model.checksum() == before
    for changed in (
            {"vae": SimpleNamespace(config=replace(model.vae.config, scale=1.0),
                                    parameters=model.vae.parameters)},
            {"tokenizer": Tokenizer(model.tokenizer.vocabulary, [], model.tokenizer.length)},
            {"tokenizer": Tokenizer(model.tokenizer.vocabulary | {START: 0},
                                    list(model.tokenizer.rank), model.tokenizer.length)}):
        assert replace(model, **changed).checksum() != before


def test_frames_stay_with_their_clip(model):
    pixels = torch.rand(2, 3, 3, 64, 64) * 2 - 1
    z = encode(model, pixels, seed=0)
    with torch.no_grad():
        for clip, latents in zip(pixels, z):
            mean = model.vae.encode(rearrange(clip, "c f h w -> f c h w"))
            assert (rearrange(latents, "c f h w -> f c h w") - mean).abs().mean() < 0.1 * mean.std()


@pytest.mark.parametrize("stage", ["spatial", "temporal"])
def test_the_dropout_of_a_fresh_lora_is_as_given(run_stage, tmp_path, monkeypatch, stage):
    seen = []
    monkeypatch.setattr("customttt.run.train.fit", lambda run, resume: seen.extend(
        lora.dropout.p for _, each in wrapped(run.module) for lora in each.loras.values())
        or (True, False))
    run_stage(stage, tmp_path, "--dropout", "0.25")
    assert set(seen) == {0.25}


@pytest.mark.parametrize("fps, shown", [(60.0, 20), (0.005, 100_000)])
def test_a_sheet_is_drawn_at_a_rate_that_a_gif_can_hold(model, tmp_path, monkeypatch, fps, shown):
    monkeypatch.setattr(sheet, "ddim", lambda unet, noise, *_: iter([noise]))
    settings = {"frames": 2, "size": 32, "sampling_steps": 1, "guidance": 1.0, "fps": fps}
    sheet.sheet_writer(model, "a star", settings, 0, ((),), [], True)(tmp_path / "a.png")
    with Image.open(tmp_path / "a.gif") as image:
        assert image.info["duration"] == shown


def test_in_fp16_the_scale_comes_down_until_the_gradient_is_finite(model, tmp_path):
    """65536 times 4 is more than fp16 holds; three halvings later it is not. The optimizer sees the
    gradient itself."""
    p = add_lora(model.unet, "temporal", (2,), rank=2)[0]
    run = run_of(model, tmp_path, lambda draws, backward: backward(
        (4 * p.half()).sum().float()), steps=1, weight_decay=0.0)
    loop.fit(replace(run, precision="fp16"), resume=False)
    content = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert log(tmp_path)[0]["skipped"] == 3 and content["scaler"]["scale"] == 2 ** 13
    [state] = content["optimizer"]["state"].values()
    assert torch.allclose(state["m"], torch.full_like(p, 4 * (1 - 0.99)), rtol=1e-3)


def test_the_join_says_what_its_loras_were_trained_on(model, adapters, tmp_path, capsys):
    args = Namespace(spatial=adapters / "spatial", temporal=adapters / "temporal", output=tmp_path,
                     prompt=None, appearance_prompt=None, motion_prompt=None)
    model.name = "another"
    STAGES["ttt"].prepare(model, TTT.values(model.unet), args)
    assert capsys.readouterr().out.count(": was trained on tiny, is used on another\n") == 2


def test_the_join_refuses_anothers_lora_by_its_kind_and_says_what_it_leaves_out(
        run_stage, model, adapters, tmp_path, capsys):
    foreign, encoder = tmp_path / "a.safetensors", model.text_encoder       # as kohya's has it
    stem, (_, name) = next((stem, of) for stem, of in text_stems(encoder).items()
                           if stem.startswith("lora_te_"))
    outputs, inputs = encoder.get_submodule(name).weight.shape
    save_file({f"{stem}.lora_up.weight": torch.zeros(outputs, 2),
               f"{stem}.lora_down.weight": torch.zeros(2, inputs)}, foreign)
    with pytest.raises(UserError, match="holds a foreign LoRA, not what --stage spatial trains"):
        run_stage("ttt", tmp_path / "ttt", "--spatial", foreign)
    with safe_open(adapters / "spatial" / "adapter.safetensors", "pt") as file:
        tensors, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()
    save_file(tensors | {"bundle_emb.cat.string_to_param.*": torch.zeros(1, 8)}, foreign, metadata)
    run_stage("ttt", tmp_path / "ttt", "--spatial", foreign, "--steps", "1")
    assert f"{foreign}: its embedding cat is left out" in capsys.readouterr().out


def test_a_row_above_the_sheet_that_cannot_be_drawn_is_said(tmp_path):
    lora, row = tmp_path / "adapter.safetensors", tmp_path / "data.png"
    write_frames(gradient(3, 8, 8), row)
    [kept] = kept_row(lora)
    assert torch.equal(kept, gradient(3, 8, 8))
    for spoil in (lambda: Image.new("RGB", (20, 8)).save(row), lambda: row.write_bytes(b"none")):
        spoil()
        with pytest.warns(UserWarning, match=r"data\.png: not drawn"):
            assert kept_row(lora) == []
