"""The steps of the three stages: what runs, what is on, what gets gradients, what moves."""

import inspect

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from customttt import diffusion
from customttt.diffusion import TIMESTEPS, add_noise, alpha_bar, ddim_step, ddim_timesteps
from customttt.draws import Draws, stream_seed
from customttt.errors import UserError
from customttt.files.load import load_model
from customttt.files.lora_files import find_lora, load_lora, save_lora
from customttt.files.reading import read_metadata
from customttt.files.save import save_model
from customttt.lion import Lion
from customttt.lora import (LoRA, add_lora, lora_on, lora_parameters, merge_lora, targets,
                            wrapped)
from customttt.losses import debias, noise_loss, preservation_loss
from customttt.media.clips import write_frames
from customttt.recipes import SAMPLING, SPATIAL, TEMPORAL, TTT
from customttt.run.data import Texts
from customttt.run.loop import autocast
from customttt.run.stage import train_only
from customttt.sampling import sample_latents, sample_video
from customttt.stages import STAGES, spatial_step, temporal_step, ttt_step

FRAMES = 3
PLACES = {"spatial": "spatial_transformers", "temporal": "motion_modules"}
LAYERS = {"spatial": (2, 6), "temporal": (2, 5)}
TRAINED = {"spatial": ("spatial",), "temporal": ("temporal",), "ttt": ("spatial", "temporal")}


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def put_loras(model, *names: str, dropout: float = 0.0) -> None:
    """LoRAs of these names on the paper's layers, with weights that matter already."""
    for name in names:
        kind = name.removesuffix("_teacher")
        for p in add_lora(model.unet, kind, LAYERS[kind], rank=4, dropout=dropout, name=name):
            nn.init.normal_(p, std=0.2)


def a_step(model, stage: str, dropout: float = 0.0, **changes):
    """(parameters, step(draws, backward)), as train.py has them."""
    put_loras(model, *TRAINED[stage], dropout=dropout)
    text = model.encode_text(["a star"])
    if stage == "spatial":
        settings = SPATIAL.values(model.unet) | {"batch_size": 2} | changes
        z, c = random(2, 4, 1, 8, 8), text.repeat(2, 1, 1)
        return parameters(model, stage), lambda *also: spatial_step(
            model.unet, z, c, settings, *also)
    if stage == "temporal":
        settings = TEMPORAL.values(model.unet) | {"least_timestep": 0} | changes
        z = random(1, 4, FRAMES, 8, 8)
        return parameters(model, stage), lambda *also: temporal_step(
            model.unet, z, text, settings, *also)
    put_loras(model, "spatial_teacher", "temporal_teacher", dropout=dropout)
    settings = TTT.values(model.unet) | {"reference_steps": 2, "sampling_steps": 10,
                                         "reference_guidance": 2.0, "least_timestep": 0} | changes
    texts = Texts(*model.encode_text(["a star is moving", "a star", "a thing is moving", ""])
                  .split(1))
    return parameters(model, stage), lambda *also: ttt_step(
        model.unet, texts, (1, 4, FRAMES, 8, 8), settings, *also)


def parameters(model, stage: str) -> list[nn.Parameter]:
    trained = STAGES[stage].parameters(model)
    train_only(model.unet, trained)
    return list(trained.values())


def losses_of(step, seed: int = 0) -> list[float]:
    """One step with the draws of that seed; the gradients stay."""
    values = []

    def backward(loss):
        loss.backward()
        values.append(loss.item())
    step(Draws(seed), backward)
    return values


def names_of(stage: str) -> set[str]:
    """The parameters that a stage trains, spelled from the paper's placement, not from lora.py."""
    linears = [f"{attention}.{part}" for attention in ("attn1", "attn2")
               for part in ("to_q", "to_k", "to_v", "to_out")] + ["ff.value_gate", "ff.out"]
    return {f"layers.{i}.{PLACES[kind]}.{j}.block.{linear}.loras.{kind}.{part}.weight"
            for kind in TRAINED[stage] for i in LAYERS[kind] for j in range(2 if i == 2 else 3)
            for linear in linears for part in ("down", "up")}


