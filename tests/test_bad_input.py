"""Bad input through the command line: one sentence that names the file or flag, exit code 2."""

import json
import pickle
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from conftest import TINY, tiny_model
from PIL import Image
from safetensors.torch import load_file, save_file

import sample
import train
from customttt.errors import run_command
from customttt.files.lora_files import save_lora
from customttt.lora import add_lora
from customttt.media import clips
from customttt.media.clips import write_frames
from customttt.run import data, loop
from test_media import gradient, numbered, write_clip, write_sound

SMALL = ["--size", "64", "--frames", "2", "--sampling-steps", "2"]


@pytest.fixture(scope="session")
def adapters(tmp_path_factory) -> Path:
    """spatial/ and temporal/ with the files that the stages would leave, untrained."""
    folder = tmp_path_factory.mktemp("adapters")
    for kind, layers in (("spatial", (2, 6)), ("temporal", (2, 5))):
        unet = tiny_model().unet
        add_lora(unet, kind, layers, rank=4)
        save_lora(unet, folder / kind / "adapter.safetensors", {
            "kind": kind, f"{kind}_layers": layers, "prompt": "a bear is lifting", "rank": 4})
    return folder


@pytest.fixture
def place(tmp_path, model_folder, adapters) -> Path:
    """A folder with good input of every kind, for a test to spoil."""
    shutil.copytree(model_folder, tmp_path / "model")
    shutil.copytree(adapters, tmp_path / "stages")
    write_frames(gradient(1, 64, 64), tmp_path / "bear.png")
    write_clip(tmp_path / "clip.mp4", numbered(4), fps=8)
    return tmp_path


@pytest.fixture
def call(place, monkeypatch, capsys):
    """call("spatial", "--flag", ...) -> (exit code, what went to stderr); 0 is success."""
    def call(command: str, *flags) -> tuple[int, str]:
        images = ["--data", place / "bear.png", "--prompt", "a bear", "--steps", "1"]
        given = {"spatial": images, "dreamvideo-word": images,
                 "temporal": ["--data", place / "clip.mp4", "--prompt", "a bear is lifting",
                              "--steps", "1"],
                 "ttt": ["--spatial", place / "stages/spatial", "--temporal",
                         place / "stages/temporal", "--steps", "1", "--reference-steps", "1"],
                 "sample": ["--lora", "--prompt", "a bear",
                            "--output", place / "out/clip.png"]}[command]
        stage = [] if command == "sample" else ["--stage", command, "--sheet-every", "0",
                                                    "--output", place / "out"]
        monkeypatch.setattr(sys, "argv", [str(a) for a in (
            "program", *stage, "--model", place / "model", *SMALL, *given, *flags)])
        try:
            run_command(sample.main if command == "sample" else train.main)
            code = 0
        except SystemExit as end:
            code = end.code
        return code, capsys.readouterr().err
    return call


def assert_refused(answer: tuple[int, str], *words: str) -> None:
    """Exit code 2 and one sentence with these words, after whatever bars were drawn."""
    code, text = answer
    assert code == 2, text
    sentence, = (line for line in lines(text) if line.startswith("error: "))
    assert text.count("error: ") == 1 and "Traceback" not in text
    assert all(word in sentence for word in words), sentence


def lines(text: str) -> list[str]:
    """As a terminal shows them: a progress bar is drawn over its line again and again."""
    return text.replace("\r", "\n").splitlines()


def written(place: Path) -> list[str]:
    """What is in the output folder."""
    return sorted(path.name for path in (place / "out").rglob("*"))


# Weights

WEIGHTS = {"unet": "unet/diffusion_pytorch_model.safetensors",
           "vae": "vae/diffusion_pytorch_model.safetensors",
           "text_encoder": "text_encoder/model.safetensors",
           "motion_adapter": "motion_adapter/diffusion_pytorch_model.safetensors"}


