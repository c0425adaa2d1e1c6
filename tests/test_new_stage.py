"""A further method is one object: textual inversion, with two losses a step, through train.py."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import train
from customttt import recipes
from customttt.errors import UserError, writing
from customttt.losses import noise_loss, spatial_loss
from customttt.run.data import add_data_flags, read_images
from customttt.run.stage import Job, Stage
from customttt.stages import STAGES


def inversion_step(unet, z, c, settings, draw, backward):
    """Gal et al. (2022), equation 2, on one image; and a pull to where the embedding started."""
    i = draw.some(len(z), 1)
    backward(spatial_loss(unet, z[i], unet.embedding, draw.noise_like(z[i]), draw.timesteps(z[i])))
    backward(settings["pull"] * noise_loss(unet.embedding, c[:1]))


def prepare_inversion(model, settings, args) -> Job:
    job = read_images(model, settings, args)
    model.unet.embedding = nn.Parameter(job.inputs[1][:1].clone())
    return job


class Inversion(Stage):
    """Trains no LoRA but a prompt's embedding (1 77 d)."""

    def parameters(self, model):
        return {"embedding": model.unet.embedding}

    def save(self, model, path, metadata):
        with writing(path) as temporary:
            save_file({"embedding": model.unet.embedding.detach()}, temporary,
                      {key: json.dumps(value) for key, value in metadata.items()})


INVERSION = Inversion(
    "inversion", "embedding", recipes.Recipe(
        full=recipes.EVERYWHERE | recipes.TRAINING | {
            "steps": recipes.Setting(4, "a test"), "learning_rate": recipes.Setting(1e-3, "a test"),
            "pull": recipes.Setting(0.01, "a test")}, tiny=recipes.SMALL),
    add_data_flags, prepare_inversion, inversion_step, trained=(), rows=((),), motion=False)


@pytest.fixture
def run_inversion(monkeypatch, model_folder, tmp_path):
    monkeypatch.setitem(STAGES, "inversion", INVERSION)

    def run(output, *flags) -> torch.Tensor:
        monkeypatch.setattr(sys, "argv", [
            "train.py", "--stage", "inversion", "--model", str(model_folder), "--output",
            str(tmp_path / output), "--sampling-steps", "2", "--frames", "2", *flags])
        train.main()
        return load_file(tmp_path / output / "adapter.safetensors")["embedding"]
    return run


def test_it_trains_its_own_parameters_and_resumes(run_inversion, tmp_path, capsys):
    whole = run_inversion("whole")
    assert "pull" not in capsys.readouterr().out            # as in the recipe: nothing to say
    run_inversion("cut", "--steps", "2")
    assert torch.equal(run_inversion("cut", "--steps", "4", "--resume"), whole)
    assert not torch.equal(run_inversion("other", "--pull", "10"), whole)   # the second loss
    assert (tmp_path / "whole" / "sheet-000004.png").exists()


def test_its_flags_are_its_own(run_inversion):
    with pytest.raises(UserError, match="--rank: not a flag of --stage inversion"):
        run_inversion("whole", "--rank", "4")
