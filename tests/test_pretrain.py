"""Every stage of pretraining runs, leaves a model that loads, and resumes as if never stopped."""

import shutil
from dataclasses import replace

import pytest
import torch

import customttt
from customttt.tiny.pretraining import pretrain
from customttt.tiny.pretraining.objectives import RECIPES
from customttt.tiny.pretraining.pretrain import STAGES


def train(name, folder, work, steps=2, seed=0):
    recipe = replace(RECIPES[name], steps=steps, batch=2, examples=4, warm_up=1)
    pretrain.train(name, folder, work, recipe, seed, rank=0, processes=1)
    return torch.load(work / f"{name}.pt", weights_only=True)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """Two steps of every stage: the model folder, and the checkpoints by stage."""
    folder, work = tmp_path_factory.mktemp("model"), tmp_path_factory.mktemp("work")
    return folder, {name: train(name, folder, work) for name in STAGES}


def test_the_folder_loads_and_samples(pretrained):
    model = customttt.load_model(pretrained[0])
    assert model.vae.factor == 4 and model.unet.config.motion.max_frames == 32
    frames = customttt.sample_video(model, "a red ball is circling on the snow", steps=2, frames=3,
                                    size=64)
    assert frames.shape == (3, 64, 64, 3)
    size = sum(file.stat().st_size for file in pretrained[0].rglob("*.safetensors"))
    assert size < 25e6


def test_only_its_own_part_is_trained(pretrained):
    """A stage's checkpoint holds as many numbers as the part that it trains."""
    counts = {name: sum(w.numel() for w in state["weights"])
              for name, state in pretrained[1].items()}
    model = customttt.load_model(pretrained[0])
    motion = sum(p.numel() for name, p in model.unet.named_parameters() if "motion" in name)
    heads = sum((16 * width + 1) * 7 for width in (96, 96, 64))     # asked, and thrown away
    low = sum(p.numel() for name, p in model.unet.named_parameters()
              if "motion" in name and name.startswith(("layers.0", "layers.1")))
    assert counts["motion"] == motion + heads
    assert counts["few"] == counts["half"] == motion + heads - low
    assert counts["decoder"] < counts["vae"] == sum(p.numel() for p in model.vae.parameters())
    assert counts["vision"] < counts["clip"] == counts["tune"]
    assert counts["crops"] == counts["unet"]


@pytest.mark.parametrize("name", ["tune", "half"])      # AdamW alone; with Muon
def test_resumed_is_the_same_run(name, pretrained, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain, "SAVE_EVERY", -1)     # after every step
    once, twice = (shutil.copytree(pretrained[0], tmp_path / copy) for copy in ("once", "twice"))
    stage = STAGES[name]
    whole = train(name, once, tmp_path / "whole")

    def broken(*arguments):
        """Its second step fails."""
        made = stage(*arguments)
        losses = iter([made.loss])
        return replace(made, loss=lambda generator: next(losses)(generator))

    monkeypatch.setitem(STAGES, name, broken)
    with pytest.raises(StopIteration):
        train(name, twice, tmp_path / "parts")
    monkeypatch.setitem(STAGES, name, stage)
    resumed = train(name, twice, tmp_path / "parts")
    for key in ("weights", "averages"):
        assert all(torch.equal(a, b) for a, b in zip(whole[key], resumed[key], strict=True))


def test_another_seed_draws_other_data(pretrained, tmp_path):
    one, again, other = (
        train("tune", shutil.copytree(pretrained[0], tmp_path / name), tmp_path / f"{name} work",
              seed=seed)["weights"] for name, seed in (("one", 0), ("again", 0), ("other", 1)))
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True) if a.ndim == 2)