def spoil(file: Path, how: str) -> tuple[str, ...]:
    """Break a weight file. Returns words that the sentence must have."""
    if how == "missing":
        file.unlink()
        return (str(file.parent),)
    if how == "truncated":
        file.write_bytes(file.read_bytes()[:-1000])
        return str(file), "not a whole safetensors file"
    if how == "empty":
        file.write_bytes(b"")
        return str(file), "not a whole safetensors file"
    tensors = load_file(file)
    key = sorted(tensors)[0]
    if how == "key missing":
        del tensors[key]
        save_file(tensors, file)
        return str(file), "1 missing: ", key
    tensors[key] = tensors[key][..., :-1].contiguous()
    save_file(tensors, file)
    return str(file), "1 wrong shapes: ", key


@pytest.mark.parametrize("part", WEIGHTS)
@pytest.mark.parametrize("how", ["missing", "truncated", "empty", "key missing", "wrong shape"])
def test_spoilt_weights(call, place, part, how):
    words = spoil(place / "model" / WEIGHTS[part], how)
    assert_refused(call("sample"), *words)
    assert written(place) == []


@pytest.mark.parametrize("file", ["unet/config.json", "tokenizer/vocab.json",
                                  "tokenizer/merges.txt"])
@pytest.mark.parametrize("how", ["missing", "garbage"])
def test_spoilt_model_folder(call, place, file, how):
    if how == "missing":
        (place / "model" / file).unlink()
    else:
        (place / "model" / file).write_bytes(b"\xff\x00{")
    assert_refused(call("sample"), str(place / "model"), file.split("/")[0])
    assert written(place) == []


class Bomb:
    """Unpickling it writes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "boom")


@pytest.mark.parametrize("flag", ["--motion-module", "--lora"])
@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_a_pickle_with_code_in_it_does_not_run(call, place, flag, form):
    content = {"state_dict": {"a": torch.zeros(1)}, "code": Bomb(place / "boom")}
    if form == "torch":
        torch.save(content, place / "evil.ckpt")
    else:
        (place / "evil.ckpt").write_bytes(pickle.dumps(content))
    assert_refused(call("sample", flag, place / "evil.ckpt"), str(place / "evil.ckpt"))
    assert not (place / "boom").exists() and written(place) == []


def test_no_model(call, place):
    assert_refused(call("spatial", "--model", place / "nowhere"), str(place / "nowhere"))
    assert_refused(call("spatial", "--model", place), str(place), "no text_encoder/config.json")


# Data

def test_an_image_that_is_text(call, place):
    (place / "bear.png").write_text("not an image")
    assert_refused(call("spatial"), str(place / "bear.png"), "not an image that can be read")
    assert written(place) == []


def test_a_truncated_image(call, place):
    Image.effect_noise((300, 300), 50).save(place / "bear.png")
    (place / "bear.png").write_bytes((place / "bear.png").read_bytes()[:4000])
    assert_refused(call("spatial"), str(place / "bear.png"), "not an image that can be read")


@pytest.mark.parametrize("stage", ["spatial", "temporal"])
def test_an_empty_folder_and_a_missing_one(call, place, stage):
    (place / "empty").mkdir()
    assert_refused(call(stage, "--data", place / "empty"), str(place / "empty"), "in this folder")
    assert_refused(call(stage, "--data", place / "none"), str(place / "none"), "--data")
    assert written(place) == []


def test_a_video_of_three_frames(call, place):
    write_clip(place / "clip.mp4", numbered(3), fps=8)
    answer = call("temporal", "--frames", "16")
    assert_refused(answer, str(place / "clip.mp4"), "too short", "3 frames", "16 are needed")
    assert written(place) == []


def test_a_video_of_sound_alone(call, place):
    write_sound(place / "song.mp4")
    assert_refused(call("temporal", "--data", place / "song.mp4"), str(place / "song.mp4"), "audio")


def test_a_caption_that_is_not_text(call, place):
    (place / "bear.txt").write_bytes(b"\xff\xfe\x00")
    assert_refused(call("spatial"), str(place / "bear.txt"), "UTF-8")


def test_no_prompt_anywhere(call, place, monkeypatch):
    monkeypatch.chdir(place)        # "." has no name to look for
    (place / "images").mkdir()
    shutil.copy(place / "bear.png", place / "images")
    monkeypatch.setattr(data, "prompts_of", lambda given, files, f=data.prompts_of: f(None, files))
    for path in (place / "images", place / "bear.png", "bear.png"):
        assert_refused(call("spatial", "--data", path), "--prompt", ".txt")
    monkeypatch.chdir(place / "images")
    assert_refused(call("spatial", "--data", "."), "--prompt", ".txt")


def test_a_model_of_ones_own_does_not_learn_the_tiny_example(place, monkeypatch, capsys):
    """Only a model folder's own examples are its defaults."""
    monkeypatch.chdir(TINY.parent.parent)
    shutil.rmtree(place / "model" / "examples")
    for stage in ("spatial", "temporal"):
        monkeypatch.setattr(sys, "argv", ["train.py", "--stage", stage, "--model",
                                          str(place / "model"), "--output", str(place / "out")])
        with pytest.raises(SystemExit):
            run_command(train.main)
        assert "error: --data: name the" in capsys.readouterr().err
    assert written(place) == []


