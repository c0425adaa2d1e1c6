"""The losses of the three stages: what runs, what is on, what gets gradients, what moves."""

import pytest
import torch
from torch import nn

from customttt import sampling
from customttt.diffusion import STEPS, add_noise, ddim_step, ddim_timesteps
from customttt.lion import Lion
from customttt.lora import active, adapted, add_lora
from customttt.losses import debias, debiased_noise_loss, noise_loss
from customttt.recipes import PAPER
from customttt.run.loop import autocast, trainable
from customttt.stages import TestTimeTraining as Joining, spatial_loss, temporal_loss

FRAMES = 3
PLACES = {"spatial": "spatial_transformers", "temporal": "motion_modules"}
LAYERS = {"spatial": (2, 6), "temporal": (2, 5)}
TRAINED = {"spatial": ("spatial",), "temporal": ("temporal",), "ttt": ("spatial", "temporal")}


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def adapters(model, *names: str, dropout: float = 0.0) -> list[nn.Parameter]:
    """Put adapters of these names on the paper's layers, with weights that matter already."""
    for name in names:
        kind = name.removesuffix("_reference")
        for p in add_lora(model.unet, kind, LAYERS[kind], rank=4, dropout=dropout, name=name):
            nn.init.normal_(p, std=0.2)
    return trainable(model.unet, tuple(name for name in names if "_" not in name))


def stage_losses(model, stage: str, dropout: float = 0.0, least_timestep: int = 0, **changes):
    """(parameters, function of a generator that yields the losses), as train.py has them."""
    text = model.encode_text(["a star"])
    if stage == "spatial":
        parameters, z = adapters(model, "spatial", dropout=dropout), random(2, 4, 1, 8, 8)
        return parameters, lambda g: spatial_loss(model.unet, z, text.repeat(2, 1, 1), 2, g)
    if stage == "temporal":
        parameters, z = adapters(model, "temporal", dropout=dropout), random(1, 4, FRAMES, 8, 8)
        return parameters, lambda g: temporal_loss(model.unet, z, text, True, least_timestep, g)
    parameters = adapters(model, "spatial_reference", "spatial", "temporal_reference", "temporal",
                          dropout=dropout)
    return parameters, joining(model, least_timestep=least_timestep, **changes).losses


def joining(model, **changes) -> Joining:
    settings = PAPER["ttt"] | {"reference_steps": 2, "sampling_steps": 10,
                               "reference_guidance": 2.0}
    texts = model.encode_text(["a star is moving", "a star", "a thing is moving", ""]).split(1)
    return Joining(model.unet, (1, 4, FRAMES, 8, 8), *texts, settings | changes)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def backward(losses) -> list[float]:
    values = []
    for loss in losses:
        loss.backward()
        values.append(loss.item())
    return values


def names_of(stage: str) -> set[str]:
    """The parameters that a stage trains, spelled from the issue's placement, not from lora.py."""
    linears = [f"{attention}.{part}" for attention in ("attn1", "attn2")
               for part in ("to_q", "to_k", "to_v", "to_out")] + ["ff.value_gate", "ff.out"]
    return {f"layers.{i}.{PLACES[kind]}.{j}.block.{linear}.adapters.{kind}.{part}.weight"
            for kind in TRAINED[stage] for i in LAYERS[kind] for j in range(2 if i == 2 else 3)
            for linear in linears for part in ("down", "up")}


@pytest.fixture
def calls(model):
    """Every run of the UNet: (adapters that are on, motion, timestep), and what it was given."""
    recorded = []

    def note(unet, args, kwargs):
        latents, timesteps, _, motion = (*args, kwargs.get("motion", True))[:4]
        on = {name for _, module in adapted(unet) for name in module.on}
        recorded.append((on, motion, timesteps[0].item(), latents.detach()))
    model.unet.register_forward_pre_hook(note, with_kwargs=True)
    return recorded


