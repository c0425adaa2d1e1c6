"""The systems that Table 1 compares with: their sizes, their losses, and that they learn."""

import sys
from argparse import Namespace

import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet3DConditionModel
from safetensors.torch import load_file
from torch import nn

import train
from conftest import TINY, tiny_model
from customttt import UNet, add_lora
from customttt.diffusion import add_noise
from customttt.draws import Draws
from customttt.errors import UserError
from customttt.files.reading import write_tensors
from customttt.lion import Lion
from customttt.lora import lora_on, lora_parameters
from customttt.model.config import SD15_UNET
from customttt.paper import adapters, dreamvideo, systems
from customttt.recipes import TEMPORAL
from customttt.run.stage import train_only
from customttt.stages import STAGES

SMALL = {"frames": 2, "size": 32, "fps": 8.0, "rank": 4, "batch_size": 2}


def count(parameters):
    return sum(p.numel() for p in parameters)


def full_size(stage):
    return {name: setting.value for name, setting in stage.recipe.full.items()}


# ------------------------------------------------------------------ sizes, never allocated

@pytest.mark.parametrize("subject, motion, expected", [
    (systems.FULL_SPATIAL, systems.FULL_TEMPORAL, 28_864_512),
    (systems.DIFFDIRECTOR_SPATIAL, systems.DIFFDIRECTOR, 30_461_952),
    (systems.MOTIONDIRECTOR_SPATIAL, systems.MOTIONDIRECTOR, 25_681_920)],
    ids=["Full LoRA", "DiffDirector", "MotionDirector"])
def test_trainable_parameters(subject, motion, expected):
    """Of the subject's spatial LoRA and the motion's temporal one; the motion stage's own spatial
    LoRA is as large as the subject's."""
    with torch.device("meta"):
        unet, settings = UNet(SD15_UNET), full_size(subject)
        if "convolutions" in settings:
            systems.put_spatial(unet, settings)
        else:
            add_lora(unet, "spatial", settings["spatial_layers"], settings["rank"])
        spatial = count(lora_parameters(unet, "spatial").values())
        settings = full_size(motion)
        temporal = count(add_lora(unet, "temporal", settings["temporal_layers"], settings["rank"]))
    assert spatial + temporal == expected


def modelscope():
    """MotionDirector's and DreamVideo's own base, by its published configuration."""
    with torch.device("meta"):
        return UNet3DConditionModel(cross_attention_dim=1024, attention_head_dim=64)


def named(unet, kind):
    return [module for module in unet.modules() if type(module).__name__ == kind]


def test_motiondirectors_size_on_its_own_base_is_the_papers():
    """21.26M: its rule (utils/lora.py) on ModelScope's UNet."""
    def lora(module, *places):
        return sum(32 * (linear.in_features + linear.out_features)
                   for name, linear in module.named_modules()
                   if isinstance(linear, nn.Linear) and any(place in name for place in places))
    unet = modelscope()
    assert sum(lora(each, "attn1", "ff") for each in named(unet, "Transformer2DModel")) + sum(
        lora(each, "attn1", "attn2", "ff") for each in named(unet, "TransformerTemporalModel")
    ) == 21_258_240


