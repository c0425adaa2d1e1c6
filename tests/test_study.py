"""The tiny world's truth knows a right clip from a wrong one; its commands run from end to end."""

import json
import sys
from dataclasses import replace

import pytest
import torch

from customttt.errors import UserError
from customttt.files.load import load_model
from customttt.lora import add_lora, wrapped
from customttt.paper import tables
from customttt.paper.intervals import bootstrap, pearson, places, spearman
from customttt.recipes import TTT
from customttt.run.data import Texts
from customttt.run.loop import autocast
from customttt.tiny.pretraining.judge import Judge
from customttt.tiny.study import metrics, protocol, search, student, study
from customttt.tiny.study.scores import (combinations, judged, measured, other_motion,
                                           other_subject)
from customttt.tiny.world.clips import SCENES, make_clip, render
from customttt.tiny.world.motions import HELD_OUT_MOTIONS
from customttt.tiny.world.subjects import HELD_OUT_SUBJECTS

QUICK = ("--frames", "2", "--size", "64", "--sampling-steps", "1", "--steps", "1")


def test_combinations_differ_and_no_range_repeats_another():
    every = combinations(0, 120)
    assert len({(each.subject, each.motion) for each in every}) == 120
    assert combinations(40, 20) == every[40:60]
    assert {each.subject for each in every[40:60]} == set(HELD_OUT_SUBJECTS)
    assert len({each.motion for each in every[40:60]}) >= 10


def test_metrics_tell_right_from_wrong(model_folder):
    judge, generator, gaps = Judge(model_folder), torch.Generator().manual_seed(3), []
    for right in combinations(40, 12):
        clip = make_clip(HELD_OUT_SUBJECTS[right.subject], HELD_OUT_MOTIONS[right.motion],
                         right.scene, generator)
        frames = render(clip)
        wrong = replace(right, subject=other_subject(right.subject),
                        motion=other_motion(right.motion))
        own, other = (measured(each, frames, seed=1) | judged(judge, each, frames)
                      for each in (right, wrong))
        assert own["identity"] > 0.9 and own["motion"] > 0.9
        assert own["words"] == 1
        elsewhere = replace(right, scene="snow" if right.scene == "sea" else "sea", subject=(
            "candy robot" if "fish" in right.subject else "coral fish"))
        assert judged(judge, elsewhere, frames)["words"] <= 0.5
        gaps.append({metric: own[metric] - other[metric] for metric in own})
    nobody = measured(right, torch.zeros_like(frames), seed=1)
    assert nobody["identity"] == 0
    mean = {metric: sum(gap[metric] for gap in gaps) / len(gaps) for metric in own}
    print(mean)
    assert mean["identity"] > 0.3 and mean["motion"] > 0.5
    assert mean["CLIP-T"] > 0.1


# ------------------------------------------------------------------ the protocol

def test_the_protocol_is_the_papers(tmp_path):
    """50 prompts of nine subjects and ten motions, none of the pairs on which settings are tried;
    the same bytes each time."""
    groups = protocol.write_protocol(tmp_path / "a")
    assert tables.read_protocol(tmp_path / "a" / "protocol.json") == groups
    assert len({group.images for group in groups}) == 9
    assert len({group.video for group in groups}) == len({group.name for group in groups}) == 10
    tried = {(each.subject, each.motion) for each in combinations(0, 40)}
    for group in groups:
        meant = [protocol.combination_of(group, prompt) for prompt in group.prompts]
        assert [each.scene for each in meant] == list(SCENES)
        assert [each.prompt for each in meant] == list(group.prompts)
        assert (meant[0].subject, meant[0].motion) not in tried
        assert len(group.subject_images()) == 5 and group.motion.startswith("a red ball is ")
    again = protocol.write_protocol(tmp_path / "b")
    assert [group.content for group in again] == [group.content for group in groups]
    assert len({group.content for group in groups}) == 10


# ------------------------------------------------------------------ commands

@pytest.fixture
def call(monkeypatch, tmp_path, model_folder, capsys):
    """Of a command of the study, on one group of one prompt; what it prints and what it writes."""
    def call(command, name, *flags):
        few = [protocol.write_group(tmp_path / study.PROTOCOL, protocol.PAIRS[3:4])]
        for module in (study, metrics):
            monkeypatch.setattr(module, "write_protocol", lambda folder: few)
        monkeypatch.setattr(sys, "argv", [
            "study", *flags, "--model", str(model_folder), "--clip", str(model_folder / "clip"),
            "--output", str(tmp_path), *QUICK])
        command.main()
        file = next(tmp_path.glob(f"{name}-seed-[0-9].json"))
        return capsys.readouterr().out, json.loads(file.read_text())
    pytest.importorskip("cv2")
    return call


