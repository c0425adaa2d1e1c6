"""LoRAs, motion modules and VAEs that others made, in every layout that they are found in.

Where a tool is a package it writes the file itself; else the file has the tool's key names and
random values. What the tool would add to a weight is compared with what we add.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import relative_error, tiny_model
from diffusers import AnimateDiffPipeline, MotionAdapter, UNet2DConditionModel, UNetMotionModel
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTextModel

from customttt import UNet, load_lora, load_model, merge_lora
from customttt.errors import UserError
from customttt.files import keys
from customttt.files.load import read_motion_module
from customttt.files.lora_files import find_lora, read_lora, save_lora
from customttt.files.random_model import random_model
from customttt.files.save import save_model
from customttt.lora import add_lora, wrapped
from customttt.model.motion import positional_encoding
from customttt.model import config
from customttt.run.options import check_together
from sample import apply_loras

ROOT = Path(__file__).parent.parent
KEYS = Path(__file__).parent / "keys"
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.fixture
def reference(model_folder):
    """diffusers' video UNet of the tiny model."""
    return UNetMotionModel.from_unet2d(
        UNet2DConditionModel.from_pretrained(model_folder / "unet"),
        MotionAdapter.from_pretrained(model_folder / "motion_adapter"))


@pytest.fixture
def reference_text(model_folder):
    return CLIPTextModel.from_pretrained(model_folder / "text_encoder", dtype=torch.float32)


def assert_same_deltas(model, expected_unet, expected_text=None):
    """Every module that the other tool adapts has the same update here, and no other has one."""
    for module, expected, public in (
            (model.unet, expected_unet, keys.diffusers_unet),
            (model.text_encoder, expected_text or {}, keys.public_text)):
        ours = {public(name + ".weight").removesuffix(".weight"):
                sum(adapter.delta().detach() for adapter in each.loras.values())
                for name, each in wrapped(module)}
        assert ours.keys() == expected.keys()
        for name, delta in expected.items():
            assert torch.allclose(ours[name], delta.detach().float(), rtol=1e-5, atol=1e-6), name


def write(tensors, file):
    """safetensors, or a pickle with the tensors in `state_dict` as published MotionLoRAs may be."""
    if file.suffix == ".ckpt":
        torch.save({"state_dict": tensors | {"animatediff_config": {}}, "global_step": 7}, file)
    else:
        save_file({key: value.contiguous() for key, value in tensors.items()}, file)
    return file


# ------------------------------------------------------------------ written by peft and diffusers

PATTERNS = {"rank_pattern": {"attn2.to_k": 6},
            "alpha_pattern": {"^down_blocks.0.*.to_q": 2, "conv1": 1}}
UNET_TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "conv1", "proj_in"]


def peft_deltas(module):
    """Gives a peft LoRA random values; the updates that peft itself computes, by module name."""
    deltas = {}
    for name, layer in module.named_modules():
        if isinstance(layer, LoraLayer):
            [adapter] = layer.lora_A
            for part in (layer.lora_A[adapter], layer.lora_B[adapter]):
                nn.init.normal_(part.weight, std=0.3)
            deltas[name.removeprefix("base_model.model.")] = layer.get_delta_weight(adapter)
    return deltas


@pytest.mark.parametrize("options", [{}, PATTERNS, {"use_rslora": True}])
def test_peft_save_pretrained(options, tmp_path, reference, model):
    """adapter_model.safetensors and adapter_config.json: alpha, patterns and rsLoRA count."""
    wrapped = get_peft_model(reference, LoraConfig(r=4, lora_alpha=6, target_modules=UNET_TARGETS,
                                                   **options))
    expected = peft_deltas(wrapped)
    wrapped.save_pretrained(tmp_path)
    file = load_lora(model.unet, tmp_path / "adapter_model.safetensors")
    assert not file.notes and file.tensors == 2 * len(expected)
    assert_same_deltas(model, expected)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "bear.safetensors")
    again = load_lora(model.unet, tmp_path / "bear.safetensors")
    assert {target: pair.scale for target, pair in again.unet.items()} == {
        target: pair.scale for target, pair in file.unet.items()}


