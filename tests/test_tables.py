"""The tables as commands: what makes a LoRA or a clip names it, and nothing is made twice."""

import json
import math
import shutil
import sys
from collections import defaultdict
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from customttt.errors import UserError, run_command
from customttt.paper import cache, metrics, ranks, rows, tables
from customttt.paper.intervals import interval, student_t
from customttt.paper.systems import COMPARED
from customttt.run import train as run_train
from customttt.stages import STAGES
from test_commands import finished, program

pytest.importorskip("cv2")
QUICK = ("--frames", "2", "--size", "32", "--sampling-steps", "1", "--steps", "1",
         "--prompts", "1")


@pytest.fixture
def trained(monkeypatch):
    """A list of the stages that are trained."""
    calls = []

    def train(stage, args):
        calls.append(stage.name)
        return run_train.train(stage, args)
    monkeypatch.setattr(cache, "train", train)
    return calls


@pytest.fixture
def protocol(tmp_path, model_folder):
    shutil.copytree(model_folder / "examples", tmp_path / "data")
    (tmp_path / "data" / "motion.txt").unlink()     # it says more than the protocol
    file = tmp_path / "data" / "protocol.json"
    file.write_text(json.dumps({"groups": [{
        "images": "subject", "subject": "a teddy bear", "video": "motion.mp4",
        "motion": "a red ball is circling", "prompts": [
            "a teddy bear is circling", "a teddy bear is circling in the sea"]}]}))
    return file


@pytest.fixture
def call(monkeypatch, tmp_path, protocol, model_folder, capsys):
    def call(table, *flags, output="out"):
        monkeypatch.setattr(sys, "argv", [
            "tables", str(table), "--protocol", str(protocol), "--model", str(model_folder),
            "--clip", str(model_folder / "clip"), "--output", str(tmp_path / output), *QUICK,
            *flags])
        tables.main()
        return capsys.readouterr().out
    return call


class Trained(Exception):
    @classmethod
    def now(cls, stage, args):
        raise cls


def test_table_4(call, trained, tmp_path, monkeypatch):
    """The subject and the motion are learned once, test-time training four times; a second run from
    an empty cache gives the same bytes."""
    printed, file = call(4), tmp_path / "out/table-4-seed-0.json"
    assert sorted(trained) == ["spatial", "temporal", "ttt", "ttt", "ttt", "ttt"]
    assert "| 5 reference steps |" in printed and "(0.295) |" in printed    # the paper's
    assert "| *5 reference steps* minus *without test-time training* | " in printed
    first = file.read_text()
    assert len(json.loads(first)["clips"]) == 5
    assert call(4) == printed and len(trained) == 6                         # all kept
    shutil.rmtree(tmp_path / "out/clips")                   # clips are made anew, LoRAs are not
    assert call(4) == printed and len(trained) == 6
    assert file.read_text() == first

    assert call(4, output="other") == printed and len(trained) == 12
    assert (tmp_path / "other/table-4-seed-0.json").read_text() == first
    seconds = json.loads(file.with_suffix(".run.json").read_text())["seconds"]
    assert seconds.keys() == {"loras", "clips", "scores"} and min(seconds.values()) > 0

    def none_is_kept(*flags):
        with monkeypatch.context() as patch, pytest.raises(Trained):
            patch.setattr(cache, "train", Trained.now)
            call(4, *flags)
    none_is_kept("--seed", "1")
    none_is_kept("--steps", "2")
    next((tmp_path / "data/subject").iterdir()).unlink()    # another subject
    none_is_kept()


