"""Every stage of pretraining runs, leaves a model that loads, and resumes as if never stopped."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import customttt
from customttt.errors import UserError
from customttt.tiny.pretraining import evaluate, pretrain
from customttt.tiny.pretraining.data import Machine, draw_clips, draw_frames
from customttt.tiny.pretraining.muon import Muon
from customttt.tiny.pretraining.objectives import (LATENT_DEVIATION, RECIPES, misnamed,
                                                   save_normalised)
from customttt.tiny.pretraining.parts import load_towers, load_text_encoder, load_vae
from customttt.tiny.pretraining.pretrain import STAGES
from customttt.tiny.pretraining.reading import colour_tokens, misreading
from customttt.tiny.world import clips as world
from customttt.tiny.world.subjects import COLOURS, DRAWINGS, HELD_OUT_SUBJECTS


def short(name, steps=2):
    return replace(RECIPES[name], steps=steps, batch=2, examples=4, warm_up=1)


def train(name, folder, work, seed=0, machine=Machine()):
    pretrain.train(name, folder, work, short(name), seed, rank=0, processes=1, machine=machine)
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
    both = load_towers(pretrained[0])[0]
    model = customttt.load_model(pretrained[0])
    motion = sum(p.numel() for name, p in model.unet.named_parameters() if "motion" in name)
    heads = sum((16 * width + 1) * 7 for width in (96, 96, 64))     # asked, and thrown away
    low = sum(p.numel() for name, p in model.unet.named_parameters()
              if "motion" in name and name.startswith(("layers.0", "layers.1")))
    assert counts["motion"] == motion + heads
    assert counts["few"] == counts["half"] == motion + heads - low
    assert counts["vae"] == counts["sharpen"] == sum(p.numel() for p in model.vae.parameters())
    assert counts["clip"] == sum(p.numel() for p in both.parameters())
    answers = 2 + len(DRAWINGS) + 3 * len(COLOURS)
    assert counts["tune"] == counts["clip"] + (96 + 1) * answers + 3 * 2 * 96
    text = sum(p.numel() for part in (both.text_model, both.text_projection)
               for p in part.parameters())
    assert counts["vision"] == counts["tune"] - text - 1        # the scale is locked too
    assert counts["crops"] == counts["unet"]


def test_a_finished_stage_is_written_again_but_not_for_another_seed(pretrained, tmp_path):
    folder, work = shutil.copytree(pretrained[0], tmp_path / "model"), tmp_path / "work"
    train("clip", folder, work)
    before = (folder / "clip/model.safetensors").read_bytes()
    shutil.rmtree(folder / "clip")
    train("clip", folder, work)
    assert (folder / "clip/model.safetensors").read_bytes() == before
    with pytest.raises(UserError, match="--seed 7: .*clip.pt is of a run with 0; give another"):
        train("clip", folder, work, seed=7)
    (work / "clip.pt").write_bytes(b"half")
    with pytest.raises(UserError, match="clip.pt: not a checkpoint of this stage that can be read"):
        train("clip", folder, work)


@pytest.mark.parametrize("name", ["tune", "half"])      # AdamW alone; with Muon
def test_resumed_is_the_same_run(name, pretrained, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain, "SAVE_EVERY", -1)     # after every step
    monkeypatch.setattr(pretrain, "LOG_EVERY", 1)
    once, twice = (shutil.copytree(pretrained[0], tmp_path / copy) for copy in ("once", "twice"))
    stage = STAGES[name]
    whole = train(name, once, tmp_path / "whole")

    def broken(*arguments):
        """Its second step fails."""
        made = stage(*arguments)
        losses = iter([made.loss])
        return replace(made, loss=lambda *batch: next(losses)(*batch))

    monkeypatch.setitem(STAGES, name, broken)
    with pytest.raises(StopIteration):
        train(name, twice, tmp_path / "parts")
    monkeypatch.setitem(STAGES, name, stage)
    log = tmp_path / "parts" / f"{name}.log.jsonl"
    with log.open("a") as file:
        file.write('{"step": 2, "cut": "off"}\n')       # of a step that is run again
    resumed = train(name, twice, tmp_path / "parts")
    assert [json.loads(line)["step"] for line in log.open()] == [1, 2]
    assert "off" not in log.read_text()
    for key in ("weights", "averages"):
        assert all(torch.equal(a, b) for a, b in zip(whole[key], resumed[key], strict=True))


def test_a_batch_that_processes_cannot_share_is_refused(tmp_path):
    with pytest.raises(UserError, match="--batch 3: 2 processes cannot share it evenly"):
        pretrain.train("tune", tmp_path, tmp_path, replace(pretrain.RECIPES["tune"], batch=3),
                       seed=0, rank=0, processes=2)


def test_another_seed_draws_other_data(pretrained, tmp_path):
    one, again, other = (
        train("tune", shutil.copytree(pretrained[0], tmp_path / name), tmp_path / f"{name} work",
              seed=seed)["weights"] for name, seed in (("one", 0), ("again", 0), ("other", 1)))
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True) if a.ndim == 2)


@pytest.mark.parametrize("name", ["vision", "unet"])        # of fresh frames; of kept latents
def test_workers_draw_the_same(name, pretrained, tmp_path):
    own, workers = (
        train(name, shutil.copytree(pretrained[0], tmp_path / f"{n}"), tmp_path / f"{n} work",
              machine=Machine(workers=n))["weights"] for n in (0, 2))
    assert all(torch.equal(a, b) for a, b in zip(own, workers, strict=True))


@pytest.mark.parametrize("name", STAGES)
def test_a_loss_is_of_its_batch_alone(name, pretrained, tmp_path):
    """Nothing of the step is left on the CPU, where the stage is on another device."""
    folder = shutil.copytree(pretrained[0], tmp_path / "model")
    STAGES[name](folder, tmp_path, short(name), Machine())      # latents are encoded
    stage = STAGES[name](folder, tmp_path, short(name), Machine(torch.device("meta")))
    stage.module.to("meta")
    batch = stage.draw(torch.Generator().manual_seed(0))
    loss = stage.loss(*(each.to("meta") for each in batch))
    loss.backward()
    assert loss.is_meta and loss.shape == ()
    if stage.alike:
        again = stage.draw(torch.Generator().manual_seed(1))
        assert [each.shape for each in batch] == [each.shape for each in again]


def test_latents_of_each_channel_have_mean_0_and_one_deviation(pretrained):
    clips = draw_clips(torch.Generator().manual_seed(1), 100)
    pixels, _ = draw_frames(torch.Generator().manual_seed(1), clips)
    with torch.no_grad():
        z = load_vae(pretrained[0]).encode(pixels)
    assert z.mean((0, 2, 3)).abs().max() < 0.05
    assert (z.std((0, 2, 3)) - LATENT_DEVIATION).abs().max() < 0.05


def test_saving_a_vae_keeps_what_it_decodes(pretrained, tmp_path):
    """Moving and scaling the latents is undone by the decoder's side."""
    vae = load_vae(pretrained[0])
    with torch.no_grad():       # far from what `save_vae` makes
        vae.quant_conv.weight[:4] *= torch.tensor([1.0, 3, 0.2, 5])[:, None, None, None]
        vae.quant_conv.bias += torch.arange(8.0)
        pixels, _ = draw_frames(torch.Generator().manual_seed(2), draw_clips(
            torch.Generator().manual_seed(2), 3))
        save_normalised(vae, tmp_path)
        saved = load_vae(tmp_path)
        decoded = [each.decode(each.encode(pixels)) for each in (vae, saved)]
        deviations = [each.posterior(pixels)[1] / each.posterior(pixels)[0].std((0, 2, 3),
                                                                                 keepdim=True)
                      for each in (vae, saved)]
    torch.testing.assert_close(*decoded, atol=0.01, rtol=0.01)
    torch.testing.assert_close(*deviations, atol=0, rtol=0.01)