def test_peft_without_its_config_is_said(tmp_path, reference, model):
    wrapped = get_peft_model(reference, LoraConfig(r=4, lora_alpha=4, target_modules=["to_q"]))
    expected = peft_deltas(wrapped)
    wrapped.save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    file = load_lora(model.unet, tmp_path / "adapter_model.safetensors")
    assert file.notes == ["no adapter_config.json beside it, so its alpha is taken to be its rank"]
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "bear.safetensors")
    assert load_lora(model.unet, tmp_path / "bear.safetensors", 0.0).notes == file.notes
    assert_same_deltas(model, expected)


def test_peft_state_dict_with_the_adapter_name(tmp_path, reference, model):
    wrapped = get_peft_model(reference, LoraConfig(r=4, lora_alpha=4, target_modules=["to_q"]))
    expected = peft_deltas(wrapped)
    tensors = {key: value for key, value in wrapped.state_dict().items() if "lora_" in key}
    assert all(".default." in key for key in tensors)
    load_lora(model.unet, write(tensors, tmp_path / "lora.safetensors"))
    assert_same_deltas(model, expected)


@pytest.mark.parametrize("convert", [convert_state_dict_to_diffusers, dict])
@pytest.mark.parametrize("metadata", [True, False])
def test_diffusers_save_lora_weights(convert, metadata, tmp_path, reference, reference_text, model):
    """UNet and text encoder in one file, both spellings, with and without diffusers' metadata."""
    rank_is_alpha, parts = {"lora_alpha": 4}, {}
    for part, module, targets, options in (
            ("unet", reference, UNET_TARGETS, {"lora_alpha": 6} | PATTERNS),
            ("text_encoder", reference_text, ["q_proj", "out_proj", "fc1"], {"lora_alpha": 2})):
        peft = LoraConfig(r=4, target_modules=targets, **(options if metadata else rank_is_alpha))
        inject_adapter_in_model(peft, module)
        deltas = peft_deltas(module)
        parts[part] = deltas, convert(get_peft_model_state_dict(module)), peft.to_dict()
    AnimateDiffPipeline.save_lora_weights(
        tmp_path, unet_lora_layers=parts["unet"][1],
        text_encoder_lora_layers=parts["text_encoder"][1],
        **({f"{part}_lora_adapter_metadata": parts[part][2] for part in parts} if metadata else {}))
    load_lora(model.unet, tmp_path / "pytorch_lora_weights.safetensors",
              text_encoder=model.text_encoder)
    text = {f"text_model.{name}" if not name.startswith("text_model.") else name: delta
            for name, delta in parts["text_encoder"][0].items()}
    assert_same_deltas(model, parts["unet"][0], text)


def test_diffusers_first_loras_of_a_text_encoder(tmp_path, reference_text, model):
    """Their projections are to_q_lora, to_k_lora, ..., and there is no alpha."""
    names = {"q_proj": "to_q_lora", "k_proj": "to_k_lora", "v_proj": "to_v_lora",
             "out_proj": "to_out_lora"}
    inject_adapter_in_model(LoraConfig(r=4, lora_alpha=4, target_modules=[*names]), reference_text)
    deltas, old = peft_deltas(reference_text), {}
    for key, tensor in get_peft_model_state_dict(reference_text).items():
        for new, name in names.items():
            key = key.replace(f"{new}.lora_A", f"{name}.down")
            key = key.replace(f"{new}.lora_B", f"{name}.up")
        old["text_encoder.text_model." + key.removeprefix("text_model.")] = tensor
    save_file(old, tmp_path / "a.safetensors")
    load_lora(model.unet, tmp_path / "a.safetensors", text_encoder=model.text_encoder)
    assert_same_deltas(model, {}, {"text_model." + name.removeprefix("text_model."): delta
                                   for name, delta in deltas.items()})


