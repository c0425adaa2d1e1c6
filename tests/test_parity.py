"""Small random models against the reference implementations: relative error at most 1e-5, fp32.

Weights are carried into diffusers, transformers and peft under the public names of keys.py, and the
references are built from the config.json contents of save.py, so that both are put to the test too.
"""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import relative_error
from diffusers import (AutoencoderKL, DDIMScheduler, MotionAdapter, UNet2DConditionModel,
                       UNetMotionModel)
from diffusers.models.embeddings import SinusoidalPositionalEmbedding, get_timestep_embedding
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from einops import rearrange
from lion_pytorch import Lion as ReferenceLion
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel

import customttt
from customttt.diffusion import add_noise, alpha_bar, ddim, ddim_timesteps, guided_noise
from customttt.files import keys, save
from customttt.files.random_model import random_model
from customttt.lora import WithLoRA, lora_on, put_lora, wrapped
from customttt.model.clip import CLIP
from customttt.model.config import TextConfig, VisionConfig
from customttt.model.unet import TimeEmbedding

TOLERANCE = 1e-5
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(1)
    with torch.no_grad():
        yield


# ------------------------------------------------------------------ carrying weights over

def perturbed(module):
    """Norms and biases away from 1 and 0, where a confusion of two of them would not show."""
    for p in module.parameters():
        if p.ndim < 2:
            p += 0.1 * torch.randn_like(p)
    return module.eval()


def carry(ours, theirs, public, only=lambda name: True):
    """Give `theirs` our weights, in the same memory; only what keys.py drops may be missing.

    Tables of positions are dropped there: diffusers' own are kept, and made where it was on "meta".
    """
    state = {public(name): p.detach() for name, p in ours.named_parameters() if only(name)}
    result = theirs.load_state_dict(state, strict=False, assign=True)
    assert not result.unexpected_keys
    assert all(keys.is_dropped(key) for key in result.missing_keys)
    for module in theirs.modules():
        if isinstance(module, SinusoidalPositionalEmbedding) and module.pe.is_meta:
            with torch.device("cpu"):
                module.pe = SinusoidalPositionalEmbedding(module.pe.shape[2], module.pe.shape[1]).pe
    return theirs.eval()


def reference_image_unet(ours):
    """diffusers' UNet2DConditionModel with our weights; motion modules stay behind."""
    return carry(ours, UNet2DConditionModel.from_config(save.unet_json(ours.config)),
                 keys.diffusers_unet, only=lambda name: not keys.is_motion(name))


def reference_video_unet(ours, per_frame=True):
    """diffusers' UNetMotionModel with our weights; its motion GroupNorm per frame, or as it is."""
    theirs = UNetMotionModel.from_unet2d(
        UNet2DConditionModel.from_config(save.unet_json(ours.config)),
        MotionAdapter.from_config(save.motion_json(ours.config)), load_weights=False)
    if per_frame:
        for module in theirs.modules():
            if isinstance(module, AnimateDiffTransformer3D):
                module.norm.forward = partial(norm_per_frame, module.norm)
    return carry(ours, theirs, keys.diffusers_unet)


def norm_per_frame(norm, x):
    y = F.group_norm(rearrange(x, "b c f h w -> (b f) c h w"), norm.num_groups, norm.weight,
                     norm.bias, norm.eps)
    return rearrange(y, "(b f) c h w -> b c f h w", b=len(x))


def norm_across_frames(norm, frames, x):
    y = F.group_norm(rearrange(x, "(b f) c h w -> b c f h w", f=frames), norm.num_groups,
                     norm.weight, norm.bias, norm.eps)
    return rearrange(y, "b c f h w -> (b f) c h w")


def clip_inputs(frames=5, b=2, side=16, width=32, tokens=7):
    """Latents, timesteps and text; every clip and every frame differs."""
    return (torch.randn(b, 4, frames, side, side), torch.tensor([801, 1])[:b],
            torch.randn(b, tokens, width))


def run_reference(theirs, latents, timesteps, text):
    """A diffusers UNet, of images or of clips, on clips: it wants the text once a frame."""
    text = text.repeat_interleave(latents.shape[2], dim=0)
    if isinstance(theirs, UNetMotionModel):
        return theirs(latents, timesteps, text).sample
    y = theirs(rearrange(latents, "b c f h w -> (b f) c h w"),
               timesteps.repeat_interleave(latents.shape[2]), text).sample
    return rearrange(y, "(b f) c h w -> b c f h w", b=len(latents))