# LoRAs

def test_a_lora_for_another_model(call, place, adapters):
    file = place / "other.safetensors"
    tensors = load_file(adapters / "spatial/adapter.safetensors")
    wide = {key: torch.zeros(t.shape[0], 320) if "down" in key else t for key, t in tensors.items()}
    save_file(wide, file)
    assert_refused(call("sample", "--lora", file), str(file), "a LoRA for another model")
    save_file({"lora_unet_double_blocks_0.lora_down.weight": torch.zeros(4, 4)}, file)
    assert_refused(call("sample", "--lora", file), str(file), "FLUX")
    save_file({"something.else": torch.zeros(1)}, file)
    assert_refused(call("sample", "--lora", file), str(file), "not a LoRA for this model")
    assert_refused(call("sample", "--lora", place / "none.safetensors:0.5"), "none.safetensors")
    assert written(place) == []


@pytest.mark.parametrize("how", ["truncated", "half a pair"])
def test_a_spoilt_lora(call, place, how):
    file = place / "stages/spatial/adapter.safetensors"
    if how == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    else:
        tensors = load_file(file)
        del tensors[next(key for key in tensors if "lora_up" in key)]
        save_file(tensors, file)
    assert_refused(call("sample", "--lora", file), str(file), "whole")


def test_ttt_without_the_stages_before_it_or_with_them_swapped(call, place):
    for kind in ("spatial", "temporal"):
        assert_refused(call("ttt", f"--{kind}", place / "none"), f"--{kind}", str(place / "none"),
                       f"run --stage {kind} first")
        other = place / "stages" / {"spatial": "temporal", "temporal": "spatial"}[kind]
        assert_refused(call("ttt", f"--{kind}", other), f"--{kind}", str(other), "not what")
    assert written(place) == []


def test_ttt_with_a_motion_prompt_that_has_no_is(call, place):
    file = place / "stages/temporal/adapter.safetensors"
    unet = tiny_model().unet
    add_lora(unet, "temporal", (2, 5), rank=4)
    save_lora(unet, file, {"kind": "temporal", "temporal_layers": [2, 5], "prompt": "jumping",
                           "rank": 4})
    assert_refused(call("ttt"), "--prompt", "--motion-prompt", "jumping")
    code, _ = call("ttt", "--prompt", "a bear is jumping", "--motion-prompt", "jumping")
    assert code == 0