@pytest.fixture
def calls(model):
    """Every run of the UNet: (LoRAs that are on, motion, timestep), and what it was given."""
    recorded = []

    def note(unet, args, kwargs):
        latents, timesteps, _, motion = (*args, kwargs.get("motion", True))[:4]
        on = {name for _, module in wrapped(unet) for name in module.on}
        recorded.append((on, motion, timesteps[0].item(), latents.detach()))
    model.unet.register_forward_pre_hook(note, with_kwargs=True)
    return recorded


@pytest.mark.parametrize("stage", TRAINED)
def test_gradients_reach_the_trained_loras_and_nothing_else(model, stage):
    parameters, step = a_step(model, stage)
    before = {name: p.detach().clone() for name, p in model.unet.named_parameters()}
    optimizer = Lion(parameters, lr=1e-3)
    losses_of(step)
    with_gradient = {name for name, p in model.unet.named_parameters() if p.grad is not None}
    assert with_gradient == names_of(stage)
    assert len(with_gradient) == (200 if stage == "ttt" else 100)
    assert all(p.grad.abs().max() > 0 for p in parameters)
    optimizer.step()
    moved = {name for name, p in model.unet.named_parameters() if not torch.equal(p, before[name])}
    assert moved == names_of(stage)
    assert all(p.grad is None for p in (*model.vae.parameters(), *model.text_encoder.parameters()))


def test_teachers_do_not_move_by_one_bit_while_the_student_does(model):
    parameters, step = a_step(model, "ttt", dropout=0.1)
    model.unet.train()
    teachers = {name: p.detach().clone() for name, p in model.unet.named_parameters()
                if "_teacher." in name}
    students = [p.detach().clone() for p in parameters]
    optimizer = Lion(parameters, lr=1e-3)
    for seed in range(3):
        optimizer.zero_grad()
        losses_of(step, seed)
        optimizer.step()
    assert len(teachers) == 200
    assert all(torch.equal(p, teachers[name]) for name, p in model.unet.named_parameters()
               if name in teachers)
    assert not any(torch.equal(p, before) for p, before in zip(parameters, students))


def test_frames_are_independent_without_motion_modules_and_not_with_them(model):
    z, t, text = random(1, 4, FRAMES, 8, 8), torch.tensor([300]), model.encode_text(["a star"])
    changed = z.clone()
    changed[:, :, 1] += 1
    with torch.no_grad():
        one, other, mixed = (model.unet(x, t, text, motion=False)
                             for x in (z, changed, z[:, :, [2, 0, 1]]))
        together, moved = (model.unet(x, t, text, motion=True) for x in (z, changed))
    assert torch.equal(one[:, :, [0, 2]], other[:, :, [0, 2]])
    assert not torch.allclose(one[:, :, 1], other[:, :, 1], atol=1e-3)
    assert torch.allclose(one[:, :, [2, 0, 1]], mixed, atol=1e-6)
    assert (together[:, :, [0, 2]] - moved[:, :, [0, 2]]).abs().max() > 1e-4


@pytest.mark.parametrize("stage, runs", [("spatial", 0), ("temporal", 20)])
def test_the_spatial_stage_never_runs_a_motion_module(model, stage, runs):
    ran = []
    for layer in model.unet.layers:
        for module in layer.motion_modules:
            module.register_forward_hook(lambda *_: ran.append(1))
    a_step(model, stage)[1](Draws(0), lambda loss: None)
    assert len(ran) == runs         # v3 has two in each of layers 0 to 3, three in each of 5 to 8


def test_each_call_of_the_join_has_exactly_its_loras_and_motion_modules(model, calls):
    _, step = a_step(model, "ttt")
    losses_of(step)
    appearance, motion = ({"spatial_teacher"}, False), ({"temporal_teacher"}, True)
    student = ({"spatial", "temporal"}, True)
    assert [call[:2] for call in calls] == [appearance] * 2 + [motion] * 2 + [student] * 2
    assert all(module.on <= {"spatial", "temporal", "spatial_teacher", "temporal_teacher"}
               and len(module.on) == 2 for _, module in wrapped(model.unet))  # as it was before


