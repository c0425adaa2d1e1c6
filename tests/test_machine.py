"""Machines as they are: closed streams, ASCII locales, little memory, two runs, leftovers."""

import errno
import fcntl
import io
import multiprocessing
import os
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_bad_input import adapters, assert_refused, call, place, written    # noqa: F401

from customttt.errors import UserError, clear_leftovers, run_command, writing
from customttt.errors.command import _Steady, _steady_streams
from customttt.errors.disk import UMASK, UNFINISHED
from customttt.files.random_model import random_model
from customttt.media.find import caption_beside
from customttt.model.config import ANIMATEDIFF_V3
from customttt.recipes import SPATIAL, TEMPORAL
from customttt.run import loop, options
from customttt.run.lock import locked
from customttt.run.memory import estimate, total
from customttt.run.options import device_named, say_base
from customttt.sampling import sample_video

ROOT = Path(__file__).resolve().parent.parent


# Streams and locales

COMMAND = """
import sys
from customttt.errors import UserError, run_command
def main():
    for k in range(20000):
        print("a line of the log", k, "\\u96ea")
    open({path!r}, "w").write("done")
    raise UserError("at the end: \\u96ea") if {fails} else SystemExit(0)
run_command(main)
"""


@pytest.mark.parametrize("fails, code", [(True, 2), (False, 0)])
@pytest.mark.parametrize("shell", ["{} | head -1", "{} >&-", "{} 2>&-", "{} >&- 2>&-",
                                   "{} <&- >&- 2>&-",
                                   "LC_ALL=C PYTHONCOERCECLOCALE=0 PYTHONUTF8=0 {} > {out}",
                                   "PYTHONIOENCODING=ascii:strict {} > {out}"])