def test_another_model_at_the_same_place_is_another_model(tmp_path, model_folder, monkeypatch):
    """What is made of a model that was trained again is made again."""
    model = tmp_path / "model"
    shutil.copytree(model_folder, model)
    parser = run_train.argparse.ArgumentParser()
    tables.add_flags(parser)
    args = parser.parse_args(["--model", str(model), "--output", str(tmp_path)])
    before = cache.open_cache(args)
    assert before == cache.open_cache(args)
    made = before.made("thing", {"a": 1}, lambda folder: None)
    assert before.made("thing", {"a": 1}, None) == made != before.made("thing", {}, lambda _: None)
    weights = model / "motion_adapter" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert cache.open_cache(args).made("thing", {"a": 1}, lambda folder: None) != made
    changed = before.told | {"seed": 2}
    assert cache.Cache(tmp_path, (), changed).made("thing", {"a": 1}, lambda folder: None) != made


def test_the_lora_is_train_pys(tmp_path, model_folder):
    """Byte for byte, and where a run was cut too."""
    examples = model_folder / "examples"
    flags = ("--frames", "2", "--size", "32", "--steps", "2", "--checkpoint-every", "1")
    data = {"spatial": examples / "subject", "temporal": examples / "motion.mp4"}
    here = cache.Cache(tmp_path / "cache", ("--model", str(model_folder), "--device", "cpu",
                                            "--seed", "3"), {})
    files = {}
    for stage, path in data.items():
        files[stage] = here.lora(STAGES[stage], ("--prompt", "a ball is up", *flags),
                                 {"--data": path})
    files["ttt"] = here.lora(STAGES["ttt"], flags, {
        f"--{kind}": files[kind] for kind in ("spatial", "temporal")})
    for stage, file in files.items():
        told = (["--data", data[stage], "--prompt", "a ball is up"] if stage in data else
                ["--spatial", tmp_path / "spatial", "--temporal", tmp_path / "temporal"])
        finished(program("train.py", "--stage", stage, *told, *flags, "--sheet-every", "0",
                         "--model", model_folder, "--seed", "3", "--output", tmp_path / stage,
                         folder=tmp_path))
        assert (tmp_path / stage / cache.ADAPTER).read_bytes() == file.read_bytes()

    whole = files["spatial"].read_bytes()       # as a kill after the first step leaves it
    folder = files["spatial"].parent
    for name in (cache.MADE, cache.ADAPTER):
        (folder / name).unlink()
    finished(program("train.py", "--stage", "spatial", "--data", data["spatial"], "--prompt",
                     "a ball is up", *flags, "--steps", "1", "--sheet-every", "0", "--model",
                     model_folder, "--seed", "3", "--output", folder, folder=tmp_path))
    (folder / cache.ADAPTER).unlink()
    assert here.lora(STAGES["spatial"], ("--prompt", "a ball is up", *flags),
                     {"--data": data["spatial"]}).read_bytes() == whole
    assert len((folder / "log.jsonl").read_text().splitlines()) == 2


def test_rows_are_the_papers():
    assert [row.name for row in tables.TABLES[1]] == [
        "the base model", "Full LoRA", "DiffDirector", "MotionDirector", "DreamVideo", "CustomTTT"]
    assert len(tables.TABLES[3]) == 4 + 1
    for table, some in tables.TABLES.items():
        names = [row.name for row in some]
        assert tables.PAPER[f"table-{table}"].keys() <= set(names)
        compared = {name for pair in tables.DIFFERENCES[table] for name in pair}
        assert compared <= tables.PAPER[f"table-{table}"].keys() | {"the base model"}
        for row in some:
            assert set(row.subject + row.motion) <= STAGES.keys() | COMPARED.keys()
    assert tables.PAPER["table-3"]["W_s (0, 1), W_t (2, 5)"] == (.288, .645, .977, .710)
    assert tables.PAPER["table-3"]["W_s (2, 6), W_t (1, 7)"] == (.298, .715, .985, .638)
    assert {a for a, b in tables.DIFFERENCES[1] if b == "the base model"} == {
        row.name for row in tables.TABLES[1][1:]}       # is each system above it?