def test_comfyui_saves_of_a_text_encoder(tmp_path, reference_text, model):
    name, base = next(iter(linears(reference_text, "q_proj").items()))
    down, up = random_pair(base, rank=3)
    name = "text_model." + name.removeprefix("text_model.")
    tensors = {f"text_encoders.clip_l.transformer.{name}.lora_{part}.weight": tensor
               for part, tensor in (("down", down), ("up", up))}
    file = write(tensors, tmp_path / "lora.safetensors")
    with pytest.raises(UserError, match="for a text encoder that was not given"):
        load_lora(model.unet, file)
    load_lora(model.unet, file, text_encoder=model.text_encoder)
    assert_same_deltas(model, {}, {name: product(up, down)})


def test_peft_adapter_names_may_have_a_dash(tmp_path, model):
    key = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_{}.my-lora.weight"
    file = write({key.format("A"): torch.ones(2, 96), key.format("B"): torch.ones(96, 2)},
                 tmp_path / "lora.safetensors")
    assert load_lora(model.unet, file).tensors == 2


def test_a_1x1_convolutions_pair_may_be_a_linears(tmp_path, model):
    key = "lora_unet_mid_block_attentions_0_proj_in.lora_{}.weight"
    file = write({key.format("down"): torch.ones(2, 96), key.format("up"): torch.ones(96, 2)},
                 tmp_path / "lora.safetensors")
    pair, = read_lora(file, model.unet).unet.values()
    assert pair.down.shape == (2, 96)
    load_lora(model.unet, file)


def test_a_published_motion_lora_in_its_folder(tmp_path):
    write({"x": torch.ones(1)}, tmp_path / "diffusion_pytorch_model.safetensors")
    assert find_lora(tmp_path, "--lora").name == "diffusion_pytorch_model.safetensors"


def test_diffusers_save_lora_adapter(tmp_path, reference, model):
    """The UNet's own method: neither keys nor metadata have the prefix `unet.`."""
    reference.add_adapter(LoraConfig(r=4, lora_alpha=6, target_modules=UNET_TARGETS, **PATTERNS))
    expected = peft_deltas(reference)
    reference.save_lora_adapter(tmp_path)
    load_lora(model.unet, tmp_path / "pytorch_lora_weights.safetensors")
    assert_same_deltas(model, expected)


# ------------------------------------------------------------------ by key names

def linears(module, pattern=""):
    return {name: each for name, each in module.named_modules()
            if isinstance(each, (nn.Linear, nn.Conv2d)) and pattern in name}


def random_pair(base, rank):
    down = torch.randn(rank, *base.weight.shape[1:])
    return down, torch.randn(base.weight.shape[0], rank, *(1,) * (down.ndim - 2))


def product(up, down):
    return (up.flatten(1) @ down.flatten(1)).view(len(up), *down.shape[1:])


def with_processor(name):
    """`attn1.to_out.0` -> `attn1.processor.to_out_lora`."""
    owner, _, leaf = name.removesuffix(".0").rpartition(".")
    return f"{owner}.processor.{leaf}_lora"


def exponential_ml(name):
    """AnimateDiff-MotionDirector's: `to_out.processor.0_lora`, `ff.net.processor.2_lora`."""
    owner, _, leaf = name.rpartition(".")
    return f"{owner}.processor.{leaf}_lora"


def original_motion(name):
    """AnimateDiff's own names of diffusers' motion modules, as scripts/convert_animatediff_motion_
    lora_to_diffusers.py of diffusers reads them."""
    return name.replace(".transformer_blocks", ".temporal_transformer.transformer_blocks").replace(
        "attn1", "attention_blocks.0").replace("attn2", "attention_blocks.1")