def test_a_loss_is_handed_over_before_the_next_begins(model, calls):
    """So the graph of the first is gone when the second's is made."""
    at = []
    a_step(model, "ttt")[1](Draws(0), lambda loss: at.append(len(calls)))
    assert at == [5, 6]


def reference_latents(step, monkeypatch, seed: int = 0) -> list[torch.Tensor]:
    """z_s and z_t of one step."""
    drawn = []
    with monkeypatch.context() as patch:
        patch.setattr("customttt.stages.preservation_loss",
                      lambda unet, z_ref, *rest: drawn.append(z_ref))
        step(Draws(seed), lambda loss: None)
    return drawn


@pytest.mark.parametrize("disturbed, appearance_changes, motion_changes", [
    ("spatial_teacher", True, False), ("temporal_teacher", False, True),
    ("spatial", False, False), ("temporal", False, False)])
def test_reference_latents_depend_on_their_own_teacher_alone(
        model, monkeypatch, disturbed, appearance_changes, motion_changes):
    _, step = a_step(model, "ttt")
    z_s, z_t = reference_latents(step, monkeypatch)
    for parameter in lora_parameters(model.unet, disturbed).values():
        nn.init.normal_(parameter, std=0.3)
    other_s, other_t = reference_latents(step, monkeypatch)
    assert torch.equal(z_s, other_s) != appearance_changes
    assert torch.equal(z_t, other_t) != motion_changes


@pytest.mark.parametrize("noise, same", [("one", True), ("independent", False)])
def test_reference_noise_says_whether_the_appearance_frames_start_alike(model, calls, noise, same):
    a_step(model, "ttt", reference_noise=noise)[1](Draws(0), lambda loss: None)
    appearance, motion = calls[0][3], calls[2][3]
    assert torch.equal(appearance[:, :, :1].expand_as(appearance), appearance) == same
    assert not torch.equal(motion[:, :, :1].expand_as(motion), motion)


@pytest.mark.parametrize("steps", [1, 3])
def test_reference_timestep_next_is_one_sampling_step_back_up(model, calls, steps):
    """The first of ten steps 901, 801, ..., 1; the student sees the last of them again."""
    _, step = a_step(model, "ttt", reference_timestep="next", reference_steps=steps)
    step(Draws(0), lambda loss: None)
    schedule = ddim_timesteps(10)[:steps]
    assert [t for _, _, t, _ in calls] == schedule * 2 + schedule[-1:] * 2


def test_reference_timestep_next_stops_at_the_noise_of_its_timestep(model, calls, monkeypatch):
    """One step of the schedule 901, 801, ... ends at 801, not at a clean latent."""
    _, step = a_step(model, "ttt", reference_timestep="next", reference_steps=1)
    step(Draws(0), lambda loss: None)
    noise = calls[0][3][:1]
    monkeypatch.setattr(diffusion, "guided_noise", lambda unet, x_t, *_: torch.zeros_like(x_t))
    z_s, _ = reference_latents(step, monkeypatch)
    assert torch.equal(z_s, ddim_step(torch.zeros_like(noise), 901, 801, noise))


def test_reference_timestep_uniform_draws_from_the_whole_schedule(model, calls):
    _, step = a_step(model, "ttt")
    for seed in range(3):
        step(Draws(seed), lambda loss: None)
    assert [t for _, _, t, _ in calls[:2]] == ddim_timesteps(2)
    drawn = {t for on, _, t, _ in calls if "spatial" in on}
    assert len(drawn) == 6 and all(0 <= t < TIMESTEPS for t in drawn)