def test_dreamvideo_gets_its_word_and_its_clip(tmp_path, protocol, model_folder):
    """Each stage of a system is given the ones before it."""
    calls = []

    class Noted(cache.Cache):
        def lora(self, stage, flags, of):
            calls.append((stage.name, of))
            return tmp_path / stage.name / cache.ADAPTER
    [group] = tables.read_protocol(protocol)
    args = run_train.argparse.Namespace(clip=model_folder / "clip")
    bench = rows.Bench(args, Noted(tmp_path, (), {}), ())
    dreamvideo = next(row for row in tables.TABLES[1] if row.name == "DreamVideo")
    files = bench.loras(rows.Unit(dreamvideo, group, 0))
    assert list(files) == [stage for stage, _ in calls] == [
        "dreamvideo-word", "dreamvideo-identity", "dreamvideo-motion"]
    assert calls[1][1]["--word"] == files["dreamvideo-word"]
    assert calls[2][1] == {"--data": group.video, "--clip": args.clip}


def test_ttt_flags_may_name_the_prompt(tmp_path, protocol):
    class Noted(cache.Cache):
        def lora(self, stage, flags, of):
            self.told[stage.name] = flags
            return tmp_path / stage.name
    [group] = tables.read_protocol(protocol)
    bench = rows.Bench(None, Noted(tmp_path, (), {}), ())
    bench.loras(rows.Unit(rows.Row("", ttt=("--motion-prompt", "an object is {doing}",
                                            "--appearance-prompt", "{prompt}")), group, 0))
    assert bench.cache.told["ttt"] == (
        "--prompt", "a teddy bear is circling", "--motion-prompt", "an object is circling",
        "--appearance-prompt", "a teddy bear is circling")


# ------------------------------------------------------------------ numbers

def result(name, values):
    """Of two groups of two clips: the scores of each row by group and clip."""
    return {"name": name, "metrics": list(tables.METRICS), "rows": list(values), "differences": [
        ["5 reference steps", tables.AS_THEY_ARE]], "clips": [
        [row, group, prompt, [each[g][k]] * 4] for row, each in values.items()
        for g, group in enumerate("ab") for k, prompt in enumerate("xy")]}


def test_groups_count_and_not_clips(monkeypatch):
    """Means of 0.2 and 0.4: 0.3, with Student's interval of two; paired, there is no spread."""
    values = [[0.1, 0.3], [0.3, 0.5]]
    some = result("table-4", {"5 reference steps": [[x + 0.01 for x in xs] for xs in values],
                              tables.AS_THEY_ARE: values})
    assert tables.means(some, tables.AS_THEY_ARE, "CLIP-T") == pytest.approx([0.2, 0.4])
    printed = tables.text(some)
    half = 12.706 * 0.02 ** 0.5 / 2 ** 0.5
    assert f"| {tables.AS_THEY_ARE} | 0.300 ± {half:.3f} (0.295) | 0.300 ± " in printed
    assert f"minus *{tables.AS_THEY_ARE}* | +0.010 ± 0.000 (+0.013) | +0.010 " in printed
    assert tables.verdicts(some)[0].endswith("+0.010 ± 0.000 here: the paper's sign, but "
                                             "its size is outside the interval.")
    near = result("table-4", {"5 reference steps": [[0.1125, 0.3125], [0.3135, 0.5135]],
                              tables.AS_THEY_ARE: values})
    assert tables.verdicts(near)[0].endswith("+0.013 ± 0.006 here: as the paper.")
    other = result("table-4", {"5 reference steps": values, tables.AS_THEY_ARE: [
        [x + 0.01 for x in xs] for xs in values]})
    assert "against the paper" in tables.verdicts(other)[0]
    noisy = result("table-4", {"5 reference steps": [[0.1, 0.3], [0.4, 0.6]],
                               tables.AS_THEY_ARE: values})
    # Differences of 0 and 0.1, deviation 0.0707; t of so many is 1.964: (2 t 0.0707 / 0.012)^2
    # is 537, and is said with one digit, no smaller.
    assert "takes at most about 600 groups" in tables.verdicts(noisy)[0]
    staged = {"joined, ttt": values, "joined, no ttt": [[x + 0.01 for x in xs] for xs in values]}
    staged = result("stages", staged) | {"differences": [["joined, ttt", "joined, no ttt"]]}
    assert tables.verdicts(staged)[0].endswith(
        "+0.013 in the paper, -0.010 ± 0.000 here: **against the paper**.")
    none = result("table-4", {"5 reference steps": [[0.1001, 0.3001], [0.2999, 0.4999]],
                              tables.AS_THEY_ARE: values})
    assert "**not found**" in tables.verdicts(none)[0]      # 0 +- 0.0013, and 0.013 in the paper
    edge = result("table-4", {"5 reference steps": [[0.101, 0.301], [0.2990, 0.4990]],
                              tables.AS_THEY_ARE: values})
    assert "undecided" in tables.verdicts(edge)[0]      # 0 +- 0.0127, and 0.013 is a rounded figure
    monkeypatch.setitem(tables.PAPER["table-4"], tables.AS_THEY_ARE, (.307, .696, .979, .719))
    assert "is no more than its rounding" in tables.verdicts(edge)[0]       # 0.308 - 0.307