def first_releases(name):
    """The original checkpoint's names of the image UNet's transformers: blocks counted in a row."""
    at = re.match(r"(down|mid|up)_blocks?\.((\d)\.)?attentions\.(\d)", name)
    i, j = int(at[3] or 0), int(at[4])
    place = {"down": f"input_blocks.{3 * i + j + 1}.1", "mid": "middle_block.1",
             "up": f"output_blocks.{3 * i + j}.1"}[at[1]]
    return place + name[at.end():]


SPELLINGS = {       # which modules, how they are called
    "diffusers": ("transformer_blocks", lambda name: f"unet.{name}.lora"),
    "diffusers without unet.": ("transformer_blocks", lambda name: f"{name}.lora"),
    "old diffusers": ("attn", lambda name: "unet." + with_processor(name)),
    "domain adapter": ("attentions", with_processor),
    "MotionLoRA": ("motion_modules", lambda name: with_processor(original_motion(name))),
    "MotionLoRA of a training": ("motion_modules",
                                 lambda name: "module." + with_processor(original_motion(name))),
    "MotionLoRA for diffusers": ("motion_modules", lambda name: "unet." + with_processor(name)),
    "ExponentialML temporal": ("motion_modules",
                               lambda name: exponential_ml(original_motion(name))),
    "ExponentialML spatial": ("attentions", exponential_ml),
    "ComfyUI": ("attentions", lambda name: f"diffusion_model.{first_releases(name)}.lora"),
    "kohya, older names": ("attentions", lambda name: "lora_unet_"
                           + first_releases(name).replace(".", "_") + ".lora"),
    "LyCORIS": ("attentions", lambda name: f"lycoris_{name.replace('.', '_')}.lora"),
    "A1111's MotionLoRA": ("motion_modules",
                           lambda name: original_motion(name).replace(".", "_") + ".lora"),
}


@pytest.mark.parametrize("ending", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("layout", SPELLINGS)
def test_key_names(layout, ending, tmp_path, reference, model):
    """Ranks differ from module to module; there is no alpha."""
    pattern, spell = SPELLINGS[layout]
    tensors, expected = {}, {}
    for k, (name, base) in enumerate(linears(reference, pattern).items()):
        if ".transformer_blocks." in name:
            down, up = random_pair(base, rank=2 + k % 3)
            tensors |= {f"{spell(name)}.down.weight": down, f"{spell(name)}.up.weight": up}
            expected[name] = product(up, down)
    file = load_lora(model.unet, write(tensors, tmp_path / f"lora{ending}"))
    assert file.tensors == len(tensors) > 0
    assert_same_deltas(model, expected)


@torch.no_grad()
def test_kohya_with_every_convolution(tmp_path, model_folder, reference_text, model):
    """LoCon: every Linear and convolution of the image UNet, and text encoder; alpha is not rank.

    diffusers' UNet with the products added to its weights gives our output, wrapped and merged.
    """
    reference = UNet2DConditionModel.from_pretrained(model_folder / "unet")
    tensors, text = {}, {}
    for prefix, module in (("lora_unet", reference), ("lora_te", reference_text)):
        for name, base in linears(module).items():
            down, up = (0.1 * part for part in random_pair(base, rank=3))
            if prefix == "lora_te":
                name = "text_model." + name.removeprefix("text_model.")
                text[name] = 0.5 * product(up, down)
            else:
                base.weight += 0.5 * product(up, down)
            stem = f"{prefix}_{name.replace('.', '_')}"
            tensors |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up,
                        f"{stem}.alpha": torch.tensor(1.5)}
    file = load_lora(model.unet, write(tensors, tmp_path / "locon.safetensors"),
                     text_encoder=model.text_encoder)
    assert 3 * file.tensors == 2 * len(tensors)
    images, t, words = torch.randn(2, 4, 1, 16, 16), torch.tensor([801, 1]), torch.randn(2, 7, 96)
    theirs = reference(images[:, :, 0], t, words).sample
    assert relative_error(model.unet(images, t, words, motion=False)[:, :, 0], theirs) <= 1e-5
    model.unet, own = tiny_model().unet, model.unet
    assert_same_deltas(model, {}, text)
    merge_lora(own)
    assert relative_error(own(images, t, words, motion=False)[:, :, 0], theirs) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype, tmp_path, reference, model):
    [(name, base)] = list(linears(reference, "mid_block.attentions.0.proj_in").items())
    down, up = (part.to(dtype) for part in random_pair(base, rank=2))
    tensors = {f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}
    load_lora(model.unet, write(tensors, tmp_path / "half.safetensors"))
    assert_same_deltas(model, {name: product(up.float(), down.float())})