# ------------------------------------------------------------------ VAE, text encoder, CLIP

def test_vae():
    ours = perturbed(random_model().vae)
    theirs = carry(ours, AutoencoderKL.from_config(save.vae_json(ours.config)), keys.diffusers_vae)
    pixels, latents = torch.rand(2, 3, 64, 48) * 2 - 1, torch.randn(2, 4, 8, 6)
    scale = theirs.config.scaling_factor
    posterior = theirs.encode(pixels).latent_dist
    assert relative_error(ours.encode(pixels), posterior.mean * scale) <= TOLERANCE
    assert relative_error(ours.posterior(pixels)[1], posterior.std) <= TOLERANCE
    assert relative_error(ours.decode(latents), theirs.decode(latents / scale).sample) <= TOLERANCE


def test_vae_sample_is_the_reference_s():
    ours = perturbed(random_model().vae)
    theirs = carry(ours, AutoencoderKL.from_config(save.vae_json(ours.config)), keys.diffusers_vae)
    pixels, seed = torch.rand(2, 3, 32, 32) * 2 - 1, torch.Generator().manual_seed
    expected = theirs.encode(pixels).latent_dist.sample(seed(5)) * theirs.config.scaling_factor
    assert relative_error(ours.encode(pixels, seed(5)), expected) <= TOLERANCE


def test_text_encoder():
    ours = perturbed(random_model().text_encoder)
    theirs = CLIPTextModel(CLIPTextConfig(**save.text_json(ours.config)))
    carry(ours, theirs, text_names(theirs))
    ids = torch.randint(0, ours.config.vocabulary, (3, 77))
    assert relative_error(ours(ids), theirs(ids).last_hidden_state) <= TOLERANCE


def text_names(theirs):
    """Public names; transformers 5 leaves out the `text_model.` that is in every file."""
    prefixed = any(key.startswith("text_model.") for key in theirs.state_dict())
    return lambda name: keys.public_text(name)[0 if prefixed else len("text_model."):]


def test_clip_towers():
    text = TextConfig(vocabulary=100, width=32, layers=2, heads=4, inner_width=64, length=12)
    vision = VisionConfig(width=48, layers=2, heads=4, inner_width=96, image_size=32, patch=8)
    ours = perturbed(CLIP(text, vision, projection=24))
    theirs = carry(ours, CLIPModel(CLIPConfig(
        text_config=save.text_json(text),
        vision_config={"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
                       "intermediate_size": 96, "image_size": 32, "patch_size": 8},
        projection_dim=24)), keys.public_clip)
    ids = torch.randint(0, 98, (3, 12))
    ids[0, 4] = ids[1, 7] = ids[1, 9] = ids[2, 11] = 99     # the first end token counts
    pixels = torch.rand(3, 3, 32, 32) * 2 - 1
    mean, std = (torch.tensor(x)[:, None, None] for x in (CLIP.MEAN, CLIP.STD))
    expected = theirs(input_ids=ids, pixel_values=(pixels / 2 + 0.5 - mean) / std)
    images, texts = ours.embed_images(pixels), ours.embed_text(ids, end=99)
    assert relative_error(images, expected.image_embeds) <= TOLERANCE
    assert relative_error(texts, expected.text_embeds) <= TOLERANCE
    logits = ours.logit_scale.exp() * images @ texts.T
    assert relative_error(logits, expected.logits_per_image) <= TOLERANCE


# ------------------------------------------------------------------ the UNet

@pytest.mark.parametrize("version", [None, 1, 3])
def test_image_unet(version):
    """Without motion modules, and with them taken out at the call."""
    ours, inputs = perturbed(random_model(version).unet), clip_inputs()
    expected = run_reference(reference_image_unet(ours), *inputs)
    assert relative_error(ours(*inputs, motion=False), expected) <= TOLERANCE