@pytest.mark.parametrize("stage", ["temporal", "ttt"])
def test_least_timestep_bounds_what_is_learned_from(model, calls, stage):
    _, step = a_step(model, stage, least_timestep=TIMESTEPS - 3)
    for seed in range(4):
        step(Draws(seed), lambda loss: None)
    drawn = {t for on, _, t, _ in calls if on & set(TRAINED[stage])}
    assert len(drawn) > 1 and drawn <= {997, 998, 999}


def test_debiased_adds_the_debiased_term(model):
    text, z, [plain] = model.encode_text(["a star"]), random(1, 4, FRAMES, 8, 8), losses_of(
        a_step(model, "temporal", debiased=False)[1])
    both = []
    temporal_step(model.unet, z, text, TEMPORAL.values(model.unet) | {"least_timestep": 0},
                  Draws(0), lambda loss: both.append(loss.item()))
    draw = Draws(0)                 # the same draws again: noise, timestep, anchor
    eps, t, k = draw.noise_like(z), draw.timesteps(z), draw.frame(z)
    with torch.no_grad():
        eps_hat = model.unet(add_noise(z, eps, t), t, text)
    assert plain == pytest.approx(noise_loss(eps_hat, eps).item(), rel=1e-6)
    term = noise_loss(debias(eps_hat, k), debias(eps, k)).item()
    assert both[0] - plain == pytest.approx(term, rel=1e-5)


def test_sampling_takes_nine_prompts(model):
    """The paper's probe: another prompt for one layer. Layers 3 and 5 read no text."""
    def sample(prompts, guidance):
        *_, z = sample_latents(model, prompts, steps=2, guidance=guidance, frames=2, size=64)
        return z

    for guidance in (1, 3):
        plain = sample("a red star", guidance)
        probed = {i: sample(["a blue fish" if i == k else "a red star" for k in range(9)], guidance)
                  for i in range(9)}
        changed = {i for i, z in probed.items() if (z - plain).abs().max() > 1e-4}
        assert changed == {0, 1, 2, 4, 6, 7, 8}
        assert torch.allclose(probed[3], plain, atol=1e-5)


def test_streams_are_apart():
    """What one stream draws does not depend on how much another has drawn, nor equals it."""
    one, other, z = Draws(0), Draws(0), torch.zeros(1, 4, 2, 8, 8)
    one.some(10, 5)
    assert torch.equal(one.noise_like(z), other.noise_like(z))
    assert not torch.equal(one.noise_like(z), Draws(1).noise_like(z))
    seeds = {stream_seed(0, name) for name in ("lora", "latents", "data", "noise", "dropout",
                                               "sheet")}
    assert len(seeds) == 6 and 0 not in seeds


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("k", [0, 2])
def test_debias_is_motiondirectors_formula(beta, k):
    eps = random(2, 4, FRAMES, 8, 8)
    expected = torch.stack([(beta ** 2 + 1) ** 0.5 * eps[:, :, i] - beta * eps[:, :, k]
                            for i in range(FRAMES)], dim=2)
    assert torch.allclose(debias(eps, k, beta), expected, atol=1e-6)
    still = eps[:, :, :1].expand_as(eps)        # the same in every frame: shrunk, not removed
    shrunk = ((beta ** 2 + 1) ** 0.5 - beta) * still
    assert torch.allclose(debias(still, k, beta), shrunk, atol=1e-6)


def test_debias_of_independent_noise_keeps_what_it_should():
    """beta = 1: sqrt(2)^2 + 1 = 3 times the variance off the anchor, (sqrt(2) - 1)^2 on it."""
    phi = debias(random(1, 4, 2, 256, 256), k=0)
    assert phi[:, :, 1].var().item() == pytest.approx(3, rel=0.02)
    assert phi[:, :, 0].var().item() == pytest.approx((2 ** 0.5 - 1) ** 2, rel=0.02)