# ------------------------------------------------------------------ full size, by key lists

@pytest.fixture(scope="module")
def sd15():
    """Stable Diffusion 1.5's UNet on "meta", with motion modules version 2 and 3."""
    with torch.device("meta"):
        return {version: UNet(config.UNetConfig(**vars(config.SD15_UNET) | {"motion": motion}))
                for version, motion in ((2, config.ANIMATEDIFF_V2), (3, config.ANIMATEDIFF_V3))}


def listed(name, folder):
    """A file of zeros with the keys and shapes of a published one."""
    shapes = json.loads((KEYS / name).read_text())
    return write({key: torch.zeros(shape, dtype=torch.bfloat16) for key, shape in shapes.items()},
                 folder / "published.ckpt"), len(shapes)


def test_published_motion_lora(tmp_path, sd15):
    """v2_lora_*.ckpt: 336 tensors; without its mid block, by name, on a version 3 module."""
    path, count = listed("v2_motion_lora_inferred_336.json", tmp_path)
    file = read_lora(path, sd15[2])
    assert file.tensors == count == 336 and not file.notes
    file = read_lora(path, sd15[3])
    assert file.tensors == 320
    assert file.notes == ["16 tensors for the mid layer's motion module left out: this LoRA was "
                          "made for version 2, which has one, and the model's is version 3"]


def test_published_domain_adapter(tmp_path, sd15):
    """v3_sd15_adapter.ckpt: 256 tensors on the attentions of the 16 spatial transformers."""
    path, count = listed("v3_sd15_adapter_inferred_256.json", tmp_path)
    file = read_lora(path, sd15[3])
    assert file.tensors == count == 256 and not file.notes
    assert all(".spatial_transformers." in name and ".attn" in name for name in file.unet)


# ------------------------------------------------------------------ what cannot apply