@pytest.mark.parametrize("frames", [1, 5, 32])
@pytest.mark.parametrize("version", [2, 3])
def test_video_unet(version, frames):
    ours, inputs = perturbed(random_model(version).unet), clip_inputs(frames)
    expected = run_reference(reference_video_unet(ours), *inputs)
    assert relative_error(ours(*inputs), expected) <= TOLERANCE


def test_video_unet_v1_normalises_resnets_across_frames():
    """diffusers does not build v1; its resnets' GroupNorms are made to share the clip's frames."""
    ours, inputs = perturbed(random_model(1).unet), clip_inputs(frames=5)
    theirs = reference_video_unet(ours)
    per_frame = run_reference(theirs, *inputs)
    resnets = [module for module in theirs.modules() if isinstance(module, ResnetBlock2D)]
    for norm in [theirs.conv_norm_out, *(n for r in resnets for n in (r.norm1, r.norm2))]:
        norm.forward = partial(norm_across_frames, norm, 5)
    assert relative_error(ours(*inputs), run_reference(theirs, *inputs)) <= TOLERANCE
    assert relative_error(ours(*inputs), per_frame) > 0.01


@pytest.mark.parametrize("frames, least, most", [
    ("still", 0, 1e-3), ("noise", 0.01, 0.1), ("fading", 0.1, 0.3)])
def test_diffusers_own_motion_norm_differs(frames, least, most):
    """motion.py's claim: the more, the more frames differ; still ones differ by their positions."""
    ours, (latents, timesteps, text) = perturbed(random_model().unet), clip_inputs(frames=5)
    if frames == "still":
        latents = latents[:, :, :1].expand_as(latents)
    if frames == "fading":
        latents = latents * torch.linspace(2, 0.2, 5)[:, None, None]
    theirs = reference_video_unet(ours, per_frame=False)
    expected = run_reference(theirs, latents, timesteps, text)
    assert least < relative_error(ours(latents, timesteps, text), expected) < most


def test_diffusers_own_motion_norm_agrees_on_one_frame():
    ours, inputs = perturbed(random_model().unet), clip_inputs(frames=1)
    expected = run_reference(reference_video_unet(ours, per_frame=False), *inputs)
    assert relative_error(ours(*inputs), expected) <= TOLERANCE


@pytest.mark.parametrize("sinusoids", [32, 320])
def test_the_timesteps_sinusoids_are_the_same_to_the_last_bit(sinusoids):
    embedding, t, seen = TimeEmbedding(sinusoids, 8), torch.arange(1000), []
    embedding.linear_1.register_forward_pre_hook(lambda module, x: seen.append(x[0]))
    embedding(t)
    assert torch.equal(seen[0], get_timestep_embedding(t, sinusoids, flip_sin_to_cos=True,
                                                       downscale_freq_shift=0))


# ------------------------------------------------------------------ one text a layer

def test_nine_texts_are_nine_hooks():
    ours, (latents, timesteps, text) = perturbed(random_model(2).unet), clip_inputs(frames=5)
    texts = torch.randn(9, *text.shape)
    theirs = reference_video_unet(ours)
    blocks = [*theirs.down_blocks, theirs.mid_block, *theirs.up_blocks]
    for block, each in zip(blocks, texts, strict=True):
        block.register_forward_pre_hook(partial(substitute, each.repeat_interleave(5, dim=0)),
                                        with_kwargs=True)
    expected = run_reference(theirs, latents, timesteps, text)
    assert relative_error(ours(latents, timesteps, list(texts)), expected) <= TOLERANCE


def substitute(text, block, args, kwargs):
    """A forward pre-hook: another text for this block, where it reads one."""
    return args, kwargs | {key: text for key in kwargs if key == "encoder_hidden_states"}


@pytest.mark.parametrize("i", range(9))
def test_a_probe_acts_where_there_is_cross_attention(i):
    unet, (latents, timesteps, text) = random_model().unet.eval(), clip_inputs(frames=2, b=1)
    texts = [text] * 9
    texts[i] = torch.randn_like(text)
    unchanged = torch.equal(unet(latents, timesteps, texts), unet(latents, timesteps, text))
    assert unchanged == (i in (3, 5))


def test_one_text_is_nine_equal_texts():
    unet, (latents, timesteps, text) = random_model().unet.eval(), clip_inputs()
    assert torch.equal(unet(latents, timesteps, text), unet(latents, timesteps, [text.clone()] * 9))


