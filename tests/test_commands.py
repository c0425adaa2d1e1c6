"""The command lines as a person runs them: the whole method in processes of its own; sample.py."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from argparse import BooleanOptionalAction, Namespace
from pathlib import Path

import av
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import sample
import train
from customttt.errors import UserError, command_parser
from customttt.files.load import load_model
from customttt.files.lora_files import save_lora
from customttt.lora import add_lora
from customttt.media.clips import write_frames
from customttt.run.lock import locked
from sample import split_scale
from test_media import gradient, numbered, pages, write_clip

ROOT = Path(__file__).resolve().parent.parent
SIZES = ["--size", "64", "--frames", "3", "--sampling-steps", "2"]
QUICK = [*SIZES, "--steps", "2", "--learning-rate", "0.01"]


def program(name: str, *flags, folder: Path) -> subprocess.Popen:
    """Start `python name flags` in another working directory."""
    return subprocess.Popen([sys.executable, str(ROOT / name), *map(str, flags)], cwd=folder,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env=os.environ | {"OMP_NUM_THREADS": "1"})


def finished(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


@pytest.fixture(scope="session")
def trained(model_folder, tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """All three stages and sample.py from an empty folder. Returns it and what each printed."""
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "bear").mkdir()
    (folder / "clips").mkdir()
    for k, frame in enumerate(gradient(2, 80, 64)):
        write_frames(frame[None], folder / "bear" / f"{k}.png")
    for k, word in enumerate(("lifting", "running")):       # a caption beside each clip
        write_clip(folder / "clips" / f"{k}.mp4", numbered(4)[::1 - 2 * k], fps=8)
        (folder / "clips" / f"{k}.txt").write_text(f"a man is {word}\n")
    model = ["--model", model_folder]
    said = {stage: finished(program("train.py", "--stage", stage, *model, *flags, *QUICK,
                                    folder=folder))
            for stage, flags in (
                ("spatial", ["--data", "bear", "--prompt", "a bear", "--rank", "4"]),
                ("temporal", ["--data", "clips", "--rank", "4"]),
                ("ttt", ["--reference-steps", "2"]))}
    said["sample"] = finished(program("sample.py", *model, *SIZES, "--fps", "8", folder=folder))
    return folder, said


@pytest.fixture
def run_sample(trained, model_folder, monkeypatch, tmp_path):
    """run_sample("--flag", ...) -> the frames of a lossless sheet, in the folder of `trained`."""
    count = itertools.count()

    def run_sample(*flags) -> torch.Tensor:
        sheet = tmp_path / f"sheet-{next(count)}.png"
        monkeypatch.chdir(trained[0])
        monkeypatch.setattr(sys, "argv", [str(a) for a in (
            "sample.py", "--model", model_folder, "--output", sheet, "--prompt", "a bear", *SIZES,
            *flags)])
        sample.main()
        return pages(sheet)[0]
    return run_sample


def test_the_whole_method_from_another_folder(trained):
    folder, said = trained
    assert sorted(path.name for path in (folder / "output").iterdir()) == [
        "sample.mp4", "spatial", "temporal", "ttt"]
    assert "prompt: a man is lifting\n        a man is running\n" in said["temporal"]
    assert "target: a bear is lifting\n" in said["ttt"]
    assert "temporal teacher: an object is lifting\n" in said["ttt"]
    assert "prompt: a bear is lifting\n" in said["sample"]      # that of output/ttt, unasked
    assert "steps 2 (given); full size: 500 (supplement)" in said["spatial"]
    with av.open(str(folder / "output/sample.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.width, stream.average_rate) == ("h264", 64, 8)
        assert len(list(container.decode(stream))) == 3


def test_ctrl_c_of_a_process_of_its_own_and_resume(trained, model_folder, monkeypatch):
    folder, _ = trained
    flags = ["train.py", "--stage", "spatial", "--model", model_folder, "--data", "bear",
             "--prompt", "a bear", "--rank", "2", "--sheet-every", "0", *SIZES]
    process = program(*flags, "--output", "cut", "--steps", "100000", folder=folder)
    log, end = folder / "cut/log.jsonl", time.time() + 60
    while not (log.exists() and log.stat().st_size) and time.time() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err, err
    assert "finishing this step or sheet; once more to stop at once" in err
    assert out.endswith("stopped and saved; go on with the same command and --resume\n")
    done = torch.load(folder / "cut/checkpoint.pt", weights_only=True)["step"]
    assert done == len(log.read_text().splitlines()) >= 1
    monkeypatch.chdir(folder)
    for output, resume in (("cut", ["--resume"]), ("whole", [])):
        monkeypatch.setattr(sys, "argv", [str(a) for a in (
            *flags, "--output", output, "--steps", done + 1, *resume)])
        train.main()
    cut, whole = (load_file(folder / name / "adapter.safetensors") for name in ("cut", "whole"))
    assert cut.keys() == whole.keys() and all(torch.equal(cut[key], whole[key]) for key in cut)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(run_sample):
    first, again, other = run_sample(), run_sample(), run_sample("--seed", "1")
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_loras_add_up_with_their_scales(run_sample, trained, tmp_path):
    """Scale 0 changes nothing; 1.0 and no number are the same; two halves are a whole."""
    folder, _ = trained
    strong = {key: t * (30 if "up" in key else 1) for key, t in load_file(
        folder / "output/spatial/adapter.safetensors").items()}
    save_file(strong, tmp_path / "subject.safetensors")
    subject = tmp_path / "subject.safetensors"
    plain, whole = run_sample("--lora"), run_sample("--lora", subject)
    assert not torch.equal(plain, whole)
    assert torch.equal(plain, run_sample("--lora", f"{subject}:0"))
    assert torch.equal(whole, run_sample("--lora", f"{subject}:1.0"))
    halves = run_sample("--lora", f"{subject}:0.5", f"{subject}:0.5")
    assert (halves.int() - whole.int()).abs().max() <= 1
    both = run_sample("--lora", subject, "output/temporal:20")
    assert not torch.equal(both, whole)
    assert torch.equal(both, run_sample("--lora", subject, "--lora", "output/temporal:20"))


def test_what_sample_py_is_told_reaches_the_sampler_and_the_file(trained, model_folder, monkeypatch):
    """The prompt is that of the last LoRA, where none is given."""
    folder, _ = trained
    asked, rates = [], []
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sample, "sample_latents",
                        lambda model, *of, **_: asked.append(of) or [torch.zeros(1, 4, 3, 16, 16)])
    monkeypatch.setattr(sample, "write_frames", lambda frames, path, fps: rates.append(fps))
    for loras in (("spatial", "temporal"), ("temporal", "spatial")):
        monkeypatch.setattr(sys, "argv", [
            "sample.py", "--model", str(model_folder), *SIZES, "--negative-prompt", "a fish",
            "--fps", "5", "--seed", "3", "--guidance", "4",
            "--lora", *(f"output/{name}" for name in loras)])
        sample.main()
    assert asked == [(prompt, 2, 4.0, 3, 64, 3, "a fish") for prompt in (
        "a man is lifting", "a bear")] and rates == [5, 5]


@pytest.mark.parametrize("given, path, scale", [
    ("a.safetensors", "a.safetensors", 1.0), ("a.safetensors:0.8", "a.safetensors", 0.8),
    ("a.safetensors:-1", "a.safetensors", -1.0), (r"C:\loras\a.safetensors", None, 1.0),
    (r"C:\loras\a.safetensors:0.5", r"C:\loras\a.safetensors", 0.5), ("folder", "folder", 1.0),
    ("a:b.safetensors", None, 1.0), ("7", None, 1.0), ("a.safetensors:nan", None, 1.0)])
def test_a_colon_in_a_path_is_not_a_scale(given, path, scale):
    assert split_scale(given) == (Path(given if path is None else path), scale)


@pytest.mark.parametrize("flag, alike", [("--no-motion", True), ("--motion", False)])
def test_no_motion_makes_the_frames_separate_images(run_sample, monkeypatch, flag, alike):
    """Three frames of one noise come out the same, unless motion modules tell them apart."""
    sampled = sample.sample_latents

    def of_one_noise(model, *args, **kwargs):
        noise = torch.randn((1, 4, 1, 16, 16), generator=torch.Generator().manual_seed(0))
        return sampled(model, *args, latents=noise.expand(1, 4, 3, 16, 16), **kwargs)
    monkeypatch.setattr(sample, "sample_latents", of_one_noise)
    a, b, c = run_sample(flag).chunk(3, dim=1)
    assert a.shape == (64, 64, 3)
    assert (torch.equal(a, b) and torch.equal(b, c)) == alike


def test_no_motion_says_what_it_leaves_out_and_takes_any_number_of_frames(run_sample, capsys):
    frames = run_sample("--no-motion", "--frames", "33", "--lora", "output/ttt")
    assert frames.shape == (64, 33 * 64, 3)
    assert "for the motion modules does nothing with --no-motion" in capsys.readouterr().out
    run_sample("--no-motion", "--lora", "output/spatial")
    assert "motion modules" not in capsys.readouterr().out


def test_a_model_without_motion_module_samples_images_only(trained, model_folder, tmp_path,
                                                          monkeypatch):
    shutil.copytree(model_folder, tmp_path / "image-model")
    shutil.rmtree(tmp_path / "image-model" / "motion_adapter")
    flags = ["sample.py", "--model", str(tmp_path / "image-model"), "--prompt", "a bear", *SIZES,
             "--output", str(tmp_path / "clip.webp")]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", flags)
    with pytest.raises(UserError, match="image-model has no motion module: give one with --motion"):
        sample.main()
    monkeypatch.setattr(sys, "argv", [*flags, "--no-motion"])
    sample.main()
    with Image.open(tmp_path / "clip.webp") as image:
        assert image.n_frames == 3


def test_the_folder_of_a_stopped_run_is_no_lora(model_folder, tmp_path, monkeypatch, capsys):
    """Without --lora: the default run makes the folders of all its stages before the first."""
    (tmp_path / "output/ttt").mkdir(parents=True)
    (tmp_path / "output/ttt/.writing-a.safetensors").touch()        # of a run that was killed
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["sample.py", "--model", str(model_folder), "--prompt",
                                      "a bear", *SIZES, "--output", "clip.webp"])
    sample.main()
    assert "no LoRA: there is none in " in capsys.readouterr().out
    assert (tmp_path / "clip.webp").exists()


def test_without_a_stage_all_run_in_turn(monkeypatch, tmp_path, capsys):
    """Each in its own folder; a resumed one only where there is a checkpoint; Ctrl-C ends all. A
    run of a later stage, unfinished or at work, is seen before the first stage trains; a finished
    one is not what --resume finds later, but a mistake in the flags leaves it."""
    def unfinished(kind: str, steps: int = 2) -> dict:
        return {"step": 1, "skipped": 0, "parameters": {}, "run": {"steps": steps, "kind": kind}}

    ran = []
    monkeypatch.chdir(tmp_path)

    def stops_in_the_second(stage, args, outdated):
        ran.append((stage.name, str(args.output), args.resume))
        for each in outdated:
            each.unlink(missing_ok=True)
        return stage.name != "temporal"

    def wrong(stage, args, outdated):
        raise UserError("--model typo: no such model")
    monkeypatch.setattr(train, "train", stops_in_the_second)
    (tmp_path / "output" / "spatial").mkdir(parents=True)
    torch.save(unfinished("spatial"), tmp_path / "output" / "spatial" / "checkpoint.pt")
    monkeypatch.setattr(sys, "argv", ["train.py", "--resume"])
    train.main()
    assert ran == [("spatial", "output/spatial", True), ("temporal", "output/temporal", False)]
    for flags, sentence in ((["--prompt", "a bear"], "--prompt: goes with --stage"),
                            (["--output", "here"], "--output: goes with --stage")):
        monkeypatch.setattr(sys, "argv", ["train.py", *flags])
        with pytest.raises(UserError, match=sentence):
            train.main()
    (tmp_path / "output" / "spatial").rename(tmp_path / "output" / "ttt")
    torch.save(unfinished("joined"), tmp_path / "output" / "ttt" / "checkpoint.pt")
    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(UserError, match=r"output/ttt: an unfinished run \(step 1 of 2\)"):
        train.main()
    with locked(tmp_path / "output" / "ttt"), pytest.raises(UserError, match="at work there"):
        train.main()
    assert len(ran) == 2
    assert [path.name for path in (tmp_path / "output").iterdir()] == ["ttt"]
    torch.save(unfinished("joined", steps=1), tmp_path / "output" / "ttt" / "checkpoint.pt")
    monkeypatch.setattr(train, "train", wrong)
    with pytest.raises(UserError, match="--model typo"):
        train.main()
    assert (tmp_path / "output" / "ttt" / "checkpoint.pt").exists()
    monkeypatch.setattr(train, "train", stops_in_the_second)
    train.main()
    monkeypatch.setattr(sys, "argv", ["train.py", "--resume"])
    monkeypatch.setattr(train, "train", lambda stage, args, outdated: ran.append(
        (stage.name, args.resume)) or True)
    train.main()
    assert ran[-1] == ("ttt", False)
    torch.save(unfinished("joined", steps=1), tmp_path / "output" / "ttt" / "checkpoint.pt")
    monkeypatch.setattr(sys, "argv", ["train.py", "--stage", "ttt"])
    train.main()        # alone: not thrown away before its flags and data are known to be right
    assert (tmp_path / "output" / "ttt" / "checkpoint.pt").exists()


def test_no_path_is_empty_and_what_is_given_twice_is_said():
    def parsed(*flags: str) -> Namespace:
        parser = command_parser()
        parser.add_argument_group("some").add_argument("--output", type=Path)
        parser.add_argument("--motion", action=BooleanOptionalAction)
        return parser.parse_args(flags)
    with pytest.raises(UserError, match="--output: is empty: name a file or a folder"):
        parsed("--output", "")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert parsed("--no-motion").motion is False
    with pytest.warns(UserWarning, match="--motion: given more than once; the last one counts"):
        assert parsed("--no-motion", "--motion").motion is True
    with pytest.raises(UserError, match="--lora: is empty; name a file"):
        split_scale("")


@pytest.mark.parametrize("text, said", [
    ("bear " * 3000, "15000 characters"), ("a \x1b[31mbear", "control characters"),
    ("a woman \U0001f469\u200d\U0001f680,\ttwo\u00a0bears", None)], ids=["long", "escapes", "emoji"])
def test_a_prompt_in_a_lora_is_held_to_the_same_rules(model_folder, tmp_path, monkeypatch, text,
                                                      said):
    model = load_model(model_folder)
    add_lora(model.unet, "spatial", (2,), rank=1)
    save_lora(model.unet, tmp_path / "lora.safetensors", {"prompt": text})
    flags = ["sample.py", "--model", str(model_folder), "--lora", str(tmp_path / "lora.safetensors"),
             "--output", str(tmp_path / "a.png"), *SIZES, "--sampling-steps", "1"]
    monkeypatch.setattr(sys, "argv", flags)
    if said is None:
        sample.main()
    else:
        with pytest.raises(UserError, match=f"^--lora: the prompt in it: .*{said}"):
            sample.main()
        monkeypatch.setattr(sys, "argv", [*flags, "--prompt", "a bear"])
        sample.main()
    assert (tmp_path / "a.png").exists()


def test_a_resumed_default_run_keeps_what_later_stages_have(monkeypatch, tmp_path):
    """Ctrl-C in the last stage: with --resume the first two end at once, and the last goes on."""
    gone = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "train", lambda stage, args, outdated: gone.append(
        (stage.name, args.resume, [*outdated])) or True)
    for name, kind, done in (("spatial", "spatial", 2), ("ttt", "joined", 1)):
        (tmp_path / "output" / name).mkdir(parents=True)
        torch.save({"step": done, "skipped": 0, "parameters": {}, "run": {
            "steps": 2, "kind": kind}}, tmp_path / "output" / name / "checkpoint.pt")
    monkeypatch.setattr(sys, "argv", ["train.py", "--resume"])
    train.main()
    assert gone == [("spatial", True, [Path("output/temporal/checkpoint.pt")]),
                    ("temporal", False, []), ("ttt", True, [])]