@pytest.mark.parametrize("flags, said", [
    (["--device", "cuda:77"], "this machine has no such device"),
    (["--batch", "0"], "--batch 0: must be 1 or more")])
def test_bad_flags_are_a_sentence(flags, said, monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["pretrain.py", "unet", *flags, "--work", str(tmp_path)])
    with pytest.raises(UserError, match=said):
        pretrain.main()
    assert not list(tmp_path.iterdir())


def test_each_process_of_torchrun_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "97")
    monkeypatch.setattr("sys.argv", ["pretrain.py", "unet", "--device", "cuda"])
    with pytest.raises(UserError, match="--device cuda:97: this machine has no such device"):
        pretrain.main()


@pytest.mark.parametrize("flags, sentence", [
    (["vae", "--number", "-5"], "--number -5: must be positive"),
    (["unet", "--guidance", "nan"], "--guidance nan: must be 0 or more"),
    (["clip", "--sheet", "a.png"], "--sheet: goes with unet and motion"),
    (["unet", "--sheet", "a.foo"], "--sheet a.foo: must end in .png")])
def test_what_evaluate_does_not_take(monkeypatch, flags, sentence):
    monkeypatch.setattr("sys.argv", ["evaluate", *flags])
    with pytest.raises(UserError, match=sentence):
        evaluate.main()