# ------------------------------------------------------------------ the schedule and DDIM

def scheduler():
    """AnimateDiff's configuration."""
    return DDIMScheduler(beta_schedule="linear", beta_start=0.00085, beta_end=0.012, steps_offset=1,
                         clip_sample=False, timestep_spacing="leading", set_alpha_to_one=True)


@pytest.mark.parametrize("t, expected", [(0, 0.999150), (1, 0.998290), (500, 0.160772),
                                         (961, 0.002478), (999, 0.001579), (-1, 1)])
def test_alpha_bar(t, expected):
    assert alpha_bar(t).item() == pytest.approx(expected, abs=5e-7)


@pytest.mark.parametrize("steps, first, last", [
    (25, [961, 921, 881], [41, 1]), (50, [981, 961], [21, 1]), (5, [801, 601, 401], [201, 1])])
def test_timesteps_of_the_paper(steps, first, last):
    timesteps = ddim_timesteps(steps)
    assert len(timesteps) == steps
    assert timesteps[:len(first)] == first and timesteps[-len(last):] == last


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 7, 25, 30, 50, 333, 999])
def test_timesteps(steps):
    reference = scheduler()
    reference.set_timesteps(steps)
    assert ddim_timesteps(steps) == reference.timesteps.tolist()


@pytest.mark.parametrize("steps", [1, 5, 25, 30])
def test_ddim_with_guidance(steps):
    model = random_model()
    latents = customttt.sampling.initial_noise(model, frames=3, size=64, seed=0)
    text, empty = model.encode_text(["a star is moving", ""]).chunk(2)
    reference, x_t = scheduler(), latents
    reference.set_timesteps(steps)
    ours = list(ddim(model.unet, latents, text, empty, ddim_timesteps(steps), guidance=9.0))
    for t, mine in zip(reference.timesteps.tolist(), ours, strict=True):
        eps_text, eps_empty = (model.unet(x_t, torch.tensor([t]), each) for each in (text, empty))
        x_t = reference.step(eps_empty + 9 * (eps_text - eps_empty), t, x_t, eta=0.0).prev_sample
        assert ((mine - x_t).norm() / x_t.norm()).item() <= TOLERANCE
    assert relative_error(ours[-1], x_t) <= TOLERANCE


def test_guidance_of_one_is_the_text_alone():
    unet, (latents, _, text) = random_model().unet.eval(), clip_inputs()
    alone = unet(latents, torch.tensor([5, 5]), text)
    assert relative_error(guided_noise(unet, latents, 5, text, 0 * text, 1.0, True), alone) == 0
    near = guided_noise(unet, latents, 5, text, 0 * text, 1 + 1e-9, True)
    assert relative_error(near, alone) <= TOLERANCE


def test_add_noise():
    z, eps = torch.randn(2, 4, 4, 3, 8, 8)
    t = torch.tensor([0, 1, 500, 999])
    assert relative_error(add_noise(z, eps, t), scheduler().add_noise(z, eps, t)) <= TOLERANCE


def test_add_noise_in_two_steps_is_one_step():
    one, none, s, t = torch.ones(1, 1), torch.zeros(1, 1), torch.tensor([201]), torch.tensor([401])
    signal = add_noise(add_noise(one, none, s), none, t, t_from=201)
    variance = add_noise(add_noise(none, one, s), none, t, t_from=201) ** 2 \
        + add_noise(none, one, t, t_from=201) ** 2
    assert signal.item() == pytest.approx(alpha_bar(401).sqrt().item(), rel=1e-6)
    assert variance.item() == pytest.approx(1 - alpha_bar(401).item(), rel=1e-6)


# ------------------------------------------------------------------ Lion

@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("betas", [(0.9, 0.99), (0.95, 0.98)])
def test_lion(betas, weight_decay):
    target, start = torch.randn(64, 32), torch.randn(64, 32)
    end = []
    for optimizer in (customttt.Lion, ReferenceLion):
        theta = nn.Parameter(start.clone())
        lion = optimizer([theta], lr=1e-2, betas=betas, weight_decay=weight_decay)
        for step in range(100):
            theta.grad = (theta - target) * torch.linspace(-1, 2, 32).roll(step)
            lion.step()
        end.append(theta.detach())
    assert relative_error(*end) <= 1e-6