def test_dreamvideos_size():
    with torch.device("meta"):
        unet = UNet(SD15_UNET)
        adapters.put_identity(unet)
        adapters.put_motion(unet, 512)
    assert count(adapters.adapter_parameters(unet, "identity").values()) == 12_409_120
    assert count(adapters.adapter_parameters(unet, "motion").values()) == 83_997_600
    own, widths = modelscope(), {}
    for kind in ("Transformer2DModel", "TransformerTemporalModel"):
        widths[kind] = [each.proj_in.out_features if isinstance(each.proj_in, nn.Linear) else
                        each.proj_in.out_channels for each in named(own, kind)]
    bottleneck = [d * d + d + d // 2 for d in widths["TransformerTemporalModel"]]
    assert sum(d * d + d + d // 2 for d in widths["Transformer2DModel"]) == 12_409_120
    assert 3 * (sum(bottleneck) + sum(1025 * d for d in widths["TransformerTemporalModel"])
                ) == 77_966_496


# ------------------------------------------------------------------ losses, as the originals'

def perturbed(module):
    """Nothing stays zero."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=generator))
    return module


def gradients(parameters):
    return {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}


@pytest.mark.parametrize("stage", [systems.DIFFDIRECTOR, systems.MOTIONDIRECTOR])
@pytest.mark.parametrize("switch_off", [0.0, 1.0])
def test_dual_path_is_the_originals(model, stage, switch_off):
    """MotionDirector_train.py, finetune_unet and its two optimizers: which loss reaches what."""
    settings = stage.recipe.values(model.unet) | {
        "rank": 4, "dropout": 0.0, "spatial_layers": (2, 6), "temporal_layers": (2, 5),
        "switch_off": switch_off}
    unet = model.unet
    add_lora(unet, "temporal", settings["temporal_layers"], 4, 0.0)
    systems.put_spatial(unet, settings)
    parameters = stage.parameters(model)
    train_only(model.unet, parameters)
    perturbed(nn.ParameterList(parameters.values()))
    z, c = torch.randn(1, 4, 4, 8, 8), torch.randn(1, 7, unet.config.text_width)

    losses = []
    systems.dual_path_step(unet, z, c, settings, Draws(3),
                           lambda loss: (losses.append(loss.item()), loss.backward()))
    ours = gradients(parameters)

    draw = Draws(3)
    i = draw.some(1, 1)
    noise, t = draw.noise_like(z[i]), draw.timesteps(z[i], settings["least_timestep"])
    masked, ran_idx, anchor = draw.chance(switch_off), draw.frame(z), draw.frame(z)
    noisy, theirs, expected = add_noise(z, noise, t), {}, []
    spatial, temporal = lora_parameters(unet, "spatial"), lora_parameters(unet, "temporal")
    if not masked:
        with lora_on(unet, "spatial"):
            pred = unet(noisy[:, :, ran_idx].unsqueeze(2), t, c, motion=False)
        loss = F.mse_loss(pred[:, :, 0], noise[:, :, ran_idx])
        theirs |= dict(zip(spatial, torch.autograd.grad(loss, list(spatial.values()))))
        expected.append(loss.item())
    with lora_on(unet, *([] if masked else ["spatial"]), "temporal"):
        pred = unet(noisy, t, c)
    alpha = 2 ** 0.5
    loss = F.mse_loss(pred, noise) + F.mse_loss(
        alpha * pred - pred[:, :, anchor].unsqueeze(2),
        alpha * noise - noise[:, :, anchor].unsqueeze(2))
    theirs |= dict(zip(temporal, torch.autograd.grad(loss, list(temporal.values()))))
    assert losses == pytest.approx([*expected, loss.item()], rel=1e-6)
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-8) for name in ours)
    assert any(".attn2." in name for name in spatial) == settings["cross_attention"]
    assert any("proj_in" in name for name in spatial) == settings["convolutions"]


def vgen_adapter(adapter, x, condition=None):
    """VGen, tools/modules/unet/util.py, Adapter.forward: its output has x in it."""
    y = x if condition is None else x + adapter.condition_linear(condition)
    return adapter.up(F.gelu(adapter.down(y))) + x


def test_adapters_are_vgens(model):
    unet = model.unet
    adapters.put_identity(unet)
    adapters.put_motion(unet, 5)
    perturbed(unet)
    spatial, temporal = (getattr(unet.layers[2], part)[0].block
                         for part in ("spatial_transformers", "motion_modules"))
    d, base = spatial.base.norm1.normalized_shape[0], spatial.base
    x, text = torch.randn(3, 6, d), torch.randn(1, 7, unet.config.text_width)
    y = base.attn1(base.norm1(x)) + x
    y = base.attn2(base.norm2(y), text.expand(3, -1, -1)) + vgen_adapter(spatial.adapter, y)
    assert torch.allclose(spatial(x, text), base.ff(base.norm3(y)) + y, atol=1e-5)

    base, (first, second, third) = temporal.base, temporal.adapters
    x, a = torch.randn(6, 4, d), torch.randn(2, 5)         # two clips of three pixels
    position, each = base.positions(x), a.repeat_interleave(3, dim=0)[:, None]
    for condition in (each, None):
        y = base.attn1(base.norm1(x) + position) + vgen_adapter(first, x, condition)
        y = base.attn2(base.norm2(y) + position) + vgen_adapter(second, y, condition)
        y = base.ff(base.norm3(y)) + vgen_adapter(third, y, condition)
        if condition is None:
            assert torch.allclose(temporal(x), y, atol=1e-5)
        else:
            with adapters.appearance(unet, a):
                assert torch.allclose(temporal(x), y, atol=1e-5)


def test_a_learned_word_is_in_the_prompt_alone(model):
    before = model.encode_text(["a ball", "a *"])
    word = dreamvideo.put_word(model, start="ball")
    after = model.encode_text(["a ball", "a *"])
    assert torch.equal(before[0], after[0]) and not torch.equal(before[1], after[1])
    if len(model.tokenizer.encode("ball")) == 1:            # it begins as that word
        assert torch.allclose(after[1], before[0], atol=1e-5)
    assert count(word.parameters()) - count(word.base.parameters()) == len(word.vector)


def test_dreamvideo_samples_what_was_trained(model, tmp_path):
    """Through its three files; the subject's image counts."""
    arguments = {"steps": 2, "frames": 2, "size": 32, "seed": 1}
    learn_word(model, tmp_path / "word")
    dreamvideo.put_word(model, dreamvideo.read_word(tmp_path / "word", model))
    adapters.put_identity(model.unet)
    adapters.put_motion(model.unet, 5)
    for kind in ("identity", "motion"):
        parameters = adapters.adapter_parameters(model.unet, kind)
        perturbed(nn.ParameterList(parameters.values()))
        write_tensors({name: p.detach() for name, p in parameters.items()},
                      tmp_path / kind / "adapter.safetensors")
    a, other = torch.randn(1, 5), torch.randn(1, 5)
    before = dreamvideo.sample_dreamvideo(model, "a * is circling", a, 3.0, **arguments)
    fresh = tiny_model()
    dreamvideo.load_dreamvideo(fresh, *(tmp_path / each for each in ("word", "identity", "motion")))
    after = dreamvideo.sample_dreamvideo(fresh, "a * is circling", a, 3.0, **arguments)
    assert torch.equal(before, after)
    changed = dreamvideo.sample_dreamvideo(fresh, "a * is circling", other, 3.0, **arguments)
    assert not torch.equal(before, changed)
    with pytest.raises(UserError, match="not what --stage dreamvideo-identity trains"):
        dreamvideo.load_dreamvideo(tiny_model(), tmp_path / "word", tmp_path / "motion",
                                   tmp_path / "motion")


# ------------------------------------------------------------------ they learn

def test_every_system_has_its_stages():
    assert len(systems.COMPARED) == 9 and not systems.COMPARED.keys() & STAGES.keys()
    assert systems.DIFFDIRECTOR.recipe.tiny["least_timestep"] == TEMPORAL.tiny["least_timestep"]


def test_the_originals_own_settings():
    """MotionDirector_train.py, and VGen's configurations of DreamVideo."""
    def of(name: str, *settings: str) -> list:
        return [systems.COMPARED[name].recipe.full[each].value for each in settings]
    for dual_path in ("diffdirector", "motiondirector"):
        assert of(dual_path, "switch_off") == [0.2]
    for name, rate in (("diffdirector", 1e-5), ("motiondirector", 5e-5)):
        assert of(name, "spatial_learning_rate") == of(f"{name}-spatial", "learning_rate") == [rate]
    assert of("dreamvideo-word", "learning_rate", "steps", "batch_size") == [1e-4, 3000, 4]
    assert of("dreamvideo-identity", "learning_rate", "steps", "batch_size") == [1e-5, 1000, 4]
    assert of("dreamvideo-motion", "learning_rate", "steps") == [1e-5, 3000]
    assert of("dreamvideo-motion", "drop_text", "drop_guide") == [0.5, 0.5]


def test_dreamvideo_has_vgens_optimizer():
    """AdamW, with PyTorch's betas; all else has Lion."""
    parameter = nn.Parameter(torch.ones(1))
    for name, stage in (STAGES | systems.COMPARED).items():
        settings = {key: setting.value for key, setting in stage.recipe.full.items()}
        optimizer = stage.optimizer({"a.temporal.up.weight": parameter}, settings)
        vgen = name.startswith("dreamvideo")
        assert type(optimizer) is (torch.optim.AdamW if vgen else Lion)
        assert optimizer.defaults["betas"] == (
            (0.9, 0.999) if vgen or name.startswith("diffdirector") else (0.9, 0.99))
        assert optimizer.defaults["weight_decay"] == (0.0 if vgen else 0.1)


@pytest.mark.parametrize("name", list(systems.COMPARED))
def test_it_learns(model, tmp_path, name):
    """On one draw of the tiny example, its loss falls."""
    torch.manual_seed(0)
    stage = systems.COMPARED[name]
    settings = stage.recipe.values(model.unet) | SMALL | {
        "switch_off": 0.0, "drop_text": 0.0, "learning_rate": 1e-3, "spatial_learning_rate": 1e-3}
    if name == "dreamvideo-identity":
        learn_word(model, tmp_path / "word")
    args = Namespace(data=None, model=TINY, prompt=None, resume=False, seed=0, output=tmp_path,
                     word=tmp_path / "word", clip=TINY / "clip")
    job = stage.prepare(model, settings, args)
    parameters = stage.parameters(model)
    train_only(model.unet, parameters)
    optimizer = stage.optimizer(parameters, settings)
    model.unet.eval()                                       # no dropout: one draw, one loss
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        losses.append(0.0)

        def backward(loss):
            losses[-1] += loss.item()
            loss.backward()
        stage.step(model.unet, *job.inputs, settings, Draws(0), backward)
        optimizer.step()
    print(name, [f"{loss:.4f}" for loss in losses])
    assert losses[-1] < losses[0]


def learn_word(model, folder):
    vector = model.text_encoder.token_embedding.weight[5].detach().clone()
    write_tensors({"word": vector}, folder / "adapter.safetensors")


@pytest.mark.parametrize("name, saved", [
    ("diffdirector", lambda key: "motion_modules" in key and "lora" in key),
    ("dreamvideo-word", lambda key: key == "word")])
def test_command(monkeypatch, tmp_path, name, saved):
    """Through train.py: as the method's own stages, resumed too."""
    def call(*flags):
        monkeypatch.setattr(sys, "argv", [
            "train.py", "--stage", name, "--output", str(tmp_path), "--sheet-every", "0",
            "--frames", "2", "--size", "32", *flags])
        train.main()
        return load_file(tmp_path / "adapter.safetensors")
    call("--steps", "1")
    resumed = call("--steps", "2", "--resume")
    assert resumed and all(map(saved, resumed))
    fresh = call("--steps", "2")
    assert all(torch.equal(resumed[key], fresh[key]) for key in fresh)


def test_another_file_is_no_word(model, tmp_path):
    with pytest.raises(UserError, match="--word .*run --stage dreamvideo-word first"):
        dreamvideo.read_word(tmp_path, model)
    for name in ("other", "word"):      # the second has another model's width
        write_tensors({name: torch.ones(2)}, tmp_path / "adapter.safetensors")
        with pytest.raises(UserError, match="not what --stage dreamvideo-word trains"):
            dreamvideo.read_word(tmp_path, model)


def test_the_half_without_a_prompt_has_no_guide(model, monkeypatch):
    """It comes first in the batch (customttt.diffusion.guided_noise)."""
    adapters.put_motion(model.unet, 5)
    first = next(each for each in adapters.adapters(model.unet) if each.condition_linear)
    monkeypatch.setattr(dreamvideo, "sample_video", lambda *_, **__: first.condition)
    a = torch.ones(1, 5)
    assert torch.equal(dreamvideo.sample_dreamvideo(model, "a *", a, 3.0), torch.cat([0 * a, a]))


@pytest.mark.parametrize("drop_text", [0.0, 1.0])
@pytest.mark.parametrize("drop_guide", [0.0, 1.0])
def test_text_and_guide_are_dropped(drop_text, drop_guide):
    class Seen(nn.Module):
        def __init__(self):
            super().__init__()
            self.adapter = adapters.Adapter(4, 5)

        def forward(self, x, t, text):
            self.seen = text, self.adapter.condition
            return x
    unet, a, c = Seen(), torch.rand(1, 3, 5) + 1, torch.ones(1, 7, 2)
    settings = {"least_timestep": 0, "drop_text": drop_text, "drop_guide": drop_guide}
    dreamvideo.motion_step(unet, torch.zeros(1, 4, 3, 8, 8), c, a, 0 * c, settings, Draws(0),
                           backward=lambda loss: None)
    text, guide = unet.seen
    assert torch.equal(text, (1 - drop_text) * c)
    assert any(torch.equal(guide, (1 - drop_guide) * a[:, k]) for k in range(3))


def test_the_identity_adapter_learns_with_the_word(model, tmp_path):
    stage = systems.COMPARED["dreamvideo-identity"]
    vector = model.text_encoder.token_embedding.weight[5].detach() + 1
    write_tensors({"word": vector}, tmp_path / "adapter.safetensors")
    args = Namespace(data=None, model=TINY, prompt=None, resume=False, seed=0,
                     output=tmp_path / "out", word=tmp_path)
    job = stage.prepare(model, stage.recipe.values(model.unet) | {"size": 32}, args)
    fresh = tiny_model()
    dreamvideo.put_word(fresh, vector)
    assert torch.equal(job.inputs[1][:1], fresh.encode_text(["a *"]))


@pytest.mark.parametrize("stage", [systems.DIFFDIRECTOR, systems.MOTIONDIRECTOR])
def test_the_two_paths_have_their_own_rates(stage):
    spatial, temporal = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimizer = stage.optimizer(
        {"a.spatial.up.weight": spatial, "b.temporal.up.weight": temporal},
        {name: setting.value for name, setting in stage.recipe.full.items()} | {
            "learning_rate": 2, "spatial_learning_rate": 3})
    groups = optimizer.param_groups
    assert [([id(p) for p in each["params"]], each["lr"]) for each in groups] == [
        ([id(temporal)], 2), ([id(spatial)], 3)]