def test_clips_without_tracks_are_counted():
    some = result("table-4", {"5 reference steps": [[0.1, 0.0], [0.0, 0.5]],
                              tables.AS_THEY_ARE: [[0.1, 0.2], [0.3, 0.4]]})
    assert tables.unfollowed_text(some).endswith("fidelity is 0: *5 reference steps* 2.")


@pytest.mark.parametrize("freedom", [*range(1, 31), 40, 99])
def test_students_t_has_a_twentieth_outside(freedom):
    """Its density, integrated from -t to t."""
    t = torch.linspace(0, student_t(freedom), 100_001, dtype=torch.float64)
    scale = (math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)
             - math.log(freedom * math.pi) / 2)
    density = math.exp(scale) * (1 + t ** 2 / freedom) ** (-(freedom + 1) / 2)
    assert 2 * torch.trapezoid(density, t).item() == pytest.approx(0.95, abs=3e-4)


def test_student():
    assert interval([1.0, 2.0, 3.0, 4.0])[1] == pytest.approx(3.182 * (5 / 3) ** 0.5 / 2)
    assert interval([0.0, 1.0] * 50)[1] == pytest.approx(1.984 * 0.50252 / 10, rel=1e-3)


# ------------------------------------------------------------------ processes

def test_processes_share_the_work(tmp_path, monkeypatch, capsys):
    """The first one makes what the others have not, and it alone has the results. Its bar is of its
    own share, so that the time left is."""
    made = []

    def job(k):
        def make(folder):
            made.append(k)
        return cache.Cache(tmp_path, (), {}).made("job", {"k": k}, make)
    jobs = [partial(job, k) for k in range(5)]
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert ranks.shared(jobs, "jobs") is None and made == [2, 3, 4]
    monkeypatch.setenv("RANK", "0")
    assert not capsys.readouterr().err
    assert ranks.shared(jobs, "jobs") == [job(k) for k in range(5)] and made == [2, 3, 4, 0, 1]
    bars = capsys.readouterr().err
    assert "jobs, share 1 of 2: 100%" in bars and " 2/2 " in bars
    assert "jobs, other shares: 100%" in bars and " 3/3 " in bars


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
def test_a_commands_own_flags_are_not_torchruns(device, monkeypatch):
    """Torchrun takes flags that begin like its own, such as --start, where nothing keeps it off."""
    own, seen = ["temporal", "", "--start", "2"], []
    program = SimpleNamespace(__spec__=SimpleNamespace(name="customttt.tiny.study.search"))
    monkeypatch.setitem(sys.modules, "__main__", program)
    monkeypatch.setattr(sys, "argv", ["search.py", *own])
    monkeypatch.setenv("OMP_NUM_THREADS", "2")      # start_ranks changes it
    monkeypatch.setattr(ranks.torchrun, "main",
                        lambda args: seen.append(ranks.torchrun.parse_args(args)))
    with pytest.raises(SystemExit):
        ranks.start_ranks(device)
    [told] = seen
    assert told.module and told.training_script == "customttt.tiny.study.search"
    assert told.training_script_args == own