@pytest.mark.parametrize("wrong", [
    {"lr": -1}, {"lr": math.nan}, {"lr": math.inf}, {"weight_decay": math.nan}, {"betas": (0.9, 1)},
    {"betas": (0.9,)}])
def test_lion_refuses_what_is_out_of_range(wrong):
    with pytest.raises(ValueError, match="is out of range"):
        customttt.Lion([nn.Parameter(torch.ones(1))], **wrong)


def test_lion_takes_a_closure_as_other_optimizers_do():
    theta = nn.Parameter(torch.ones(3))

    def loss():
        theta.square().sum().backward()
        return theta.square().sum()
    with torch.no_grad():
        assert customttt.Lion([theta], lr=0.1, weight_decay=0.0).step(loss).item() == 3
    torch.testing.assert_close(theta.detach(), torch.full((3,), 0.9))


# ------------------------------------------------------------------ LoRA

PLACEMENTS = [("spatial", (2, 6), False), ("spatial", (0, 1, 2, 4, 6, 7, 8), True),
              ("temporal", (2, 5), False)]


def trained(unet, kind, layers, convolutions=False, name=None):
    """A UNet with an adapter that is no longer fresh."""
    for p in customttt.add_lora(unet, kind, layers, rank=4, convolutions=convolutions, name=name):
        p.copy_(0.2 * torch.randn_like(p))
    return unet.eval()


def with_peft(ours, theirs, rank=4):
    """peft's LoRA on the modules that ours adapts, with the same weights; alpha = rank: scale 1."""
    public = {name: keys.diffusers_unet(name + ".").removesuffix(".")
              for name, _ in wrapped(ours)}
    config = LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.1,
                        target_modules=list(public.values()))
    inject_adapter_in_model(config, theirs)
    for name, module in wrapped(ours):
        (adapter,) = module.loras.values()
        layer = theirs.get_submodule(public[name])
        layer.lora_A["default"].weight.copy_(adapter.down.weight)
        layer.lora_B["default"].weight.copy_(adapter.up.weight)
    assert sum(isinstance(m, LoraLayer) for m in theirs.modules()) == len(public)
    return theirs.eval()


@pytest.mark.parametrize("kind, layers, convolutions", PLACEMENTS)
def test_lora_against_peft(kind, layers, convolutions):
    ours, inputs = perturbed(random_model().unet), clip_inputs()
    theirs = reference_video_unet(ours)
    plain = ours(*inputs)
    theirs = with_peft(trained(ours, kind, layers, convolutions), theirs)
    wrapped = ours(*inputs)
    assert relative_error(wrapped, plain) > 1e-3
    assert relative_error(wrapped, run_reference(theirs, *inputs)) <= TOLERANCE

    customttt.merge_lora(ours)
    for module in theirs.modules():
        if isinstance(module, LoraLayer):
            module.merge()
    assert relative_error(ours(*inputs), wrapped) <= TOLERANCE
    assert relative_error(ours(*inputs), run_reference(theirs, *inputs)) <= TOLERANCE


@pytest.mark.parametrize("layer", [nn.Conv2d(8, 12, 1), nn.Conv2d(8, 12, 3, padding=1),
                                   nn.Conv2d(8, 12, 3, stride=2, padding=1)])
def test_lora_on_convolutions(layer):
    ours = nn.Sequential(layer)
    theirs, x = nn.Sequential(nn.Conv2d(8, 12, layer.kernel_size, layer.stride, layer.padding)), \
        torch.randn(2, 8, 6, 6)
    theirs.load_state_dict(ours.state_dict())
    adapter = put_lora(ours, "0", "some", rank=4, scale=0.5)
    adapter.up.weight.normal_()
    inject_adapter_in_model(LoraConfig(r=4, lora_alpha=2, target_modules=["0"]), theirs)
    theirs[0].lora_A["default"].weight.copy_(adapter.down.weight)
    theirs[0].lora_B["default"].weight.copy_(adapter.up.weight)
    assert relative_error(ours(x), theirs(x)) <= TOLERANCE
    customttt.merge_lora(ours)
    assert type(ours[0]) is nn.Conv2d and relative_error(ours(x), theirs(x)) <= TOLERANCE


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind, layers, convolutions", PLACEMENTS)
def test_a_fresh_lora_changes_no_bit(kind, layers, convolutions, training):
    unet, inputs = random_model().unet.train(training), clip_inputs()
    before = unet(*inputs)
    customttt.add_lora(unet, kind, layers, convolutions=convolutions)
    assert torch.equal(unet(*inputs), before)