KOHYA = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
PEFT = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
WHOLE = {f"{PEFT}.lora_A.weight": (2, 64), f"{PEFT}.lora_B.weight": (64, 2)}
REFUSALS = {
    "LoHa": ({f"{KOHYA}.hada_w1_a": (64, 2)}, "a LyCORIS variant"),
    "LoKr": ({f"{KOHYA}.lokr_w1": (8, 8)}, "a LyCORIS variant"),
    "full": ({f"{KOHYA}.diff": (64, 64)}, "a LyCORIS variant"),
    "Tucker": ({f"{KOHYA}.lora_mid.weight": (2, 2, 3, 3)}, "LoCon with a Tucker core"),
    "DoRA of kohya": ({f"{KOHYA}.dora_scale": (64, 1)}, "DoRA"),
    "DoRA of peft": (WHOLE | {f"{PEFT}.lora_magnitude_vector": (64,)}, "DoRA"),
    "SDXL": ({KOHYA.replace("blocks_0_attn", "blocks_7_attn") + ".alpha": ()}, "a LoRA for SDXL"),
    "SDXL's text": ({"lora_te2_text_model_encoder_layers_0_mlp_fc1.alpha": ()}, "a LoRA for SDXL"),
    "FLUX": ({"transformer.single_transformer_blocks.1.attn.to_q.lora_A.weight": (2, 64)}, "FLUX"),
    "another width": ({f"{PEFT}.lora_A.weight": (2, 32), f"{PEFT}.lora_B.weight": (32, 2)},
                      "a LoRA for another model: at mid_block.attentions.0"),
    "half a pair": ({f"{PEFT}.lora_A.weight": (2, 64)}, "lacks its down or its up"),
    "two in one": (WHOLE | {f"{PEFT}.lora.down.weight": (2, 64)}, "two LoRAs for one module"),
    "a bias": (WHOLE | {f"{PEFT}.lora_B.bias": (64,)}, "1 keys belong nowhere"),
    "a checkpoint": ({"model.diffusion_model.conv_in.weight": (2, 2)}, "this is a Stable Diffusion 1.5 "
                     "checkpoint; give it to --model: not a LoRA"),
    "text unasked": (WHOLE | {"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": (2, 2)},
                     "for a text encoder that was not given"),
    "only v2's mid": ({"mid_block.motion_modules.0.temporal_transformer.transformer_blocks.0."
                       "attention_blocks.0.processor.to_q_lora.up.weight": (2, 2)},
                      "belong nowhere"),
    "nothing": ({}, "no tensors in it"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refused_in_a_sentence(case, tmp_path, model):
    shapes, reason = REFUSALS[case]
    path = write({key: torch.ones(shape) for key, shape in shapes.items()},
                 tmp_path / "lora.safetensors")
    before = list(model.unet.state_dict())
    with pytest.raises(UserError, match=reason) as raised:
        load_lora(model.unet, path)
    assert str(raised.value).startswith(f"{path}: ") and "\n" not in str(raised.value)
    assert list(model.unet.state_dict()) == before


SPOILT = {
    "nested": lambda x: torch.nested.nested_tensor([x, x]), "on meta": lambda x: x.to("meta"),
    "sparse": lambda x: x.to_sparse(), "quantized": lambda x: torch.quantize_per_tensor(
        x, 0.1, 0, torch.qint8),
    "without storage": lambda x: x[:1].expand(10 ** 11, -1)}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", SPOILT)
def test_tensors_without_plain_numbers(kind, tmp_path, model):
    tensors = {key: torch.ones(shape) for key, shape in WHOLE.items()}
    tensors[f"{PEFT}.lora_A.weight"] = SPOILT[kind](torch.ones(2, 64))
    torch.save(tensors, tmp_path / "lora.ckpt")
    with pytest.raises(UserError, match="lora.ckpt: .*lora_A.weight holds no plain numbers"):
        load_lora(model.unet, tmp_path / "lora.ckpt")


def test_motion_lora_without_a_motion_module(tmp_path):
    key = "down_blocks.0.motion_modules.0.transformer_blocks.0.attn1.to_q.lora_A.weight"
    path = write({key: torch.ones(2, 32)}, tmp_path / "motion.safetensors")
    with pytest.raises(UserError, match="a motion LoRA, but no motion module is loaded"):
        load_lora(random_model(motion_version=None).unet, path)


def test_a_joined_lora_without_a_motion_module_leaves_its_motion_out(tmp_path):
    unet = random_model().unet
    for kind in ("spatial", "temporal"):
        add_lora(unet, kind, (2,), rank=2)
    save_lora(unet, tmp_path / "joined.safetensors")
    file = load_lora(random_model(motion_version=None).unet, tmp_path / "joined.safetensors")
    motion = sum("motion_modules" in key for key in load_file(tmp_path / "joined.safetensors"))
    assert file.notes == [f"{motion} tensors for motion modules left out: none is loaded"]
    assert file.unet and not any("motion_modules" in name for name in file.unet)


# ------------------------------------------------------------------ VAE and motion module files

def vae_tensors(vae, layout):
    return {layout(name): p.detach() for name, p in vae.named_parameters()}


@torch.no_grad()
def test_a_separate_vae(tmp_path, model_folder):
    """A folder, a diffusers file, and the original layout with and without first_stage_model."""
    other = tiny_model()
    for p in other.vae.parameters():
        p += 0.1 * torch.randn(p.shape)
    save_model(other, tmp_path / "other", torch.float32)
    original = vae_tensors(other.vae, keys.original_vae)
    junk = {"loss.logvar": torch.zeros(1), "model_ema.decay": torch.zeros(1)}
    bare = {key.removeprefix("first_stage_model."): value for key, value in original.items()} | junk
    old = {keys.replace(key, {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.",
                              ".to_out.0.": ".proj_attn."}): value
           for key, value in vae_tensors(other.vae, keys.diffusers_vae).items()}
    z = torch.randn(1, 4, 8, 8)
    own = load_model(model_folder).vae.decode(z)
    for vae in (tmp_path / "other" / "vae",
                tmp_path / "other" / "vae" / "diffusion_pytorch_model.safetensors",
                write(old, tmp_path / "ft-mse.safetensors"),
                write(bare, tmp_path / "ema-pruned.safetensors"),
                write(bare, tmp_path / "ema-pruned.ckpt"),
                write(original | {"model.diffusion_model.x": torch.zeros(1)},
                      tmp_path / "whole.safetensors")):
        decoded = load_model(model_folder, vae=vae).vae.decode(z)
        assert torch.equal(decoded, other.vae.decode(z)) and not torch.equal(decoded, own)


def test_a_vae_that_does_not_fit(tmp_path, model_folder):
    save_model(random_model(), tmp_path / "other")
    file = tmp_path / "other" / "vae" / "config.json"
    file.write_text(file.read_text().replace("0.18215", "0.13025"))
    with pytest.raises(UserError, match="a VAE for other latents .4 channels, scale 0.13025"):
        load_model(model_folder, vae=file.parent)
    with pytest.raises(UserError, match="a VAE for other latents .4 channels, scale 0.13025"):
        load_model(model_folder, vae=file.with_name("diffusion_pytorch_model.safetensors"))
    with pytest.raises(UserError, match="no VAE in it"):
        load_model(model_folder, vae=write({"x": torch.zeros(1)}, tmp_path / "x.safetensors"))
    with pytest.raises(UserError, match="nothing: no such file"):
        load_model(model_folder, vae=tmp_path / "nothing")


@pytest.mark.parametrize("name, version, table, frames", [
    ("v1, TemporalDiff, Stabilized", 1, 24, 24), ("v2", 2, 32, 32), ("v3", 3, 32, 32),
    ("AnimateLCM", 2, None, 32)])
def test_motion_module_files(name, version, table, frames, tmp_path):
    """Told apart by the mid block and the length of the table of positions, where there is one."""
    unet = random_model(version).unet
    tensors = {keys.original_motion(name): p.detach() for name, p in unet.named_parameters()
               if keys.is_motion(name)}
    if table is not None:
        tensors |= {key.replace("to_q.weight", "pos_encoder.pe"): positional_encoding(
            table, len(value))[None]
                    for key, value in tensors.items() if key.endswith("to_q.weight")}
    path = write(tensors, tmp_path / "module.ckpt")
    read = read_motion_module(path).config
    assert (read.version, read.max_frames) == (version, frames)
    save_model(random_model(None), tmp_path / "images")
    model = load_model(tmp_path / "images", motion_module=path)
    assert model.unet.config.motion.version == version


def test_a_table_of_positions_goes_before_what_a_config_says(tmp_path):
    save_model(random_model(3), tmp_path)
    file = tmp_path / "motion_adapter" / "diffusion_pytorch_model.safetensors"
    assert json.loads((file.parent / "config.json").read_text())["motion_max_seq_length"] == 32
    write({key: value[:, :24] if key.endswith(".pe") else value
           for key, value in load_file(file).items()}, file)
    read = read_motion_module(file.parent).config
    assert (read.version, read.max_frames) == (1, 24)


def test_a_motion_adapters_file_has_the_config_beside_it(model_folder, tmp_path):
    folder = model_folder / "motion_adapter"
    file = folder / "diffusion_pytorch_model.safetensors"
    assert read_motion_module(file).config == read_motion_module(folder).config
    assert read_motion_module(file).config.heads == 2       # without a config.json it is 8
    shutil.copytree(folder, tmp_path / "other")
    config = tmp_path / "other" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"motion_norm_num_groups": 4}))
    with pytest.raises(UserError, match="its norms have 4 groups, those of .* 8"):
        load_model(model_folder, motion_module=tmp_path / "other")


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_saved_motion_adapter_keeps_its_version(version, tmp_path):
    model = random_model(version)
    save_model(model, tmp_path)
    assert load_model(tmp_path).unet.config == model.unet.config
    adapter, report = MotionAdapter.from_pretrained(tmp_path / "motion_adapter",
                                                    output_loading_info=True)
    assert adapter.config.motion_max_seq_length == model.unet.config.motion.max_frames
    assert not any(report.values())