@pytest.mark.parametrize("kind", ["spatial", "temporal"])
@pytest.mark.parametrize("lacking", ["layers", "prompt", "rank"])
def test_ttt_with_a_lora_that_does_not_say_enough(call, place, kind, lacking):
    file = place / "stages" / kind / "adapter.safetensors"
    told = {"kind": kind, f"{kind}_layers": "[2]", "prompt": "a bear is lifting", "rank": "4"}
    lacking = f"{kind}_layers" if lacking == "layers" else lacking
    save_file(load_file(file), file, {key: told[key] for key in told if key != lacking})
    assert_refused(call("ttt"), f"--{kind} {file}", f"lacks {lacking}; run --stage {kind} again")
    assert written(place) == []


# Flags

@pytest.mark.parametrize("command, flags, words", [
    ("spatial", "--spatial-layers 3", ["LoRA layer 3", "0, 1, 2, 4, 6, 7, 8"]),
    ("spatial", "--spatial-layers 9", ["LoRA layer 9", "0 to 8"]),
    ("spatial", "--spatial-layers 2 2", ["--spatial-layers 2 2", "once"]),
    ("spatial", "--spatial-layers -1", ["--spatial-layers -1"]),
    ("temporal", "--temporal-layers 4", ["LoRA layer 4", "0, 1, 2, 3, 5, 6, 7, 8"]),
    ("spatial", "--steps -1", ["--steps -1", "positive"]),
    ("spatial", "--steps 0", ["--steps 0", "positive"]),
    ("spatial", "--learning-rate nan", ["--learning-rate nan"]),
    ("spatial", "--dropout 1", ["--dropout 1", "less than 1"]),
    ("spatial", "--betas 0.9", ["--betas 0.9", "two"]),
    ("spatial", "--betas 0.9 1.5", ["--betas 0.9 1.5", "less than 1"]),
    ("spatial", "--batch-size 0", ["--batch-size 0"]),
    ("spatial", "--size 100", ["--size 100", "multiple of 32"]),
    ("spatial", f"--size {32 * 10 ** 400}", ["--size 32000", "less than 2147483648"]),
    ("spatial", "--learning-rate inf", ["--learning-rate inf", "less than"]),
    ("temporal", "--frames 33", ["--frames 33", "at most 32"]),
    ("spatial", "--checkpoint-every 0", ["--checkpoint-every", "at least 1"]),
    ("spatial", "--sheet-every -1", ["--sheet-every", "at least 0"]),
    ("spatial", "--reference-noise one", ["--reference-noise", "not a flag of --stage spatial"]),
    ("ttt", "--rank 8", ["--rank", "leave it out"]),
    ("ttt", "--reference-timestep next --reference-steps 2", ["--reference-steps 2"]),
    ("ttt", "--reference-timestep next --reference-steps 1 --least-timestep 5",
     ["--least-timestep", "does nothing with --reference-timestep next"]),
    ("sample", "--negative-prompt blur --guidance 1", ["--negative-prompt", "--guidance 1"]),
    ("temporal", "--least-timestep 1000", ["--least-timestep 1000", "less than 1000"]),
    ("sample", "--sampling-steps 501", ["--sampling-steps 501", "less than 501"]),
    ("sample", "--fps 0", ["--fps 0"]),
    ("sample", "--fps 3 --output a.png", ["--fps", "does nothing for a .png"]),
    ("sample", "--motion-module .", ["no config.json in it", "name the file in it"]),
    ("sample", "--vae .", ["no config.json in it", "name the file in it"]),
    ("sample", "--guidance -1", ["--guidance -1"]),
    ("sample", "--device cuda:99", ["--device cuda:99"]),
    ("sample", "--device abacus", ["--device abacus"]),
    ("sample", "--precision fp16", ["--precision fp16", "GPU"]),
    ("sample", "--seed 99999999999999999999", ["--seed"]),
    ("spatial", "--resume", ["--resume", "no checkpoint.pt"]),
    ("sample", "--motion-module clip.mp4", ["clip.mp4"]),
], ids=lambda value: value if isinstance(value, str) else "")
def test_flags_that_cannot_be(call, place, monkeypatch, command, flags, words):
    monkeypatch.chdir(place)
    flags = flags.split() + (["--device", "cpu"] if "--precision" in flags else [])
    assert_refused(call(command, *flags), *words)
    assert written(place) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_one(call):
    assert_refused(call("sample", "--device", "cuda"), "--device cuda")


