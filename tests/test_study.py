"""The study's metrics know a right clip from a wrong one, and its table says what was measured."""

import argparse
import sys
from dataclasses import replace

import pytest
import torch

from customttt.errors import UserError
from customttt.files.load import load_model
from customttt.lora import add_lora, with_lora
from customttt.recipes import TTT
from customttt.run.data import Texts
from customttt.stages import STAGES
from customttt.tiny.pretraining.judge import Judge
from customttt.tiny.study import search, student, study
from customttt.tiny.study.scores import METRICS, combinations, other_motion, other_subject, score
from customttt.tiny.world.clips import make_clip, render
from customttt.tiny.world.motions import HELD_OUT_MOTIONS
from customttt.tiny.world.subjects import HELD_OUT_SUBJECTS


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
        own, other = (score(judge, each, frames, seed=1) for each in (right, wrong))
        assert own["identity"] > 0.9 and own["motion"] > 0.9
        gaps.append({metric: own[metric] - other[metric] for metric in METRICS})
    mean = {metric: sum(gap[metric] for gap in gaps) / len(gaps) for metric in METRICS}
    print(mean)
    assert mean["identity"] > 0.3 and mean["motion"] > 0.5 and mean["CLIP-I"] > 0.02


def test_the_table_pairs_what_it_subtracts():
    def scores(value):
        return dict.fromkeys(METRICS, value)

    results = [{"base": scores(k), "subject only": scores(k + 0.5)} for k in (0, 1)]
    table = study.table(results)
    assert "| base | 0.500 ± 0.980 |" in table              # 1.96 sqrt(1/2) / sqrt 2
    assert "| *subject only* minus *base* | 0.500 ± 0.000 |" in table
    assert "motion only" not in table


def test_flags_of_ttt_may_name_the_prompt():
    [combination] = combinations(9, 1)
    assert study.said("--steps 2 --motion-prompt 'an object is {doing}'", combination) == [
        "--steps", "2", "--motion-prompt", "an object is bouncing on the snow"]
    assert study.said("--prompt {prompt}", combination)[1] == "a fish is bouncing on the snow"


def test_losses_of_the_student_are_held_against_the_teachers(model_folder, monkeypatch):
    """With the motion's prompt as target, a student that is the motion's teacher equals it."""
    monkeypatch.setattr(student, "DRAWS", 1)
    model, generator = load_model(model_folder), torch.Generator().manual_seed(0)
    add_lora(model.unet, "spatial", (1, 7), rank=2, dropout=0, name="spatial_teacher")  # does 0
    for name in ("temporal_teacher", "joined"):
        add_lora(model.unet, "temporal", (1, 7), rank=2, dropout=0, name=name)
    pairs = [module.loras for _, module in with_lora(model.unet) if "joined" in module.loras]
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

    for pair in pairs:
        pair["joined"].up.weight.data.mul_(3)
    worse = student.preservation(*given)
    assert worse["motion loss above the teacher's, before"] == 0
    assert worse["change of motion loss"] > 0.01


def test_the_search_scores_settings_and_probes_layers(tmp_path, monkeypatch, model_folder):
    quick = "--steps 1 --rank 2 --frames 4"
    monkeypatch.chdir(model_folder.parent.parent)
    monkeypatch.setattr(study, "SAMPLING", Quick())
    args = argparse.Namespace(model=model_folder, output=tmp_path, seed=1, images=1, combinations=1,
                              spatial=quick, temporal=quick)
    [combination] = combinations(3, 1)
    off, on = (search.one_scale(args, scale, combination) for scale in (0, 100))
    assert off.keys() == set(METRICS) and off != on
    assert (tmp_path / "spatial" / "steps-1-rank-2-frames-4" / "spatial").is_dir()

    monkeypatch.setattr(search, "PROBE_STEPS", 2)
    assert search.probe_layer(args, 7).startswith("| 7 | ")


def test_ttt_alone_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["study", "--stages", "ttt"])
    with pytest.raises(UserError, match="--stages: .*all three"):
        study.main()


class Quick:
    """A recipe of sampling."""

    def values(self, unet):
        return {"sampling_steps": 2, "guidance": 3, "size": 64}


def test_it_trains_scores_and_resumes(tmp_path, monkeypatch, model_folder, capsys):
    quick = "--steps 1 --rank 2 --frames 4"
    monkeypatch.chdir(model_folder.parent.parent)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(study, "SAMPLING", Quick())
    monkeypatch.setattr(student, "DRAWS", 2)
    [combination] = combinations(7, 1)
    study.write_data(tmp_path / "seed-1" / "data")
    scores = study.examine(argparse.Namespace(
        model=model_folder, output=tmp_path / "seed-1", name="ttt", seed=1, stages=list(STAGES),
        spatial=quick, temporal=quick, ttt="--steps 1 --reference-steps 1"), combination)
    assert scores.keys() == {study.TRUTH, *study.CONDITIONS, *study.CONTROLS, *study.REFERENCES,
                             "student"}
    changes = scores["student"]
    assert 0 < changes["change of temporal weights"] < 0.1
    # One reference step leaves noise, on which prompts and adapters of one step tell little.
    assert abs(changes["motion loss above the teacher's, before"]) < 0.05
    assert 0 < abs(changes["change of motion loss"]) < 0.05

    again = ["study", "--output", str(tmp_path), "--combinations", "1", "--start", "7"]
    monkeypatch.setattr(sys, "argv", again)
    study.main()                                            # takes what is there
    line = f"| joined, ttt | {scores['joined, ttt']['identity']:.3f} ± nan | "
    assert line in capsys.readouterr().out

    monkeypatch.setattr(sys, "argv", [*again, "--compare", "ttt"])
    study.main()
    gained = scores["joined, ttt"]["identity"] - scores["joined, no ttt"]["identity"]
    assert f"| ttt | {gained:.3f} ± nan | " in capsys.readouterr().out

    monkeypatch.setattr(sys, "argv", [*again, "--compare", "ttt", "longer"])
    with pytest.raises(UserError, match="--compare longer: .*run it with --name longer"):
        study.main()