def test_longer_clips_are_refused(model):
    with pytest.raises(UserError, match="--frames 33: .*version 3.* at most 32: ask for fewer"):
        check_together(model, {"size": 64, "frames": 33})
    with pytest.raises(ValueError, match="33 frames, .*version 3.* at most 32: ask for fewer"):
        model.unet(torch.zeros(1, 4, 33, 8, 8), torch.zeros(1), torch.zeros(1, 7, 96))


# ------------------------------------------------------------------ the command

def test_sample_merges_what_a_lora_has_for_the_text_encoder(tmp_path):
    model = tiny_model()
    name, base = next(iter(linears(model.text_encoder, "fc1").items()))
    before, (down, up) = base.weight.clone(), random_pair(base, rank=2)
    public = keys.public_text(f"{name}.weight").removesuffix(".weight")
    stem = f"lora_te_{public.replace('.', '_')}"
    file = write({f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up,
                  f"{stem}.alpha": torch.tensor(1.0)}, tmp_path / "text.safetensors")
    apply_loras(model, [f"{file}:0.5"], motion=True, settings={})
    after = linears(model.text_encoder)[name].weight
    assert torch.allclose(after - before, 0.5 * 0.5 * product(up, down), atol=1e-6)


def test_sample_says_what_was_applied(tmp_path, model_folder):
    """A domain adapter at 0.8 and another VAE, as a user gives them."""
    path = write({with_processor(PEFT.removeprefix("unet.")) + ".down.weight": torch.randn(2, 96),
                  with_processor(PEFT.removeprefix("unet.")) + ".up.weight": torch.randn(96, 2)},
                 tmp_path / "v3_sd15_adapter.ckpt")
    done = subprocess.run(
        [sys.executable, ROOT / "sample.py", "--model", model_folder, "--lora", f"{path}:0.8",
         "--vae", model_folder / "vae", "--prompt", "a star", "--output", tmp_path / "out.png",
         "--size", "64", "--frames", "2", "--sampling-steps", "1", "--device", "cpu"],
        capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "motion module: version 3, at most 32 frames" in done.stdout
    assert f"{path}: 2 tensors applied at scale 0.8" in done.stdout


def test_sample_says_what_a_lora_was_trained_on_and_what_is_left_out(tmp_path, model, capsys):
    stem, file = PEFT.removeprefix("unet."), tmp_path / "a.safetensors"
    save_file({f"{stem}.lora_A.weight": torch.ones(2, 96),
               f"{stem}.lora_B.weight": torch.ones(96, 2),
               "bundle_emb.my_cat.string_to_param.*": torch.zeros(1, 96)}, file,
              {"base_model": "another", "prompt": "a bear"})
    assert apply_loras(model, [file], motion=True, settings={}) == "a bear"
    said = capsys.readouterr().out
    assert f"{file}: its embedding my_cat is left out: this code uses none\n" in said
    assert f"{file}: was trained on another, is used on tiny\n" in said