def test_muon_is_pytorchs():
    """One matrix at a time there, in bfloat16; here all of a shape at once, in fp32."""
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("torch.optim.Muon came with PyTorch 2.9")
    torch.manual_seed(0)
    start = [torch.randn(shape) for shape in ((8, 4), (8, 4), (3, 9))]
    ours, others = ([p.clone().requires_grad_(True) for p in start] for _ in range(2))
    steps = (Muon(ours, 0.1, 0.05),
             torch.optim.Muon(others, 0.1, 0.05, adjust_lr_fn="match_rms_adamw"))
    for k in range(3):
        for p, q in zip(ours, others):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(k))
            q.grad = p.grad.clone()
        for each in steps:
            each.step()
    for p, q in zip(ours, others):
        torch.testing.assert_close(p, q, atol=5e-3, rtol=0)     # of steps of 0.06 to 0.11


def test_misnamed_differs_in_its_colours_or_its_kind():
    teddy = HELD_OUT_SUBJECTS["teddy in a red bow"]
    others = misnamed(teddy, torch.Generator().manual_seed(0))
    assert len(set(others) | {teddy}) == 10
    assert all(len(set(each.colours)) == 3 for each in others)
    assert [each.kind for each in others[:6]] == ["teddy bear"] * 6
    assert {each.kind for each in others[6:]} == {"rabbit", "robot", "fish"}
    assert {each.colours for each in others[6:]} == {teddy.colours}


def test_reading_the_wrong_colour_costs(pretrained):
    """The token of a part's colour: nothing where it is read, much where another part's is."""
    clip = world.make_clip(HELD_OUT_SUBJECTS["teddy in a red bow"], world.Motion("spinning",
                           "spinning"), "snow", torch.Generator().manual_seed(0))
    tokens = colour_tokens(clip, "a photo of a blue yellow red teddy bear")
    _, tokenizer = load_text_encoder(pretrained[0])
    words = {i: word for word, i in tokenizer.vocabulary.items()}
    ids = tokenizer(["a photo of a blue yellow red teddy bear"])[0].tolist()
    assert [words[ids[k]] for k in tokens] == ["blue</w>", "yellow</w>", "red</w>"]
    assert colour_tokens(clip, "an object on the snow") == [0, 0, 0]

    parts = world.part_coverage(clip, 0)[None]
    said = torch.tensor([tokens])
    main = F.adaptive_avg_pool2d(parts, 16).flatten(2).argmax(1)[0]        # part of each pixel
    right = torch.full((1, 256, 77), 1e-4)
    right[0, torch.arange(256), said[0, main]] = 1.0
    wrong = right.roll(1, dims=2)
    assert misreading(right.log(), parts, said) < 3 < misreading(wrong.log(), parts, said)
    assert misreading(wrong.log(), parts, 0 * said) == 0