@pytest.mark.parametrize("stage", TRAINED)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gradient_checkpointing_changes_no_gradient(model, stage, precision):
    """In the join, a recomputation that found other LoRAs on would change them."""
    parameters, step = a_step(model, stage, dropout=0.1)
    model.unet.train()
    ran = []
    model.unet.layers[8].resnets[0].register_forward_pre_hook(lambda *_: ran.append(1))
    results = []
    for model.unet.gradient_checkpointing in (False, True):
        torch.manual_seed(0)        # dropout
        for p in parameters:
            p.grad = None
        with autocast(torch.device("cpu"), precision):
            values = losses_of(step)
        results.append((values, [p.grad for p in parameters], len(ran)))
    (values, gradients, runs), (again, recomputed, all_runs) = results
    assert all_runs - runs == runs + len(values)        # each loss ran the resnet once more
    assert again == values
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-7) for a, b in zip(gradients, recomputed))


def test_a_lora_has_dropout_where_its_model_trains(model):
    put_loras(model, "spatial", dropout=0.5)
    inputs = torch.randn(1, 4, 1, 8, 8), torch.tensor([5]), torch.randn(1, 7, 96)
    for training in (False, True):
        model.unet.train(training)
        with torch.no_grad():
            a, b = model.unet(*inputs, motion=False), model.unet(*inputs, motion=False)
        assert torch.equal(a, b) is not training
    model.unet.eval()
    put_loras(model, "spatial_teacher", dropout=0.5)
    with torch.no_grad():
        assert torch.equal(*(model.unet(*inputs, motion=False) for _ in range(2)))


def test_lora_on_puts_back_what_was_on_even_after_an_error(model):
    put_loras(model, "spatial", "temporal")
    with pytest.raises(ZeroDivisionError), lora_on(model.unet, "spatial"):
        assert {name for _, m in wrapped(model.unet) for name in m.on} == {"spatial"}
        1 / 0
    assert {name for _, m in wrapped(model.unet) for name in m.on} == {"spatial", "temporal"}


def test_a_name_that_no_lora_has_is_not_left_out(model, tmp_path):
    put_loras(model, "spatial")
    with pytest.raises(ValueError, match="no LoRA called temporl to save"):
        save_lora(model.unet, tmp_path / "a.safetensors", names=("spatial", "temporl"))
    assert not list(tmp_path.iterdir())


def test_loading_draws_no_random_numbers(model, tmp_path):
    put_loras(model, "spatial")
    save_lora(model.unet, tmp_path / "a.safetensors")
    before = torch.get_rng_state()
    load_lora(model.unet, tmp_path / "a.safetensors")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_folder_with_pefts_folder_in_it_names_that(tmp_path):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=f"is in a folder of it; give {tmp_path / 'unet'}"):
        find_lora(tmp_path, "--lora")


def test_what_is_there_is_said_where_nothing_can_be_saved(model, tmp_path):
    put_loras(model, "spatial")
    with pytest.raises(ValueError, match=r"no LoRA called motion to save; the UNet has \['spat"):
        save_lora(model.unet, tmp_path / "motion.safetensors", names=("motion",))