@pytest.mark.parametrize("stage", TRAINED)
def test_gradients_reach_the_trained_adapters_and_nothing_else(model, stage):
    parameters, losses = stage_losses(model, stage)
    before = {name: p.detach().clone() for name, p in model.unet.named_parameters()}
    optimizer = Lion(parameters, lr=1e-3)
    backward(losses(generator()))
    with_gradient = {name for name, p in model.unet.named_parameters() if p.grad is not None}
    assert with_gradient == names_of(stage)
    assert len(with_gradient) == (200 if stage == "ttt" else 100)
    assert all(p.grad.abs().max() > 0 for p in parameters)
    optimizer.step()
    moved = {name for name, p in model.unet.named_parameters() if not torch.equal(p, before[name])}
    assert moved == names_of(stage)
    assert all(p.grad is None for p in (*model.vae.parameters(), *model.text_encoder.parameters()))


def test_teachers_do_not_move_by_one_bit_while_the_student_does(model):
    parameters, losses = stage_losses(model, "ttt", dropout=0.1)
    model.unet.train()
    teachers = {name: p.detach().clone() for name, p in model.unet.named_parameters()
                if "_reference." in name}
    students = [p.detach().clone() for p in parameters]
    optimizer, g = Lion(parameters, lr=1e-3), generator()
    for _ in range(3):
        optimizer.zero_grad()
        backward(losses(g))
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
    list(stage_losses(model, stage)[1](generator()))
    assert len(ran) == runs         # v3 has two in each of layers 0 to 3, three in each of 5 to 8


def test_each_call_of_the_join_has_exactly_its_adapters_and_motion_modules(model, calls):
    *_, losses = stage_losses(model, "ttt")
    backward(losses(generator()))
    appearance, motion = ({"spatial_reference"}, False), ({"temporal_reference"}, True)
    student = ({"spatial", "temporal"}, True)
    assert [call[:2] for call in calls] == [appearance] * 2 + [student] + [motion] * 2 + [student]
    assert all(module.on <= {"spatial", "temporal", "spatial_reference", "temporal_reference"}
               and len(module.on) == 2 for _, module in adapted(model.unet))    # as it was before


def test_a_loss_is_yielded_before_the_next_begins(model, calls):
    *_, losses = stage_losses(model, "ttt")
    running = losses(generator())
    next(running)
    assert len(calls) == 3
    next(running)
    assert len(calls) == 6 and next(running, "over") == "over"


@pytest.mark.parametrize("disturbed, appearance_changes, motion_changes", [
    ("spatial_reference", True, False), ("temporal_reference", False, True),
    ("spatial", False, False), ("temporal", False, False)])
def test_a_reference_depends_on_its_own_adapter_alone(model, monkeypatch, disturbed,
                                                      appearance_changes, motion_changes):
    drawn, noised = [], Joining.noised

    def keep(self, z_f, t_f, generator):
        drawn.append(z_f)
        return noised(self, z_f, t_f, generator)
    monkeypatch.setattr(Joining, "noised", keep)
    *_, losses = stage_losses(model, "ttt")
    list(losses(generator()))
    for _, module in adapted(model.unet):
        if disturbed in module.adapters:
            nn.init.normal_(module.adapters[disturbed].up.weight, std=0.3)
    list(losses(generator()))
    assert torch.equal(drawn[0], drawn[2]) != appearance_changes
    assert torch.equal(drawn[1], drawn[3]) != motion_changes


@pytest.mark.parametrize("noise, same", [("one", True), ("independent", False)])
def test_reference_noise_says_whether_the_appearance_frames_start_alike(model, calls, noise, same):
    *_, losses = stage_losses(model, "ttt", reference_noise=noise)
    list(losses(generator()))
    appearance, motion = calls[0][3], calls[3][3]
    assert torch.equal(appearance[:, :, :1].expand_as(appearance), appearance) == same
    assert not torch.equal(motion[:, :, :1].expand_as(motion), motion)