def test_merge_leaves_the_modules_that_were_there():
    unet = random_model().unet
    types = {name: type(module) for name, module in unet.named_modules()}
    trained(trained(unet, "spatial", (0, 1, 2, 4), convolutions=True), "temporal", (2, 5))
    assert any(type(module) is WithLoRA for module in unet.modules())
    customttt.merge_lora(unet)
    assert {name: type(module) for name, module in unet.named_modules()} == types


def test_merge_takes_only_what_is_on():
    unet, inputs = trained(random_model().unet, "spatial", (2, 6)), clip_inputs()
    alone = unet(*inputs)
    trained(unet, "spatial", (2, 6), name="another")
    with lora_on(unet, "spatial"):
        customttt.merge_lora(unet)
    assert relative_error(unet(*inputs), alone) <= TOLERANCE


def test_lora_on_switches_exactly_the_named():
    names, kinds = ("spatial", "temporal", "another"), ("spatial", "temporal", "spatial")
    unet, inputs = random_model().unet, clip_inputs(frames=2, b=1)
    plain = unet(*inputs)
    for name, kind, layers in zip(names, kinds, ((2, 6), (2, 5), (2, 7))):
        trained(unet, kind, layers, name=name)
    everything = unet(*inputs)
    for on in ((), ("spatial",), ("temporal",), ("spatial", "another"), names):
        with lora_on(unet, *on):
            assert {name for _, each in wrapped(unet) for name in each.on} == set(on)
            inside = unet(*inputs)
            with lora_on(unet):
                assert torch.equal(unet(*inputs), plain)
            assert torch.equal(unet(*inputs), inside)
        others = random_model().unet.eval()         # one that has these adapters and no others
        for name, each in wrapped(unet):
            for kept in sorted(set(on) & each.on):
                put_lora(others, name, kept, rank=4).load_state_dict(each.loras[kept].state_dict())
        assert torch.equal(inside, others(*inputs))
    assert torch.equal(unet(*inputs), everything)


# ------------------------------------------------------------------ shapes that do not fit

@pytest.mark.parametrize("latents, timesteps, text, words", [
    ((2, 4, 3, 8, 8), (1,), (2, 7, 32), "timesteps"),
    ((2, 4, 3, 8, 8), (), (2, 7, 32), "timesteps"),
    ((2, 4, 3, 8, 8), (2,), (1, 7, 32), "text"), ((2, 4, 3, 8, 8), (2,), (6, 7, 32), "text"),
    ((2, 4, 3, 12, 8), (2,), (2, 7, 32), "latents"), ((2, 4, 8, 8), (2,), (2, 7, 32), "latents"),
    ((2, 4, 3, 8, 8), (2,), (8, 2, 7, 32), "one a layer")])
def test_a_unet_says_what_does_not_fit(latents, timesteps, text, words):
    """One timestep for two clips would make one clip of the two."""
    texts = list(torch.zeros(text)) if len(text) == 4 else torch.zeros(text)
    with pytest.raises(ValueError, match=words):
        random_model().unet(torch.zeros(latents), torch.zeros(timesteps), texts)


def test_vae_and_text_encoder_say_what_does_not_fit():
    model = random_model()
    for shape in ((1, 3, 60, 64), (1, 1, 64, 64), (3, 64, 64)):
        with pytest.raises(ValueError, match=r"pixels: \(n 3 H W\) with H and W divisible by 8"):
            model.vae.encode(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"latents: \(n 4 h w\); got \(1, 4, 2, 8, 8\)"):
        model.vae.decode(torch.zeros(1, 4, 2, 8, 8))
    with pytest.raises(ValueError, match="ids: .* at most 77"):
        model.text_encoder(torch.zeros(1, 78, dtype=torch.long))