def columns(result):
    """Row -> its scores by metric; of the first clip."""
    return {row: dict(zip(result["metrics"], scores)) for row, _, _, scores in result["clips"]}


def test_stages_and_tables_share_what_they_train(call, tmp_path):
    printed, result = call(study, "stages")
    rows = columns(result)
    assert list(rows) == ["rendered truth", "base", "subject only", "motion only",
                          "joined, no ttt", "joined, ttt"]
    assert rows["rendered truth"]["true identity"] > 0.9 < rows["rendered truth"]["true motion"]
    assert rows["rendered truth"]["true identity"] > rows["rendered truth"]["another's identity"]
    assert "| *joined, ttt* minus *joined, no ttt* | " in printed
    loras = {folder.name for folder in (tmp_path / "loras").iterdir()}
    assert [name.split("-")[0] for name in sorted(loras)] == ["spatial", "temporal", "ttt"]

    printed, table = call(study, "table-4", "4")            # three further settings of ttt
    assert columns(table)[tables.AS_THEY_ARE] == rows["joined, no ttt"]
    assert columns(table)["5 reference steps"] == rows["joined, ttt"]
    assert "(0.295)" in printed
    more = {folder.name for folder in (tmp_path / "loras").iterdir()} - loras
    assert len(more) == 3 and all(name.startswith("ttt-") for name in more)


def test_the_search_scores_settings_side_by_side(call, tmp_path):
    few = ("--combinations", "1", "--start", "3")
    _, spatial = call(search, "search-spatial", "spatial", "--rank 2", "", *few)
    assert list(columns(spatial)) == ["--rank 2", "as it is"]
    printed, joined = call(search, "search-joined", "joined", "0", "300", *few,
                           "--spatial=--rank 2")
    assert columns(joined)["scale 0"] != columns(joined)["scale 300"]
    assert "| scale 300 | " in printed and joined["differences"] == [["scale 300", "scale 0"]]
    assert len(list((tmp_path / "loras").glob("spatial-*"))) == 2       # one is the search's
    with pytest.raises(UserError, match="settings half: scales are numbers"):
        call(search, "search-joined", "joined", "half")
    with pytest.raises(UserError, match="settings nan: scales are finite numbers"):
        call(search, "search-joined", "joined", "nan")
    for start in ("-1", "39"):      # the last one's second is among those that the study reports
        with pytest.raises(UserError, match="those that may be tried are 0 to 39"):
            call(search, "search-spatial", "spatial", "", "--start", start, "--combinations", "2")
    trained = len(list((tmp_path / "loras").iterdir()))
    with pytest.raises(UserError, match="--learning-rte"):
        call(search, "search-ttt", "ttt", "", "--learning-rte 3e-5", *few)
    assert len(list((tmp_path / "loras").iterdir())) == trained     # nothing, until it is mended
    with pytest.raises(UserError, match="settings: give at least one"):
        call(search, "search-ttt", "ttt")
    with pytest.raises(UserError, match="--spatial: goes with joined, ttt; leave it out"):
        call(search, "search-dreamvideo", "dreamvideo", "", "--spatial=--rank 2")
    rows = search.rows_of("ttt", ["", "--steps 2"], "--rank 2")
    assert [row.ttt for row in rows] == [None, (), ("--steps", "2")]
    assert all(row.subject_flags == ("--rank", "2") for row in rows)
    [row] = search.rows_of("dreamvideo", ["--steps 2"], temporal="--steps 3")
    assert (row.subject, row.motion) == (("dreamvideo-word", "dreamvideo-identity"),
                                         ("dreamvideo-motion",))
    assert (row.subject_flags, row.motion_flags) == (("--steps", "2"), ("--steps", "3"))


def test_flags_that_no_shell_could_read():
    with pytest.raises(UserError, match="settings --steps 1 'x: .*No closing quotation"):
        search.rows_of("spatial", ["--steps 1 'x"])


def test_the_student_shares_what_the_search_trains(call, tmp_path):
    few = ("--combinations", "1", "--start", "3")
    call(search, "search-ttt", "ttt", "", *few)
    loras = {folder.name for folder in (tmp_path / "loras").iterdir()}
    assert [name.split("-")[0] for name in sorted(loras)] == ["spatial", "temporal", "ttt"]
    _, found = call(student, "student", *few)
    changes = columns(found)["as it is"]
    assert 0 < changes["change of temporal weights, %"] < 10
    assert 0 < abs(changes["change of motion loss, %"]) < 5
    identity = [changes[f"identity, {kind} reference"] for kind in ("appearance", "motion")]
    assert 0 < identity[0] != identity[1]       # of two clips
    assert {folder.name for folder in (tmp_path / "loras").iterdir()} == loras
    with pytest.raises(UserError, match="--tracker: no score of the student follows points"):
        call(student, "student", "--tracker", "cotracker", *few)