def test_it_waits_for_what_another_process_makes(tmp_path, monkeypatch):
    here = cache.Cache(tmp_path, (), {})
    monkeypatch.setattr(cache, "WAIT", 0)
    busy = iter([True, True, False])
    locked = cache.locked

    def sometimes_locked(folder):
        if next(busy):
            raise cache.AtWork("another run is at work there")
        return locked(folder)
    monkeypatch.setattr(cache, "locked", sometimes_locked)
    made = []
    here.made("thing", {}, made.append)
    assert len(made) == 1 and next(busy, None) is None


def test_a_flag_that_says_the_recipes_value_makes_nothing_new(tmp_path, model_folder, trained):
    here = cache.Cache(tmp_path, ("--model", str(model_folder), "--size", "32"), {})
    of, steps = {"--data": model_folder / "examples" / "subject"}, ("--steps", "1")
    first = here.lora(STAGES["spatial"], (*steps, "--prompt", "a bear"), of)
    again = here.lora(STAGES["spatial"], ("--rank", "32", "--prompt", "a bear", *steps), of)
    assert first == again and trained == ["spatial"]
    assert here.lora(STAGES["spatial"], (*steps, "--prompt", "a bear", "--rank", "4"), of) != first


def test_images_in_folders_of_trainers_count(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name / "10_bear").mkdir(parents=True)
        (tmp_path / name / "10_bear" / "1.png").write_text(name)
        (tmp_path / name / ".hidden").mkdir()
        (tmp_path / name / ".hidden" / "1.png").write_text("")
    assert [cache.files_of(tmp_path / name) for name in "ab"] == [
        [tmp_path / name / "10_bear" / "1.png"] for name in "ab"]


def test_an_image_that_is_left_out_of_a_folder_changes_what_is_learned_from(tmp_path):
    """By another name, or moved to where no trainer looks; a note is none of it."""
    folder = tmp_path / "bear"
    (folder / "x").mkdir(parents=True)
    for name in ("0.png", "1.png", "0.txt"):
        (folder / name).write_text(name)
    every = cache.learned_from(folder)
    assert every == [folder / each for each in ("0.png", "0.txt", "1.png")]
    assert every == cache.files_of(folder)
    (folder / "notes.md").write_text("x")
    assert cache.learned_from(folder) == every
    moved = (folder / "1.png").rename(folder / "x" / "1.png")
    assert cache.learned_from(folder) == every[:2]
    moved.rename(folder / "1.png.off")
    assert cache.learned_from(folder) == every[:2]
    (folder / "x").rename(folder / "2_x")
    (folder / "1.png.off").rename(folder / "2_x" / "1.png")
    assert cache.learned_from(folder) == [*every[:2], folder / "2_x" / "1.png"]


def test_what_is_damaged_is_named(call, tmp_path, trained):
    call(4)
    for kind, name, content in (("scores", "scores.json", "{"), ("clips", "clip.png", ""),
                                ("loras", "log.jsonl", "{")):
        file = next((tmp_path / "out" / kind).glob(f"*/{name}"))
        kept = file.read_bytes()
        file.write_text(content)
        if kind == "clips":
            shutil.rmtree(tmp_path / "out/scores")
        with pytest.raises(UserError, match=f"{file.parent.name}: is damaged .* makes it again"):
            call(4)
        file.write_bytes(kept)