def test_a_typing_error_in_a_flag(call, place):
    code, text = call("spatial", "--promt", "a bear")
    assert code == 2 and "error: --promt: not a flag of --stage spatial; leave it out" in text
    code, text = call("sample", "--step", "3")      # no abbreviations: they would change meaning
    assert code == 2 and "error: unrecognized arguments: --step 3; see" in text


def test_a_text_without_quotes_and_a_wrong_value(call):
    for command in ("spatial", "sample"):
        assert_refused(call(command, "--prompt", "a", "bear"), "bear", "put that into quotes")
    assert_refused(call("spatial", "ttt"), "ttt: not a flag; give --stage ttt")
    assert_refused(call("spatial", "--steps", "abc"), "--steps: invalid int value: 'abc'; see")


def test_a_prompt_that_does_nothing_is_said(call):
    code, text = call("sample", "--guidance", "0")
    assert code == 0 and "--guidance 0: what is sampled does not depend on the prompt" in text


# Output

def test_an_ending_that_no_writer_knows_is_refused_before_any_work(call, place):
    shutil.rmtree(place / "model")      # so early that the model is not even looked for
    assert_refused(call("sample", "--output", place / "out/clip.mpg"), "--output", "clip.mpg",
                   ".mp4, .gif, .webp, .png")


def test_the_folder_of_the_data_is_not_written_to(call, place):
    """Else the sheet of this run would be an image to learn from in the next one."""
    before = sorted(place.rglob("*"))
    for command in ("spatial", "temporal"):
        assert_refused(call(command, "--output", place), f"--output {place}", "give another")
    for kind in ("spatial", "temporal"):
        folder = place / "stages" / kind
        assert_refused(call("ttt", "--output", folder), f"{folder / 'adapter.safetensors'}: a "
                       f"{kind} LoRA, not a joined one, which would take its place; give another")
        # Of another name, it is not what the run's own LoRA would replace, but the run removes it.
        file = (folder / "adapter.safetensors").rename(folder / "adapter-000002.safetensors")
        link = place / "mine.safetensors"       # by its name no file of a run
        link.symlink_to(file)
        (folder / "log.jsonl").touch()
        for given in (file, link):
            assert_refused(call("ttt", f"--{kind}", given, "--output", folder),
                           f"holds the {kind} LoRA to learn from; give another")
        link.unlink()
        (folder / "log.jsonl").unlink()
        file.rename(folder / "adapter.safetensors")
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize("folder", ["bear.png/below", "/proc/none"])
def test_an_output_that_cannot_be_written(call, place, monkeypatch, folder):
    before = sorted(place.rglob("*"))
    for command in ("spatial", "temporal", "ttt"):
        assert_refused(call(command, "--output", place / folder), str(place / folder),
                       "cannot be written")
    monkeypatch.setattr(sample, "sample_latents", None)         # found out before the work
    output = place / folder / "clip.mp4"
    assert_refused(call("sample", "--output", output), str(output), "cannot be written")
    assert sorted(place.rglob("*")) == before


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 kB, where root may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(options, capture_output=True).returncode:
        pytest.skip("no small file system can be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk(call, small_disk):
    for command in ("spatial", "temporal"):
        assert_refused(call(command, "--output", small_disk / command), str(small_disk),
                       "cannot be written (No space left on device)")
    assert {path.name for path in small_disk.rglob("*")} == {
        "spatial", "temporal", "data.png", "log.jsonl"}


@pytest.mark.parametrize("ending", [".mp4", ".gif", ".webp", ".png"])
def test_a_full_disk_when_sampling(call, small_disk, ending):
    (small_disk / "film").write_bytes(bytes(60_000))
    noisy = gradient(4, 64, 64).random_()       # does not fit into what is left
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample, "finite_frames", lambda *_: noisy)
        answer = call("sample", "--output", small_disk / f"clip{ending}")
    assert_refused(answer, f"clip{ending}", "cannot be written (No space left on device)")
    assert [path.name for path in small_disk.iterdir()] == ["film"]