def test_what_was_loaded_is_saved_with_the_rest(model, tmp_path):
    put_loras(model, "spatial")
    save_lora(model.unet, tmp_path / "a.safetensors")
    load_lora(model.unet, tmp_path / "a.safetensors", name="again")
    with pytest.raises(ValueError, match="holds spatial and again"):
        save_lora(model.unet, tmp_path / "b.safetensors")
    fresh = load_model("weights/tiny")
    load_lora(fresh.unet, tmp_path / "a.safetensors")
    put_loras(fresh, "temporal")
    save_lora(fresh.unet, tmp_path / "c.safetensors")
    before, after = (load_file(tmp_path / f"{name}.safetensors") for name in "ac")
    assert len(after) > len(before)
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_two_loras_of_one_module_are_not_saved_as_one(model, tmp_path):
    put_loras(model, "spatial", "spatial_teacher")
    with pytest.raises(ValueError, match="holds spatial and spatial_teacher: save each to a file"):
        save_lora(model.unet, tmp_path / "a.safetensors", names=("spatial", "spatial_teacher"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("names", ["spatial", ["spatial"], map(str, ["spatial"])])
def test_names_of_what_is_saved_are_whole_names(model, tmp_path, names):
    put_loras(model, "spatial", "temporal")
    save_lora(model.unet, tmp_path / "a.safetensors", names=names)
    saved = load_file(tmp_path / "a.safetensors")
    assert len(saved) == len(lora_parameters(model.unet, "spatial"))
    assert all("spatial_transformers" in key for key in saved)
    with pytest.raises(ValueError, match="no LoRA called my spatial to save"):
        save_lora(model.unet, tmp_path / "b.safetensors", names="my spatial")


@pytest.mark.parametrize("layers, rank, dropout, name, error", [
    ((2, 6), 4, 0.0, "taken", ValueError), ((2,), 4, 0.0, "v1.0", ValueError),
    ((2,), 4, 0.0, "keys", ValueError), ((2,), 4, 0.0, "training", ValueError),
    ((2,), -1, 0.0, "new", RuntimeError), ((2,), 4, 1.5, "new", ValueError)])
def test_a_lora_that_cannot_be_put_leaves_the_unet_as_it_was(model, layers, rank, dropout, name,
                                                             error):
    add_lora(model.unet, "spatial", (6,), rank=4, name="taken")
    before = list(model.unet.state_dict())
    with pytest.raises(error):
        add_lora(model.unet, "spatial", layers, rank, dropout, name)
    assert list(model.unet.state_dict()) == before


def test_a_lora_file_that_cannot_be_put_leaves_both_as_they_were(model, tmp_path):
    """Its name is taken on the text encoder, and free on the UNet."""
    file, stem = tmp_path / "a.safetensors", "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    put_loras(model, "spatial")
    save_lora(model.unet, file)
    width = model.text_encoder.config.width
    save_file(load_file(file) | {f"{stem}.lora_down.weight": torch.ones(2, width),
                                 f"{stem}.lora_up.weight": torch.ones(width, 2)}, file)
    load_lora(model.unet, file, name="first", text_encoder=model.text_encoder)
    merge_lora(model.unet)
    with pytest.raises(ValueError, match="has a LoRA 'first' already"):
        load_lora(model.unet, file, name="first", text_encoder=model.text_encoder)
    assert not list(wrapped(model.unet))


def test_the_default_dtype_changes_nothing(model):
    before = list(sample_latents(model, "a star", steps=1, frames=2, size=32, seed=3))
    noise = Draws(3).noise((2, 2), torch.device("cpu"))
    pixels = random(1, 3, 32, 32)
    z = model.vae.encode(pixels, torch.Generator().manual_seed(0))
    try:
        torch.set_default_dtype(torch.float64)
        after = list(sample_latents(model, "a star", steps=1, frames=2, size=32, seed=3))
        assert Draws(3).noise((2, 2), torch.device("cpu")).equal(noise)
        assert add_lora(model.unet, "spatial", (2,), rank=4)[0].dtype == torch.float32
        assert model.vae.encode(pixels, torch.Generator().manual_seed(0)).allclose(z, atol=1e-5)
    finally:
        torch.set_default_dtype(torch.float32)
    assert after[0].dtype == torch.float32 and torch.allclose(before[0], after[0], atol=1e-5)


def test_a_compiled_unet_saves_and_loads_as_the_plain_one(model, tmp_path):
    put_loras(model, "spatial")
    compiled = torch.compile(model.unet, backend="eager")
    for unet, name in ((model.unet, "a"), (compiled, "b")):
        save_lora(unet, tmp_path / f"{name}.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert load_lora(compiled, tmp_path / "a.safetensors").tensors > 0
    fresh = load_model("weights/tiny")
    fresh.unet = torch.compile(fresh.unet, backend="eager")
    save_model(fresh, tmp_path / "m", torch.float32)
    assert load_model(tmp_path / "m").checksum() == load_model("weights/tiny").checksum()
    save_file({f"_orig_mod.{key}": tensor for key, tensor in load_file(
        tmp_path / "a.safetensors").items()}, tmp_path / "c.safetensors")
    assert load_lora(fresh.unet, tmp_path / "c.safetensors").tensors > 0


def test_metadata_may_hold_what_json_does_not(model, tmp_path):
    put_loras(model, "spatial")
    save_lora(model.unet, tmp_path / "a.safetensors", {"file": tmp_path, 1: 2, "format": "mine"})
    metadata = read_metadata(tmp_path / "a.safetensors")
    assert metadata == {"file": f'"{tmp_path}"', "1": "2", "format": "pt"}


def test_a_model_with_loras_is_not_saved_as_a_folder(model, tmp_path):
    put_loras(model, "spatial")
    with pytest.raises(ValueError, match="has LoRAs on it: merge them first"):
        save_model(model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_saved_lora_has_its_scale_in_it(model, tmp_path):
    put_loras(model, "spatial")
    target, wrapper = next(wrapped(model.unet))
    for _, each in wrapped(model.unet):
        each.loras["spatial"].scale = 0.5
    save_lora(model.unet, tmp_path / "a.safetensors", names=("spatial",))
    up = load_file(tmp_path / "a.safetensors")[f"{target}.lora_up.weight"]
    assert torch.equal(up, 0.5 * wrapper.loras["spatial"].up.weight)


def test_what_the_public_names_take(model):
    """All arguments in order, as `sample_latents` does; a list of prompts, and not one string."""
    in_order = sample_video(model, "a star", 1, 3.0, 2, 32, 5)
    assert torch.equal(in_order, sample_video(model, "a star", steps=1, guidance=3.0, frames=2,
                                              size=32, seed=5))
    with pytest.raises(ValueError, match="a list of strings; got one string"):
        model.encode_text("a star")


@pytest.mark.parametrize("step", [spatial_step, temporal_step])
def test_an_image_or_clip_keeps_its_prompt(step):
    class Silent(Draws):
        def noise_like(self, z):
            return torch.zeros_like(z)

    def unet(x_t, t, c, motion=True):
        z = x_t.mean((1, 2, 3, 4)) / alpha_bar(t).sqrt()
        assert torch.allclose(z, c.mean((1, 2)), atol=1e-4)
        seen.update(z.round().tolist())
        return x_t
    z, c, seen = torch.arange(1., 4).view(3, 1, 1, 1, 1), torch.arange(1., 4).view(3, 1, 1), set()
    settings = {"batch_size": 2, "least_timestep": 0, "debiased": True}
    for seed in range(8):
        step(unet, z.expand(3, 4, 2, 8, 8), c.expand(3, 7, 5), settings, Silent(seed),
             lambda loss: None)
    assert seen == {1, 2, 3}


def test_a_preservation_loss_noises_from_where_its_reference_stands():
    z, eps, t, seen = random(1, 4, 2, 4, 4), random(1, 4, 2, 4, 4, seed=1), torch.tensor([700]), []
    preservation_loss(lambda x_t, *_: seen.append(x_t) or x_t, z, None, eps, t, t_ref=300)
    assert torch.equal(seen[0], add_noise(z, eps, t, 300))
    assert not torch.allclose(seen[0], add_noise(z, eps, t))


def test_references_are_guided_and_hold_no_graph(model):
    put_loras(model, "spatial", "temporal", "spatial_teacher", "temporal_teacher")
    texts = Texts(*model.encode_text(["a star is moving", "a star", "a thing", ""]).split(1))
    low, high = (ttt_step(model.unet, texts, (1, 4, 2, 8, 8), TTT.values(model.unet) | {
        "reference_steps": 1, "reference_guidance": guidance}, Draws(0), lambda loss: None)
        for guidance in (1.0, 4.0))
    for a, b in zip(low, high):
        assert not torch.allclose(a, b, atol=1e-3) and not a.requires_grad


def test_dropout_is_on_the_update_and_down_starts_with_one_by_the_rank():
    lora = LoRA(nn.Linear(256, 96), rank=64, dropout=0.5)
    assert lora.down.weight.std().item() == pytest.approx(1 / 64, rel=0.05)
    nn.init.normal_(lora.up.weight)
    x = random(8, 256)
    whole, dropped = lora.eval()(x), lora.train()(x)
    zero = dropped == 0
    assert 0.3 < zero.float().mean() < 0.7
    assert torch.allclose(dropped[~zero], 2 * whole[~zero], rtol=1e-4)


def test_convolutions_of_motion_modules_are_none(model):
    assert targets(model.unet, "temporal", (2, 5), convolutions=True) == targets(
        model.unet, "temporal", (2, 5))


def test_a_stream_is_of_its_seed_and_name():
    seeds = {stream_seed(seed, name) for seed in (0, 1) for name in ("data", "noise")}
    assert len(seeds) == 4


def test_the_negative_prompt_counts(model):
    def sampled(negative):
        *_, z = sample_latents(model, "a star", steps=1, guidance=3, frames=2, size=32,
                               negative_prompt=negative)
        return z
    assert not torch.allclose(sampled(""), sampled("a red ball"), atol=1e-3)


def test_the_join_has_its_prompts_and_its_noise_since_the_reference(model, monkeypatch):
    """Each teacher reads its own prompt, the student the target; with --reference-timestep next
    both references stand at 801, and the student is to find what was added since."""
    _, step = a_step(model, "ttt", reference_timestep="next", reference_steps=1)
    target, appearance, motion, empty = model.encode_text(
        ["a star is moving", "a star", "a thing is moving", ""]).split(1)
    ends, read, losses = [], [], []
    monkeypatch.setattr("customttt.stages.ddim", lambda unet, x, text, empty, *of, motion, t_end:
                        ends.append(t_end) or read.append((text, empty)) or iter([x]))
    monkeypatch.setattr("customttt.stages.preservation_loss",
                        lambda unet, z, c, eps, t, t_ref=-1: losses.append((c, t.item(), t_ref)))
    step(Draws(0), lambda loss: None)
    assert ends == [801, 801] and [each[1:] for each in losses] == [(901, 801)] * 2
    for (text, none), right in zip(read, (appearance, motion)):
        assert torch.equal(text, right) and torch.equal(none, empty)
    assert all(torch.equal(c, target) for c, _, _ in losses)


def test_a_loaded_model_is_in_eval_mode(model):
    """So that a LoRA that is put on it has no dropout where it samples."""
    assert not any(each.training for part in (model.unet, model.vae, model.text_encoder)
                   for each in part.modules())


def test_loras_merge_into_half_precision_by_way_of_fp32(model):
    put_loras(model, "spatial")
    model.unet.bfloat16()
    target, wrapper = next(wrapped(model.unet))
    base, lora = wrapper.base.weight.float(), wrapper.loras["spatial"]
    expected = (base + lora.up.weight.float() @ lora.down.weight.float()).bfloat16()
    merge_lora(model.unet)
    assert torch.equal(model.unet.get_submodule(target).weight, expected)
    assert all(p.dtype == torch.bfloat16 for p in model.unet.parameters())


def test_what_is_not_given_from_python_is_the_supplements():
    def defaults(function) -> dict:
        return {name: each.default for name, each in inspect.signature(function).parameters.items()}
    sampling = {name: setting.value for name, setting in SAMPLING.full.items()}
    assert defaults(sample_latents).items() >= {
        "steps": sampling["sampling_steps"], "seed": 0, "motion": True,
        **{name: sampling[name] for name in ("guidance", "frames", "size")}}.items()
    assert defaults(write_frames)["fps"] == sampling["fps"]
    stage = {name: setting.value for name, setting in SPATIAL.full.items()}
    assert defaults(add_lora).items() >= {name: stage[name] for name in ("rank", "dropout")}.items()
    assert defaults(Lion)["betas"] == stage["betas"]
    assert defaults(Lion)["weight_decay"] == stage["weight_decay"]