def test_what_cannot_be_shown_loses_no_work(tmp_path, shell, fails, code):
    (tmp_path / "a.py").write_text(COMMAND.format(path=str(tmp_path / "done"), fails=fails))
    line = shell.format(f"{sys.executable} {tmp_path}/a.py", out=tmp_path / "out")
    ended = subprocess.run(["bash", "-c", f"set -o pipefail; {line}"], cwd=ROOT, text=True,
                           capture_output=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert (tmp_path / "done").read_text() == "done", ended.stderr
    assert ended.returncode == code and "Traceback" not in ended.stderr
    if fails and "2>&-" not in shell:
        assert "error: at the end: " in ended.stderr
    if "{out}" in shell:
        assert "\\u96ea" in (tmp_path / "out").read_text(errors="replace")


def test_streams_are_as_before_after_a_command(capsys):
    before = sys.stdout, sys.stderr
    run_command(lambda: print("said"))
    assert (sys.stdout, sys.stderr) == before and capsys.readouterr().out == "said\n"


def test_a_closed_terminal_ends_no_run(tmp_path):
    (tmp_path / "a.py").write_text(
        "import os, signal\nfrom customttt.errors import run_command\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
        "run_command(lambda: os.kill(os.getpid(), signal.SIGHUP) or print('still here'))")
    ended = subprocess.run([sys.executable, tmp_path / "a.py"], text=True, capture_output=True,
                           env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert (ended.returncode, ended.stdout) == (0, "still here\n")


def test_a_slow_reader_loses_what_it_was_sent_and_no_more(monkeypatch):
    """A terminal that does not block, while it is full."""
    class Slow(io.StringIO):
        full = True

        def write(self, text):
            if self.full:
                raise BlockingIOError(errno.EAGAIN, "would block")
            return super().write(text)

        def flush(self):
            self.write("")
    monkeypatch.setattr(_Steady, "_to_nobody", None)
    monkeypatch.setattr(sys, "stderr", slow := Slow())
    with _steady_streams():
        print("lost", file=sys.stderr, flush=True)
        slow.full = False
        print("error: seen", file=sys.stderr)
        assert slow.getvalue() == "error: seen\n"


def test_links_are_followed_and_pipes_are_not_replaced(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link.txt").symlink_to(tmp_path / "real" / "a.txt")
    for text in ("new", "again"):
        with writing(tmp_path / "link.txt") as temporary:
            temporary.write_text(text)
        assert (tmp_path / "link.txt").is_symlink()
        assert (tmp_path / "real" / "a.txt").read_text() == text
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe: is a pipe or a device; name a file"), \
            writing(tmp_path / "pipe"):
        pass
    assert (tmp_path / "pipe").is_fifo()


def test_memory_that_runs_out_is_a_sentence(capsys):
    def too_much():
        torch.empty(2 ** 55)

    def full():
        raise MemoryError
    for main in (too_much, full):
        with pytest.raises(SystemExit) as end:
            run_command(main)
        assert end.value.code == 2
        assert "error: the memory is full; try a smaller --size" in capsys.readouterr().err


def test_a_drive_without_permissions_is_written_to(tmp_path, monkeypatch):
    def refused(*given):
        raise PermissionError(1, "Operation not permitted")
    monkeypatch.setattr(os, "chmod", refused)
    with writing(tmp_path / "a.txt") as temporary:
        temporary.write_text("a")
    assert (tmp_path / "a.txt").read_text() == "a"


def test_windows_is_asked_to_flush_a_file_that_may_be_written(tmp_path, monkeypatch):
    """os.fsync there fails on a file opened for reading alone."""
    modes = []
    monkeypatch.setattr(os, "fsync", lambda number: modes.append(
        fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE))
    with writing(tmp_path / "a.txt") as temporary:
        temporary.write_text("a")
    assert modes == [os.O_RDWR]


BEFORE_TORCH = """
import os, sys
class Importing:
    def find_spec(name, *rest):
        if name == "torch":
            sys.exit(os.environ.get("THP_MEM_ALLOC_ENABLE") != "1")
sys.meta_path.insert(0, Importing)
import {}
"""


@pytest.mark.parametrize("script", ["train", "sample"])
def test_huge_pages_are_asked_for_before_torch_is_imported(script):
    """It reads the variable then and never again."""
    unset = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    assert subprocess.run([sys.executable, "-c", BEFORE_TORCH.format(script)], cwd=ROOT,
                          env=unset).returncode == 0


# Numbers

@pytest.mark.parametrize("command, flags", [
    ("sample", ["--size", "1000000"]), ("sample", ["--size", "65536"]),
    ("spatial", ["--size", "1000000"]), ("spatial", ["--batch-size", "1000000"])])
def test_what_needs_more_memory_than_there_is_is_refused_with_the_figure(call, place, command,
                                                                         flags):
    code, text = call(command, *flags)
    assert_refused((code, text), *flags, "GB of memory are needed", "cpu has")
    assert written(place) == []


def test_the_estimate_grows_with_what_is_asked_for():
    model = random_model()
    settings = SPATIAL.values(model.unet) | {"batch_size": 16}
    one = estimate(model, settings | {"size": 512}, training=True, checkpointing=False)
    two = estimate(model, settings | {"size": 1024}, training=True, checkpointing=False)
    less = estimate(model, settings | {"size": 1024}, training=True, checkpointing=True)
    assert 3 < two / one < 5 and less < two
    images, narrow = random_model(motion_version=None), settings | {"size": 1024, "batch_size": 1}
    shown, all_of_them = (estimate(images, narrow | {"frames": f}, training=True,
                                   checkpointing=True) for f in (64, 8))
    assert shown == all_of_them         # a sheet of images samples no others
    assert 2 ** 28 < total(torch.device("cpu")) < 2 ** 44


def test_the_estimate_counts_the_pixels_that_are_decoded():
    model, settings = random_model(), {"size": 1024, "frames": 1}
    widest = 1024 ** 2 * model.vae.config.channels[0] * 4       # bytes of one feature map, fp32
    assert estimate(model, settings, training=False, checkpointing=False) > 5 * widest


@pytest.mark.parametrize("limit, there", [("1000000000\n", 10 ** 9), ("max\n", None)])
def test_the_memory_of_a_container_is_what_it_may_use(monkeypatch, limit, there):
    read = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path: limit if path.name == "memory.max" else
                        read(path))
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert total(torch.device("cpu")) <= (there or physical)
    assert there is None or total(torch.device("cpu")) == there


def test_what_was_measured_at_full_size_is_not_refused():
    """docs/performance.md: a step of the temporal stage takes 7.39 GB with
    --gradient-checkpointing, without it 10.88 GB, in fp16 5.81; sampling in fp16 3.04."""
    with torch.device("meta"):
        model = random_model(full_size=True)
    settings = TEMPORAL.values(model.unet)
    assert 6e9 < estimate(model, settings, training=True, checkpointing=True) < 7.39e9
    assert 9e9 < estimate(model, settings, training=True, checkpointing=False) < 10.88e9
    for part in (model.unet, model.vae, model.text_encoder):
        part.half()
    model = replace(model, dtype=torch.float16)
    assert 4e9 < estimate(model, settings, training=True, checkpointing=False) < 5.81e9
    gpu, large = replace(model, device=torch.device("cuda")), settings | {"size": 512}
    assert estimate(gpu, large, training=True, checkpointing=True) < 6.9e9     # a trace's shapes
    assert 2.5e9 < estimate(model, settings, training=False, checkpointing=False) < 3.04e9


@pytest.mark.parametrize("device", ["meta", "abacus", "cuda:99"])
def test_a_device_that_is_none(call, device):
    assert_refused(call("sample", "--device", device), f"--device {device}")


@pytest.mark.parametrize("fps, ending", [("60", ".gif"), ("1e9", ".mp4"), ("1e-9", ".webp")])
def test_fps_that_the_format_cannot_hold_is_refused_before_the_work(call, place, monkeypatch, fps,
                                                                    ending):
    monkeypatch.setattr("sample.sample_latents", None)
    assert_refused(call("sample", "--fps", fps, "--output", place / f"out/a{ending}"), "--fps",
                   f"a {ending} file holds")
    assert written(place) == []


def test_an_output_that_is_a_folder_is_refused_before_the_work(call, place, monkeypatch):
    monkeypatch.setattr("sample.sample_latents", None)
    (place / "out/clip.mp4").mkdir(parents=True)
    assert_refused(call("sample", "--output", place / "out/clip.mp4"), "clip.mp4: is a folder")


def test_prompts_that_are_no_text(call):
    assert_refused(call("sample", "--prompt", "a \udcff bear"), "--prompt", "UTF-8")
    assert_refused(call("sample", "--negative-prompt", "x" * 20_000), "--negative-prompt",
                   "20000 characters")


def test_a_caption_of_12_megabytes(tmp_path):
    (tmp_path / "a.txt").write_text("bear" * 3_000_000)
    with pytest.raises(UserError, match=r"a\.txt: too long for a caption \(12000000 bytes\)"):
        caption_beside(tmp_path / "a.png")


def test_a_caption_of_the_root_folder():
    assert caption_beside(Path("/")) is None


def test_a_video_that_is_not_finite_is_no_black_clip():
    model = random_model()
    model.unet.conv_out.weight.data.fill_(float("nan"))
    with pytest.raises(UserError, match="--precision: the video is not finite"):
        sample_video(model, "a bear", steps=1, frames=2, size=64)


def test_what_a_vae_decodes_that_is_not_finite_is_no_black_clip(call, place, monkeypatch):
    model = random_model()
    model.vae.decoder.conv_out.weight.data.fill_(float("inf"))
    with pytest.raises(UserError, match="--precision: what the VAE decodes is not finite"):
        sample_video(model, "a bear", steps=1, frames=2, size=64)
    monkeypatch.setattr("customttt.model.vae.VAE.decode",
                        lambda self, z: torch.full((1, 3, 64, 64), float("nan")))
    assert_refused(call("sample"), "not finite", "--precision")
    assert not (place / "out/clip.png").exists()


def test_a_video_that_is_not_finite_is_not_written(call, place, monkeypatch):
    monkeypatch.setattr("sample.sample_latents", lambda *_, **__: [torch.full((1, 4, 2, 8, 8),
                                                                              float("nan"))])
    assert_refused(call("sample"), "not finite", "--precision")
    assert not (place / "out/clip.png").exists()


# Runs

def hold(folder: Path, ready, end) -> None:
    with locked(folder):
        ready.set()
        end.wait()


def test_a_second_run_in_a_folder_is_refused_until_the_first_is_dead(call, place):
    context = multiprocessing.get_context("fork")
    ready, end = context.Event(), context.Event()
    first = context.Process(target=hold, args=(place / "out", ready, end))
    first.start()
    assert ready.wait(30)
    assert_refused(call("spatial"), f"{place / 'out'}: another run is at work there", "--output")
    first.kill()
    first.join()
    assert (place / "out" / ".lock").exists()       # and holds nobody
    (place / "out" / ".writing-half.pt").write_bytes(b"half")
    code, text = call("spatial")
    assert code == 0, text
    assert not [name for name in written(place) if name.startswith(".")]


def test_a_lock_leaves_nothing(tmp_path):
    with locked(tmp_path / "new" / "run"):
        assert (tmp_path / "new" / "run" / ".lock").exists()
        with pytest.raises(UserError, match="another run"), locked(tmp_path / "new" / "run"):
            pass
    assert not (tmp_path / "new" / "run").exists()
    (tmp_path / "run").mkdir()
    with pytest.raises(KeyError), locked(tmp_path / "run"):
        (tmp_path / "run" / "a").touch()
        raise KeyError
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["a"]


def test_a_working_folder_that_was_removed_takes_no_run(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(UserError, match="cannot be written"), locked(Path(".")):
        pass


def test_a_file_that_is_replaced_keeps_its_mode(tmp_path):
    (tmp_path / "a").touch(mode=0o600)
    for name, mode in (("a", 0o600), ("b", 0o666 & ~UMASK)):
        with writing(tmp_path / name):
            pass
        assert (tmp_path / name).stat().st_mode & 0o777 == mode


def test_a_folder_that_another_run_removes_as_it_ends_is_made_again(tmp_path, monkeypatch):
    opened = []

    def removed_once(path, mode):
        if not opened:
            path.parent.rmdir()
        opened.append(path)
        return open(path, mode)
    monkeypatch.setattr("customttt.run.lock.open", removed_once, raising=False)
    with locked(tmp_path / "run"):
        assert (tmp_path / "run" / ".lock").exists() and len(opened) == 2


def test_a_new_run_removes_its_own_kind_of_files_alone(call, place):
    for name in ("sheet-1.xlsx", "sheet-2024.notes.txt", "adapter-1.safetensors", "sheet-000900.gif",
                 "adapter-000900.safetensors"):
        (place / "out").mkdir(exist_ok=True)
        (place / "out" / name).touch()
    (place / "out" / "log.jsonl").write_text('{"step": 1}\n')
    assert call("spatial")[0] == 0
    left = {file.name for file in (place / "out").iterdir()}
    assert {"sheet-1.xlsx", "sheet-2024.notes.txt", "adapter-1.safetensors"} <= left
    assert not {"sheet-000900.gif", "adapter-000900.safetensors"} & left


@pytest.mark.parametrize("name", ["sheet-20240101.png", "adapter-123456.safetensors",
                                  "data.png", "log.jsonl"])
def test_a_new_run_leaves_what_is_of_no_run(call, place, name):
    (place / "out").mkdir()
    (place / "out" / name).write_text("mine")
    assert_refused(call("spatial"), str(place / "out" / name), "give another")
    assert written(place) == [name] and (place / "out" / name).read_text() == "mine"


@pytest.mark.parametrize("left", [{"data.png": "", "log.jsonl": ""}, {"log.jsonl": '{"st'}])
def test_a_run_that_was_killed_at_its_start_begins_again(call, place, left):
    (place / "out").mkdir()
    for name, text in left.items():
        (place / "out" / name).write_text(text)
    assert call("spatial")[0] == 0


def test_the_log_is_there_before_the_sheet_of_the_data(call, place, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt
    monkeypatch.setattr("customttt.run.train.write_frames", killed)
    assert call("spatial")[0] == 130 and written(place) == ["log.jsonl"]


def test_leftovers_are_cleared(tmp_path):
    for name in (".writing-abc.pt", ".writing-", "kept.pt", ".other"):
        (tmp_path / name).touch()
    clear_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".other", "kept.pt"]


@pytest.mark.parametrize("spoil", [b"", b"PK\3\4", b"x" * 99])
def test_a_checkpoint_that_is_empty_or_something_else(call, place, spoil):
    call("spatial")
    (place / "out/checkpoint.pt").write_bytes(spoil)
    for flags in ([], ["--resume"]):
        assert_refused(call("spatial", *flags), "checkpoint.pt", "another --output")


@pytest.mark.parametrize("key, value", [
    ("step", "1"), ("step", -1), ("cpu", None), ("draws", {}), ("optimizer", []), ("run", []),
    ("skipped", float("nan")), ("parameters", {})])
def test_a_checkpoint_whose_entries_are_wrong(call, place, key, value):
    call("spatial")
    path = place / "out/checkpoint.pt"
    content = torch.load(path, weights_only=True)
    torch.save(content | {key: value}, path)
    assert_refused(call("spatial", "--resume", "--steps", "2"), "out")


def test_parameters_of_a_checkpoint_are_finite_and_of_their_shape(call, place):
    call("spatial")
    path = place / "out/checkpoint.pt"
    content = torch.load(path, weights_only=True)
    name = next(iter(content["parameters"]))
    for change in (lambda p: p * float("nan"), lambda p: p[:1]):
        torch.save(content | {"parameters": content["parameters"] | {
            name: change(content["parameters"][name])}}, path)
        assert_refused(call("spatial", "--resume", "--steps", "2"), "checkpoint.pt", "as it was")


@pytest.mark.parametrize("stage", ["spatial", "dreamvideo-word"])       # Lion, AdamW
def test_the_optimizer_of_a_checkpoint_is_finite_and_has_this_runs_rates(call, place, stage):
    call(stage)
    path = place / "out/checkpoint.pt"
    content = torch.load(path, weights_only=True)
    moments = content["optimizer"]["state"][0]
    for key, value in moments.items():
        below_0 = [-value - 1] * (key in ("step", "exp_avg_sq"))
        for spoilt in (value * float("nan"), torch.ones(3, 3, 3), *below_0):
            torch.save(content | {"optimizer": content["optimizer"] | {
                "state": content["optimizer"]["state"] | {0: moments | {key: spoilt}}}}, path)
            assert_refused(call(stage, "--resume", "--steps", "2"), "checkpoint.pt", "as it was")
    torch.save(content | {"optimizer": content["optimizer"] | {"state": {}}}, path)
    assert_refused(call(stage, "--resume", "--steps", "2"), "checkpoint.pt", "as it was")
    [group] = content["optimizer"]["param_groups"]
    results = []
    for lr in (group["lr"], 5.0):       # what the file says counts for nothing
        torch.save(content | {"optimizer": content["optimizer"] | {
            "param_groups": [group | {"lr": lr}]}}, path)
        assert call(stage, "--resume", "--steps", "2")[0] == 0
        results.append((place / "out/adapter.safetensors").read_bytes())
    assert results[0] == results[1]


def test_a_file_system_that_cannot_lock_is_said_and_used(tmp_path, monkeypatch):
    def cannot(file, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
    monkeypatch.setattr(fcntl, "flock", cannot)
    with pytest.warns(UserWarning, match="cannot be locked .* start no other run with this"):
        with locked(tmp_path / "run"):
            (tmp_path / "run" / "a.txt").touch()
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["a.txt"]


def test_a_sheet_that_a_kill_left_undrawn_is_drawn(call, place):
    """Killed after the last checkpoint and before the sheet of the same step."""
    call("spatial", "--sheet-every", "1")
    sheet = place / "out" / "sheet-000001.png"
    whole = sheet.read_bytes()
    sheet.unlink()
    code, text = call("spatial", "--sheet-every", "1", "--resume")
    assert code == 0 and sheet.read_bytes() == whole, text


def test_unfinished_files_have_one_name():
    assert UNFINISHED == ".writing-"


def test_a_full_device_is_not_a_missing_one(monkeypatch):
    def full(*_, **__):
        raise RuntimeError("CUDA error: out of memory")
    monkeypatch.setattr(torch, "zeros", full)
    with pytest.raises(UserError, match="--device cpu: the GPU's memory is full; wait, or name an"):
        device_named("cpu")


def test_a_full_gpu_is_a_sentence(capsys):
    def full():
        raise torch.OutOfMemoryError("CUDA out of memory.")
    with pytest.raises(SystemExit) as end:
        run_command(full)
    assert end.value.code == 2 and "error: the GPU's memory is full; try" in capsys.readouterr().err


def test_a_file_is_as_readable_as_any_other(tmp_path):
    with writing(tmp_path / "a") as temporary:
        temporary.touch()
    (tmp_path / "b").touch()
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_a_lora_of_another_base_is_said(tmp_path, capsys):
    def model(motion):
        return SimpleNamespace(name="tiny", unet=SimpleNamespace(
            config=SimpleNamespace(motion=motion)))
    say_base(tmp_path / "a", {"base_model": "other"}, model(None), {})
    say_base(tmp_path / "b", {"base_model": "tiny", "motion_version": "3"}, model(ANIMATEDIFF_V3),
             {})
    say_base(tmp_path / "c", {"motion_version": "3"}, model(None), {})
    say_base(tmp_path / "d", {"motion_version": "2"}, model(ANIMATEDIFF_V3), {})
    assert capsys.readouterr().out == (
        f"{tmp_path / 'a'}: was trained on other, is used on tiny\n"
        f"{tmp_path / 'd'}: was trained with a motion module of version 2, is used with version 3; "
        f"give the same with --motion-module or --motion-version\n")


@pytest.mark.parametrize("metadata, said", [
    ({"recipe": '{"size": 256, "fps": 12.0}'}, ["--size 256, is used with 64",
                                                "--fps 12, is used with 8"]),
    ({"recipe": '{"size": 64}', "fps": "7.5"}, ["--fps 7.5, is used with 8"]),     # joined
    ({"recipe": '{"size": 64, "fps": 8}'}, []),
    ({"size": "large"}, []), ({"recipe": "of my own"}, []), ({"recipe": "[1]"}, []),
    ({"recipe": '{"size": "large"}'}, []), ({"recipe": '{"size": NaN}'}, []), ({"recipe": f'{{"size": {10 ** 400}}}'}, []),
    ({"recipe": "[" * 100_000}, [])])
def test_a_lora_of_another_size_or_frame_rate_is_said(metadata, said, capsys):
    model = SimpleNamespace(name="tiny", unet=SimpleNamespace(config=SimpleNamespace(motion=None)))
    say_base(Path("a"), metadata, model, {"size": 64, "fps": 8.0})
    assert capsys.readouterr().out == "".join(f"a: was trained with {each}\n" for each in said)


def test_a_fault_of_the_code_is_no_sentence_on_memory(tmp_path, capsys):
    def fault():
        raise RuntimeError("the sizes of tensors must match")
    with pytest.raises(RuntimeError, match="sizes of tensors"):
        run_command(fault)
    with pytest.raises(SystemExit) as end:
        run_command(lambda: open(tmp_path / "none"))
    assert end.value.code == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'none'}: No such file or directory\n"


@pytest.mark.parametrize("device, given, used", [
    ("cpu", None, "fp32"), ("cpu", "bf16", "bf16"), ("cuda", None, "fp16"),
    ("cuda", "fp32", "fp32")])
def test_the_precision_of_a_command(monkeypatch, device, given, used):
    """The supplement's on a GPU, unless it is given; the weights are in it. fp32 is not TF32."""
    loaded = []
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(options, "device_named", torch.device)
    monkeypatch.setattr(options, "load_model",
                        lambda *of, **_: loaded.append(of) or random_model())
    args = Namespace(device=device, precision=given, seed=0, model="m", motion_module=None,
                     motion_version=None, vae=None)
    assert options.open_model(args)[1] == used
    assert loaded == [("m", None, torch.device(device), loop.DTYPES[used])]
    assert torch.backends.cudnn.allow_tf32 == (used != "fp32")