@pytest.mark.parametrize("f", [1, 3])
def test_reference_timestep_next_is_one_sampling_step_back_up(model, calls, f):
    """The first f of ten steps 901, 801, ..., 1; the student sees the last of them again."""
    *_, losses = stage_losses(model, "ttt", reference_timestep="next", reference_steps=f)
    list(losses(generator()))
    schedule = ddim_timesteps(10)
    expected = schedule[:f] + [schedule[f - 1]]
    assert [t for _, _, t, _ in calls] == expected * 2


def test_reference_timestep_next_stops_at_the_noise_of_its_timestep(model, monkeypatch):
    """One step of the schedule 901, 801, ... ends at 801, not at a clean latent."""
    monkeypatch.setattr(sampling, "guided_noise", lambda unet, x_t, *_: torch.zeros_like(x_t))
    stage = joining(model, reference_timestep="next", reference_steps=1)
    noise = random(1, 4, 3, 8, 8)
    z_f, t_f = stage._reference(noise, stage.appearance, motion=False)
    assert t_f == 801
    assert torch.equal(z_f, ddim_step(torch.zeros_like(noise), 901, 801, noise))


def test_reference_timestep_uniform_draws_from_the_whole_schedule(model, calls):
    *_, losses = stage_losses(model, "ttt")
    for seed in range(3):
        list(losses(generator(seed)))
    assert [t for _, _, t, _ in calls[:2]] == ddim_timesteps(2)
    drawn = {t for on, _, t, _ in calls if "spatial" in on}
    assert len(drawn) == 6 and all(0 <= t < STEPS for t in drawn)


@pytest.mark.parametrize("stage", ["temporal", "ttt"])
def test_least_timestep_bounds_what_is_learned_from(model, calls, stage):
    *_, losses = stage_losses(model, stage, least_timestep=STEPS - 3)
    for seed in range(4):
        list(losses(generator(seed)))
    drawn = {t for on, _, t, _ in calls if not on or on & set(TRAINED[stage])}
    assert len(drawn) > 1 and drawn <= {997, 998, 999}


def test_debiased_adds_the_debiased_term(model):
    text, z = model.encode_text(["a star"]), random(1, 4, FRAMES, 8, 8)
    plain, both = (next(temporal_loss(model.unet, z, text, debiased, 0, generator())).item()
                   for debiased in (False, True))
    g = generator()                 # the same draws again: clip, noise, timestep, anchor
    torch.randint(1, (1,), generator=g)
    eps, t = torch.randn(z.shape, generator=g), torch.randint(STEPS, (1,), generator=g)
    k = torch.randint(FRAMES, (1,), generator=g).item()
    with torch.no_grad():
        eps_hat = model.unet(add_noise(z, eps, t), t, text)
    assert plain == pytest.approx(noise_loss(eps_hat, eps).item(), rel=1e-6)
    assert both - plain == pytest.approx(debiased_noise_loss(eps_hat, eps, k).item(), rel=1e-5)


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
    """In the join, a recomputation that found other adapters on would change them."""
    parameters, losses = stage_losses(model, stage, dropout=0.1)
    model.unet.train()
    ran = []
    model.unet.layers[8].resnets[0].register_forward_pre_hook(lambda *_: ran.append(1))
    results = []
    for model.unet.gradient_checkpointing in (False, True):
        torch.manual_seed(0)        # dropout
        for p in parameters:
            p.grad = None
        with autocast(torch.device("cpu"), precision):
            values = backward(losses(generator()))
        results.append((values, [p.grad for p in parameters], len(ran)))
    (values, gradients, runs), (again, recomputed, all_runs) = results
    assert all_runs - runs == runs + len(values)        # each loss ran the resnet once more
    assert again == values
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-7) for a, b in zip(gradients, recomputed))


def test_active_puts_back_what_was_on_even_after_an_error(model):
    adapters(model, "spatial", "temporal")
    with pytest.raises(ZeroDivisionError), active(model.unet, "spatial"):
        assert {name for _, m in adapted(model.unet) for name in m.on} == {"spatial"}
        1 / 0
    assert {name for _, m in adapted(model.unet) for name in m.on} == {"spatial", "temporal"}