def test_what_metrics_are_worth(call, model_folder):
    """Over the kinds of clips whose truth is known."""
    printed, result = call(metrics, "metrics")
    rows = columns(result)
    assert list(rows) == [row.name for row in metrics.spread(model_folder)]
    assert rows["still"]["consistency"] == pytest.approx(1, abs=1e-4)
    assert rows["backwards"]["true motion"] < 0.5 < 0.9 < rows["after the VAE"]["true motion"]
    assert rows["another subject"]["true motion"] > 0.9 > rows["another subject"]["true identity"]
    assert rows["another subject"]["true identity"] < rows["a plain ball"]["true identity"] < 0.9
    assert rows["a plain ball"]["true motion"] > 0.9
    assert rows["another path"]["true identity"] > 0.9 > rows["another path"]["true motion"]
    found = result["correlations"]
    assert found.keys() == {*tables.METRICS, "motion fidelity (published)", "CLIP-T (truth)"}
    x, y = (torch.tensor([each[metric] for each in rows.values()])
            for metric in ("motion fidelity", "true motion"))
    assert found["motion fidelity"]["true motion"]["Spearman"][0] == pytest.approx(
        spearman(x, y), abs=1e-3)
    assert "| motion fidelity | " in printed and "true motion, Spearman" in printed


def test_correlations():
    x = torch.tensor([1.0, 2.0, 2.0, 5.0])
    assert places(x).tolist() == [0, 1.5, 1.5, 3]
    assert pearson(x, 3 - 2 * x) == pytest.approx(-1)
    assert spearman(x, x.exp()) == pytest.approx(1) != pytest.approx(pearson(x, x.exp()))
    generator = torch.Generator().manual_seed(0)
    a, noise = torch.randn(2, 400, generator=generator)
    for groups, half in ((range(400), 0.08), ([k // 20 for k in range(400)], 0.08)):
        r, low, high = bootstrap(pearson, a, a + noise, list(map(str, groups)))
        assert r == pytest.approx(0.5 ** 0.5, abs=0.06) and low < r < high < low + 2 * half
    twice = a.repeat_interleave(2), (a + noise).repeat_interleave(2)
    of_one = bootstrap(pearson, a, a + noise, list(map(str, range(400))))
    of_two = bootstrap(pearson, *twice, [str(k // 2) for k in range(800)])
    assert of_two == pytest.approx(of_one, abs=0.02)        # said twice, it counts once


# ------------------------------------------------------------------ the student

def test_losses_of_the_student_are_held_against_the_teachers(model_folder, monkeypatch):
    """With the motion's prompt as target, a student that is the motion's teacher equals it."""
    monkeypatch.setattr(student, "DRAWS", 1)
    model, generator = load_model(model_folder), torch.Generator().manual_seed(0)
    add_lora(model.unet, "spatial", (1, 7), rank=2, dropout=0, name="spatial_teacher")  # does 0
    for name in ("temporal_teacher", "joined"):
        add_lora(model.unet, "temporal", (1, 7), rank=2, dropout=0, name=name)
    pairs = [module.loras for _, module in wrapped(model.unet) if "joined" in module.loras]
    for pair in pairs:
        torch.nn.init.normal_(pair["joined"].up.weight, std=0.3, generator=generator)
        pair["temporal_teacher"].load_state_dict(pair["joined"].state_dict())
    moving = "an object is moving up"
    texts = Texts(*model.encode_text([moving, "a fish is doing something", moving, ""]).split(1))
    given = (model.unet, texts, (1, 4, 3, 16, 16), TTT.values(model.unet) | {"reference_steps": 2})
    same = student.preservation(*given)
    assert same["motion loss above the teacher's, before"] == 0
    assert same["change of motion loss"] == same["change of appearance loss"] == 0
    assert abs(same["appearance loss above the teacher's, before"]) > 0.01

    half = load_model(model_folder, dtype=torch.bfloat16)           # as on a GPU
    add_lora(half.unet, "temporal", (1, 7), rank=2, dropout=0, name="joined")
    clip = torch.zeros(2, 64, 64, 3, dtype=torch.uint8)
    with autocast(half.device, "bf16"):
        assert student.noise_change(half, moving, clip) == 0
        assert student.preservation(half.unet, Texts(*(each.bfloat16() for each in texts)),
                                    *given[2:])["change of motion loss"] == 0

    for pair in pairs:
        pair["joined"].up.weight.data.mul_(3)
    worse = student.preservation(*given)
    assert worse["motion loss above the teacher's, before"] == 0
    assert worse["change of motion loss"] > 0.01