def test_a_process_that_is_killed_is_said(monkeypatch):
    def killed(args):
        failure = SimpleNamespace(exitcode=-9, timestamp=0)
        raise ranks.ChildFailedError("name", {0: failure})
    program = SimpleNamespace(__spec__=SimpleNamespace(name="customttt.paper.probe"))
    monkeypatch.setitem(sys.modules, "__main__", program)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")      # start_ranks changes it
    monkeypatch.setattr(ranks.torchrun, "main", killed)
    monkeypatch.setattr(ranks.ChildFailedError, "format_msg", lambda self: "")
    threads = torch.get_num_threads()
    with pytest.raises(UserError, match="ended by signal 9 .* goes on where it was"):
        ranks.start_ranks("cpu")
    torch.set_num_threads(threads)


def test_what_a_silent_process_says_of_a_flag_is_heard(monkeypatch, capfd):
    def job():
        return cache.parsed(STAGES["spatial"], ["--bogus"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit):
        run_command(lambda: ranks.shared([job, job], "jobs"))
    assert "error: unrecognized arguments: --bogus" in capfd.readouterr().err


def test_checkpointing_reaches_the_trainings(call, monkeypatch):
    def train(stage, args):
        assert args.gradient_checkpointing
        raise Trained
    monkeypatch.setattr(cache, "train", train)
    with pytest.raises(Trained):
        call(4, "--gradient-checkpointing")


def test_a_stopped_training_stops_the_table(tmp_path, monkeypatch, model_folder):
    monkeypatch.setattr(cache, "train", lambda stage, args: False)
    here = cache.Cache(tmp_path, ("--model", str(model_folder)), {})
    with pytest.raises(KeyboardInterrupt):
        here.lora(STAGES["spatial"], (), {"--data": model_folder / "examples" / "subject"})
    assert not list(tmp_path.rglob(cache.MADE))


def test_bad_input(protocol, tmp_path, call, model_folder):
    with pytest.raises(UserError, match="--prompts 0: must be positive"):
        call(4, "--prompts", "0")
    with pytest.raises(UserError, match="--device foo: this machine has no such device"):
        call(4, "--device", "foo")
    with pytest.raises(UserError, match="--frames 1: the scores are of clips; give 2 or more"):
        call(4, "--frames", "1")
    shutil.copytree(model_folder, tmp_path / "image-model")
    shutil.rmtree(tmp_path / "image-model" / "motion_adapter")
    with pytest.raises(UserError, match="image-model has no motion module: give one"):
        call(3, "--model", str(tmp_path / "image-model"))
    group = json.loads(protocol.read_text())["groups"][0]
    for groups, said in (
            ([{"images": "subject"}], "must have \"groups\", each with images, motion"),
            ([group | {"prompts": "p q"}], "and prompts, a list of them"),
            ([group | {"images": 5}], "which are texts"),
            ([group | {"video": "nowhere.mp4"}], "nowhere.mp4: no such file or folder"),
            ([group | {"motion": "a ball moving"}], "\"a ball moving\" does not say"),
            ([group | {"prompts": ["The bear is up"]}], "does not have the subject's words"),
            ([group, group], "two groups have the same names")):
        protocol.write_text(json.dumps({"groups": groups}))
        with pytest.raises(UserError, match=said):
            tables.read_protocol(protocol)
    with pytest.raises(UserError, match="nowhere: no such file or folder"):
        cache.files_of(tmp_path / "nowhere")


def test_results_that_were_made_otherwise_are_told_apart(protocol):
    """Seeds of a table are put together only if all but the seed is the same."""
    [group] = tables.read_protocol(protocol)
    units = tables.units_of(tables.TABLES[4], [group])
    args = SimpleNamespace(guidance=None)
    told = rows.told_of(units, args)
    assert told == rows.told_of(tables.units_of(tables.TABLES[4], [group]), args)
    assert len({told, rows.told_of(units, SimpleNamespace(guidance=2.0)),
                rows.told_of(units[:1], args),
                rows.told_of(tables.units_of(tables.TABLES[3], [group]), args),
                *(rows.told_of([unit._replace(group=replace(group, **other)) for unit in units],
                               args)
                  for other in ({"prompts": ("a bear is up",) * 2}, {"subject": "an animal"},
                                {"motion": "a thing is moving"}))}) == 7


def test_a_row_of_motion_alone_has_the_motions_scale(protocol, monkeypatch):
    [group], scales = tables.read_protocol(protocol), []
    monkeypatch.setattr(rows, "open_model", lambda args: (SimpleNamespace(unet=None), "fp32"))
    monkeypatch.setattr(rows, "chosen_settings", lambda *of: dict.fromkeys(
        ("sampling_steps", "guidance", "frames", "size")))
    monkeypatch.setattr(rows, "load_lora", lambda unet, file, scale: scales.append(scale))
    monkeypatch.setattr(rows, "sample_video", lambda *of, **others: None)
    bench = rows.Bench(SimpleNamespace(), None, ())
    for row, files in ((rows.Row("m", subject=(), scales=(0.5, 0.7)), {"temporal": None}),
                       (rows.Row("j", scales=(0.5, 0.7)), {"spatial": None, "temporal": None})):
        bench.sample(rows.Unit(row, group, 0), files, 0)
    assert scales == [0.7, 0.5, 0.7]


def test_what_is_read_beside_a_single_file_is_part_of_the_model(tmp_path):
    """The loader reads the tokenizer of a checkpoint, and the config.json of a diffusers part."""
    (tmp_path / "tokenizer").mkdir()
    for file in ("model.safetensors", "tokenizer/vocab.json", "config.json"):
        (tmp_path / file).touch()
    args = SimpleNamespace(model=tmp_path / "model.safetensors", motion_module=None, vae=None)
    assert cache.model_files(args) == [args.model, tmp_path / "tokenizer" / "vocab.json",
                                       tmp_path / "config.json"]


def test_a_clip_without_tracks_has_no_motion_fidelity(protocol, model_folder, monkeypatch):
    [group] = tables.read_protocol(protocol)
    unit = rows.Unit(rows.Row("base", (), ()), group, 0)
    args = run_train.argparse.Namespace(clip=model_folder / "clip", device="cpu",
                                        tracker="lucas-kanade", frames=2)
    scorer = rows.paper_scorer(args)
    assert scorer.told.keys() == {"judge", "tracker", "resized by"}     # told apart by these
    monkeypatch.setitem(rows.TRACKERS, "lucas-kanade", lambda frames: torch.zeros(0, 2, 2))
    monkeypatch.setattr(rows, "reference_tracks", lambda *_: torch.zeros(0, 2, 2))
    clip = torch.randint(256, (2, 64, 64, 3), dtype=torch.uint8)
    with pytest.raises(UserError, match="motion.mp4: no point can be followed through it"):
        scorer.check(group)
    monkeypatch.setattr(rows, "reference_tracks", lambda *_: torch.zeros(1, 2, 2))
    scores = scorer.score(clip, unit, {})
    assert scores["motion fidelity"] == 0 and set(tables.METRICS) <= scores.keys()
    assert scores["CLIP-I"] == pytest.approx(metrics.clip_scores(
        rows.load_clip(args.clip), rows.to_images(clip), None, group.subject_images())["CLIP-I"])


def test_dreamvideo_is_sampled_with_its_word(monkeypatch):
    said = []
    monkeypatch.setattr(rows, "open_model", lambda args: (SimpleNamespace(device="cpu"), "fp32"))
    monkeypatch.setattr(rows, "chosen_settings", lambda *of: defaultdict(int))
    monkeypatch.setattr(rows, "load_dreamvideo", lambda *of: None)
    monkeypatch.setattr(rows, "load_clip", lambda *of: SimpleNamespace(embed_images=lambda x: x))
    monkeypatch.setattr(rows, "sample_dreamvideo",
                        lambda model, prompt, guide, **settings: said.append((prompt, guide)))
    monkeypatch.setattr(rows.Group, "subject_images", lambda group: ["first", "second"])
    for subject, prompt in (("a teddy bear", "a teddy bear is up"), ("bear", "The bear is up"),
                            ("bear", "a bear is up"), ("a bear!", "a bear! is a bearskin")):
        group = rows.Group(None, subject, None, "", (prompt,))
        rows.Bench(SimpleNamespace(clip=None), None, ()).sample(
            rows.Unit(rows.Row("d"), group, 0), {"dreamvideo-word": None}, 0)
    assert said == [(prompt, ["first"]) for prompt in (
        "a * is up", "a * is up", "a * is up", "a * is a bearskin")]


def test_another_judge_or_guidance_is_another_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(rows.Group, "content", "same")
    monkeypatch.setattr(rows.Bench, "sample",
                        lambda *of: torch.zeros(2, 8, 8, 3, dtype=torch.uint8))
    group = rows.Group(tmp_path, "a bear", tmp_path / "v.mp4", "a ball is up", ("a bear is up",))
    unit = rows.Unit(rows.Row("base", (), ()), group, 0)

    def bench(guidance, judge):
        scorer = rows.Scorer("paper", {"judge": judge}, lambda *of: {"said by": judge})
        return rows.Bench(SimpleNamespace(seed=0, guidance=guidance),
                          cache.Cache(tmp_path, (), {}), (scorer,))
    for judge in (1, 2, 1):
        assert bench(None, judge).scores(unit)[0] == {"said by": judge}
    assert bench(None, 1).clip_folder(unit, {}) != bench(2.0, 1).clip_folder(unit, {})


@pytest.mark.parametrize("flags", [
    ("--size", "48"), ("--frames", "3"), ("--steps", "2"), ("--seed", "1"),
    ("--precision", "bf16"), ("--motion-version", "3"), ("--device", "meta")])
def test_a_flag_that_changes_results_changes_all_names(flags, tmp_path, model_folder):
    def told(*given):
        parser = run_train.argparse.ArgumentParser()
        tables.add_flags(parser)
        return cache.open_cache(parser.parse_args(
            ["--model", str(model_folder), "--output", str(tmp_path), *given])).told
    assert told(*flags) != told() == told()


def test_a_lora_made_of_other_loras_is_another(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "train", lambda stage, args: True)
    here, made = cache.Cache(tmp_path, (), {}), set()
    for name in "ab":
        (tmp_path / f"{name}.safetensors").write_text(name)
        made.add(here.lora(STAGES["ttt"], (), {"--spatial": tmp_path / f"{name}.safetensors",
                                               "--temporal": tmp_path / "a.safetensors"}))
    assert len(made) == 2


@pytest.mark.parametrize("flags, said", [
    (("--sampling-steps", "501"), "--sampling-steps 501: must be less than 501"),
    (("--guidance", "-1"), "--guidance -1.0: must be 0 or more"),
    (("--size", "33"), "--size 33, --frames 2")])
def test_flags_of_sampling_are_checked_before_anything_is_trained(call, trained, flags, said):
    with pytest.raises(UserError, match=said):
        call(4, *flags)
    assert trained == []


def test_a_groups_files_are_checked_before_anything_is_trained(call, protocol, trained):
    image, video = sorted((protocol.parent / "subject").glob("*.png"))[-1], "motion.mp4"
    for file, words in ((image.with_suffix(".txt"), "a blue bear"),
                        ((protocol.parent / video).with_suffix(".txt"), "a ball is circling")):
        file.write_text(words)
        with pytest.raises(UserError, match=f'the text beside it says "{words}", the protocol "a'):
            call(4)
        file.unlink()
    image.with_suffix(".txt").write_text("a teddy bear")        # the protocol's words
    image.write_bytes(b"no image")
    with pytest.raises(UserError, match=f"{image.name}: not an image that can be read"):
        call(4)
    assert trained == []


def test_more_processes_than_gpus_are_a_sentence(call, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "97")
    with pytest.raises(UserError, match="--device cuda:97: this machine has no such device"):
        call(4, "--device", "cuda")