@pytest.mark.parametrize("full", ["adapter", "checkpoint", "log"])
def test_a_disk_that_fills_up_during_a_run(call, place, monkeypatch, full):
    """What torch, safetensors and Python raise on a full disk, each at its place."""
    if full == "adapter":
        from safetensors import SafetensorError

        def fail(tensors, path, metadata):
            path.write_bytes(b"half")
            raise SafetensorError("Error while serializing: I/O error: No space left on device "
                                  "(os error 28)")
        monkeypatch.setattr("customttt.files.reading.save_file", fail)
    else:
        def refuse(self, *args):
            raise OSError(28, "No space left on device")
        monkeypatch.setattr(*((Path, "write_bytes", refuse) if full == "checkpoint" else
                              (loop, "open", refuse)), raising=False)
    name = {"adapter": "adapter-000001.safetensors", "checkpoint": "checkpoint.pt",
            "log": "log.jsonl"}[full]
    assert_refused(call("spatial"), str(place / "out" / name), "No space left on device")
    adapter = ["adapter-000001.safetensors"] * (full == "checkpoint")
    assert written(place) == [*adapter, "data.png", "log.jsonl"]


def test_a_checkpoint_that_is_none(call, place):
    call("spatial")
    (place / "out/checkpoint.pt").write_bytes(b"half a checkpoint")
    before = written(place)
    for flags in (["--resume"], []):
        assert_refused(call("spatial", *flags), "checkpoint.pt", "another --output")
    assert written(place) == before


# Prompts

def test_a_prompt_past_77_tokens_is_cut_with_a_warning_of_one_line(call, place):
    code, text = call("sample", "--prompt", "a" * 30 + " " + "b" * 50 + " end")
    assert code == 0 and (place / "out/clip.png").exists()
    warnings = [line for line in lines(text) if "token" in line]
    assert len(warnings) == 1
    assert warnings[0] == "warning: the prompt has 83 tokens, 75 fit; left out: \"bbbbb end\""
    assert ".py" not in text


@pytest.mark.parametrize("command", ["spatial", "temporal", "ttt", "sample"])
def test_an_empty_prompt_is_allowed_and_kept(call, place, command):
    code, text = call(command, "--prompt", "")
    assert code == 0, text
    if command != "sample":
        from customttt.files.reading import read_metadata
        metadata = read_metadata(place / "out/adapter.safetensors")
        assert metadata["prompt"] == "" and json.loads(metadata["recipe"])["steps"] == 1


def test_a_vae_that_is_not_there(call, place):
    for command in ("spatial", "sample"):
        assert_refused(call(command, "--vae", place / "nowhere"), "nowhere")


def test_ctrl_c_before_the_training_is_quiet(call, place, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt
    call("spatial")
    before = (place / "out/data.png").read_bytes()
    write_frames(gradient(1, 64, 64).flip(1), place / "other.png")
    monkeypatch.setattr(data, "encode", interrupted)
    code, text = call("spatial", "--data", place / "other.png")
    assert code == 130 and text.endswith("error: stopped\n")
    assert (place / "out/data.png").read_bytes() == before


def test_sigterm_while_a_video_is_written_leaves_nothing(call, place, monkeypatch):
    monkeypatch.setattr(clips, "to_images", lambda *_: signal.raise_signal(signal.SIGTERM))
    code, text = call("sample")
    assert code == 130 and text.endswith("error: stopped\n") and written(place) == []


def test_what_is_left_out_is_said_whatever_the_environment_says(call, place):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")         # as PYTHONWARNINGS=ignore
        code, text = call("spatial", "--data", place / "bear.png", "--steps", "2")
    assert code == 0
    for flag in ("--data", "--steps"):
        assert f"warning: {flag}: given more than once; the last one counts\n" in text
