"""The benchmark tool at small sizes: the work of every row runs on both sides, and the table is
written."""

import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from customttt.files.random_model import random_model
from customttt.files.save import save_model
from customttt.stages import STAGES

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))     # as in a process that measures
import ours
import peer
import train
import work

from tests.benchmarks.__main__ import ABOUT, default_run, write

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("random") / "model"
    save_model(random_model(3), folder, torch.float16)
    return folder


def job(folder, row, precision="fp32", **changes):
    return work.Job(**{"row": row, "side": "ours", "model": folder, "device": torch.device("cpu"),
                       "precision": precision, "small": True, "runs": 1} | changes)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("row", peer.ROWS)
def test_every_row_runs_on_both_sides(folder, row, precision):
    for side in (ours, peer):
        side.ROWS[row](job(folder, row, precision))()


@pytest.mark.parametrize("full", [False, True])
def test_both_placements_run(folder, full):
    ours.placement(job(folder, "placement"), full)()


@pytest.mark.parametrize("row", ["forward", "decode"])
def test_both_sides_compute_the_same(folder, row, monkeypatch):
    """But for the motion modules' GroupNorm (motion.py) and the rounding to pixels."""
    inputs = {name: getattr(job(folder, row), name)() for name in ("clip", "text")}
    for name, value in inputs.items():
        monkeypatch.setattr(work.Job, name, lambda self, value=value: value)
    mine, theirs = (side.ROWS[row](job(folder, row))() for side in (ours, peer))
    if row == "decode":
        mine = mine.float() / 127.5 - 1
        theirs = torch.cat(theirs).clamp(-1, 1).permute(0, 2, 3, 1)
    assert (mine - theirs).norm() / theirs.norm() < (0.02 if row == "decode" else 0.1)


def test_both_sides_train_as_many_parameters(folder):
    [theirs], model = peer.opened(job(folder, "ttt")), ours.opened(job(folder, "ttt"))
    trained = peer.adapted(job(folder, "ttt"), theirs, "student", "spatial", "temporal")
    own = [p for kind, layers in peer.LAYERS.items()
           for p in ours.add_lora(model.unet, kind, layers)]
    assert sum(p.numel() for p in trained) == sum(p.numel() for p in own) > 0


def test_rows_and_sides_match():
    assert set(ABOUT) == set(ours.ROWS) and set(peer.ROWS) == set(ABOUT) - {"placement", "tiny"}


def test_the_default_run_says_the_whole_tiny_recipe():
    """So that an older checkout does the same work as this one; and on the device that is asked
    for."""
    *trainings, sampling = default_run(Namespace(small=False, device="cpu", precision="bf16"))
    for (name, stage), (program, *flags) in zip(STAGES.items(), trainings, strict=True):
        assert (program, *flags[:2]) == ("train.py", "--stage", name)
        args = train.parser_of(stage).parse_args(flags)
        assert (args.device, args.precision) == ("cpu", "bf16")
        for setting, tiny in (stage.recipe.full | stage.recipe.tiny).items():
            given = getattr(args, setting)
            assert (tuple(given) if isinstance(given, list) else given) == tiny.value, setting
    assert sampling[0] == "sample.py" and sampling[sampling.index("--guidance") + 1] == "3.0"
    assert sampling[-4:] == ["--device", "cpu", "--precision", "bf16"]


def test_the_tool_measures_and_writes(tmp_path):
    table = tmp_path / "performance.md"
    table.write_text("before\n")
    flags = ["decode", "--small", "--rounds", "1", "--device", "cpu", "--output", table]
    ended = subprocess.run([sys.executable, "-m", "tests.benchmarks", *flags], cwd=ROOT, text=True,
                           capture_output=True)
    assert ended.returncode == 0, ended.stderr
    text = table.read_text()
    assert text.startswith("before\n") and "<!-- measured: cpu fp32 -->" in text
    [line] = [line for line in text.splitlines() if line.startswith(f"| {ABOUT['decode']} |")]
    figures = [cell.strip().rstrip("%") for cell in line.strip("|").split("|")[1:]]
    assert all(float(figures[k]) > 0 for k in (0, 1, 2, 5, 6, 7, 10, 11))


def test_the_recipe_is_counted():
    flags = ["--device", "cpu", "--precision", "bf16", "--runs", "1", "--small"]
    ended = subprocess.run([sys.executable, "-m", "tests.benchmarks.recipe", *flags], cwd=ROOT,
                           text=True, capture_output=True)
    assert ended.returncode == 0, ended.stderr
    seconds = {line.split()[0]: float(line.split("=")[1].split()[0])
               for line in ended.stdout.splitlines() if " x " in line}
    total = float(ended.stdout.partition("training ")[2].split()[0])
    assert total == pytest.approx(sum(seconds[k] for k in ("spatial", "temporal", "ttt")), abs=0.2)
    errors = [float(line.split(" by ")[1].split()[0]) for line in ended.stdout.splitlines()
              if "differs" in line]
    assert 0 < errors[1] < errors[0] < 0.1      # fp16 has more bits than bf16


def test_rows_of_the_same_machine_stay(tmp_path):
    table = tmp_path / "performance.md"
    table.write_text("above\n")
    decode, forward, load = (f"| {ABOUT[row]} | 1 |" for row in ("decode", "forward", "load"))
    for line in (decode, forward, decode.replace("1", "2")):
        write(table, "cpu fp32", "a machine", line)
    text = table.read_text()
    assert text.startswith("above\n") and decode not in text
    assert text.index(forward) < text.index(decode.replace("1", "2"))
    write(table, "cpu fp32", "another machine", load)
    assert load in table.read_text() and forward not in table.read_text()


@pytest.mark.parametrize("flags, said", [
    (["backward"], "no row of the benchmark"),
    (["forward", "--output", "none.md"], "no such file")])
def test_bad_input_is_a_sentence(flags, said):
    ended = subprocess.run([sys.executable, "-m", "tests.benchmarks", *flags], cwd=ROOT, text=True,
                           capture_output=True)
    assert ended.returncode == 2 and said in ended.stderr and "Traceback" not in ended.stderr
