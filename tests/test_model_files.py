"""Model files tell what they are, and are believed or refused, in a sentence that says what to do."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, MotionAdapter, UNet2DConditionModel, UNetMotionModel
from safetensors.torch import load_file, save_file
from test_loading import (folder, model, model_folder, original_motion, refused, save_as,   # noqa
                          single_file, small_sd15)
from transformers import CLIPTextModel

from customttt import load_lora, load_model
from customttt.files.configs import text_config, unet_config, vae_config
from customttt.files.diagnose import kind_of
from customttt.files.export import TARGETS, export
from customttt.files.load import WEIGHTS
from customttt.files.lora_files import find_lora, read_lora, save_lora
from customttt.files.random_model import random_model
from customttt.files.reading import read_tensors, write_tensors
from customttt.files.save import save_model
from customttt.files.tokenizers import read_tokenizer
from customttt.lora import add_lora
from customttt.model.config import SD15_TEXT, SD15_UNET, SD15_VAE
from customttt.model.tokenizer import START
from customttt.model.vae import VAE

STEM = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


def change(path: Path, **entries) -> Path:
    path.parent.mkdir(exist_ok=True)
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | entries))
    return path


# What is predicted

@pytest.mark.parametrize("predicts", ["v_prediction", "sample", 7])
def test_a_scheduler_that_predicts_no_noise(folder, predicts):
    file = folder / "scheduler" / "scheduler_config.json"
    change(file, prediction_type="epsilon")
    load_model(folder)
    change(file, prediction_type=predicts)
    refused(lambda: load_model(folder), file, "predicts", "epsilon", "--model")


@pytest.mark.parametrize("how", [
    {"modelspec.predict_key": "v"}, {"modelspec.prediction_type": "v"},
    {"prediction_type": "v_prediction"}, {"ss_v_parameterization": "True"}, {"ss_v_pred": "true"},
    "key", "yaml"], ids=str)
def test_a_checkpoint_that_predicts_v(small_sd15, tmp_path, how):
    tensors, file = single_file(small_sd15), tmp_path / "sd.safetensors"
    save_file(tensors, file, {"modelspec.predict_key": "epsilon"})
    load_model(file)
    if isinstance(how, dict):
        save_file(tensors, file, how)
    elif how == "key":
        save_file(tensors | {"v_pred": torch.zeros(1)}, file)
    else:
        (tmp_path / "sd.yaml").write_text('model:\n  params:\n    parameterization: "v"\n')
    refused(lambda: load_model(file), tmp_path / "sd", "predicts v", "epsilon", "--model")


# Numbers that are none

@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "motion_adapter"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(folder, part, value):
    file = next((folder / part).glob("*.safetensors"))
    tensors = load_file(file)
    key = [key for key in sorted(tensors) if not key.endswith(".pe")][7]
    tensors[key].view(-1)[-1] = value
    save_as(tensors, file)
    refused(lambda: load_model(folder), file, key, "not finite")


def test_weights_too_large_for_half_precision_are_said(folder):
    file = folder / "unet" / WEIGHTS
    tensors = load_file(file)
    tensors["conv_in.bias"][0] = 1e6
    save_as(tensors, file)
    load_model(folder)
    refused(lambda: load_model(folder, dtype=torch.float16), file, "conv_in.bias", "float16",
            "--precision fp32")


@pytest.mark.parametrize("spoil, words", [
    ({f"{STEM}.lora_A.weight": torch.full((2, 64), float("nan"))}, ["not finite"]),
    ({f"{STEM}.lora_B.weight": torch.full((64, 2), float("inf"))}, ["not finite"]),
    ({f"{STEM}.alpha": torch.tensor(float("nan"))}, ["alpha"]),
    ({f"{STEM}.alpha": torch.zeros(0)}, ["alpha"]),
    ({f"{STEM}.lora_A.weight": torch.zeros(0, 64), f"{STEM}.lora_B.weight": torch.zeros(64, 0)},
     ["another model", "(0, 64)"]),
    ({f"{STEM}.lora_B.weight": torch.zeros(2, 64)}, ["another model", "(2, 64)"]),
    ({f"{STEM}.lora_A.weight": torch.zeros(2, 64, dtype=torch.int8)}, ["floating-point"])])
def test_a_lora_that_cannot_be(tmp_path, model, spoil, words):
    whole = {f"{STEM}.lora_A.weight": torch.zeros(2, 64), f"{STEM}.lora_B.weight": torch.ones(64, 2)}
    load_lora(random_model().unet, save_as(whole, tmp_path / "a.safetensors"))
    file = save_as(whole | spoil, tmp_path / "b.safetensors")
    refused(lambda: load_lora(model.unet, file), file, STEM, *words)


@pytest.mark.parametrize("entry, words", [
    ({"lora_alpha": None}, ["lora_alpha is None"]), ({"lora_alpha": "8"}, ["lora_alpha is '8'"]),
    ({"alpha_pattern": {"to_q": None}}, ["to_q is None"]),
    ({"alpha_pattern": [1]}, ["alpha_pattern is [1]"]),
    ({"init_lora_weights": "pissa_niter_4"}, ["init_lora_weights is 'pissa_niter_4'", "convert"]),
    ({"init_lora_weights": "loftq"}, ["init_lora_weights is 'loftq'", "another start"]),
    ({"alpha_pattern": {"(to_q": 8}}, ["(to_q", "regular expression"]),
    ({"alpha_pattern": {"(a+)+$": 8}}, ["(a+)+$", "simpler"])])
def test_settings_of_peft_are_checked(tmp_path, model, entry, words):
    pair = {f"{STEM}.lora_A.weight": torch.zeros(2, 64), f"{STEM}.lora_B.weight": torch.ones(64, 2)}
    file = save_as(pair, tmp_path / "adapter_model.safetensors")
    change(tmp_path / "adapter_config.json", r=2, lora_alpha=4)
    assert load_lora(random_model().unet, file).tensors == 2
    change(tmp_path / "adapter_config.json", **entry)
    refused(lambda: load_lora(model.unet, file), file, *words)


# What it is

KINDS = {
    "Stable Diffusion XL": {"conditioner.embedders.1.model.ln_final.bias": (8,)},
    "Stable Diffusion 2": {"cond_stage_model.model.transformer.resblocks.0.ln_1.bias": (8,)},
    "inpainting": {"model.diffusion_model.input_blocks.0.0.weight": (32, 9, 3, 3)},
    "FLUX": {"double_blocks.0.img_attn.qkv.weight": (8, 8)},
    "ControlNet": {"control_model.input_hint_block.0.weight": (8, 8)},
    "a LoRA": {"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": (2, 8)},
    "a motion LoRA": {"mid_block.motion_modules.0.temporal_transformer.transformer_blocks.0."
                      "attention_blocks.0.processor.to_q_lora.up.weight": (8, 2)},
    "a motion module": {"down_blocks.0.motion_modules.0.temporal_transformer.norm.weight": (8,)},
    "an embedding": {"emb_params": (2, 768)},
    "a VAE": {"decoder.conv_in.weight": (8, 4, 3, 3)},
    "a UNet in diffusers'": {"up_blocks.0.resnets.0.conv1.weight": (8, 8, 3, 3)},
}
WHERE_TO = {"a LoRA": "--lora", "a motion LoRA": "--lora", "a motion module": "--motion-module",
            "a VAE": "--vae"}


@pytest.mark.parametrize("what", KINDS)
@pytest.mark.parametrize("ending", [".safetensors", ".ckpt"])
def test_what_is_given_as_a_model_is_named(tmp_path, what, ending):
    file = save_as({key: torch.zeros(shape) for key, shape in KINDS[what].items()},
                   tmp_path / f"a{ending}")
    refused(lambda: load_model(file), file, f"this is {what}".replace("is inpainting",
            "is a model for inpainting").replace("is Stable", "is a Stable").replace(
            "is FLUX", "is a FLUX").replace("is ControlNet", "is a ControlNet"),
            WHERE_TO.get(what, "--model" if what not in ("an embedding", "ControlNet") else "none"))


def test_an_embedding_of_a1111_is_named(tmp_path):
    torch.save({"string_to_token": {"*": 265}, "string_to_param": {"*": torch.zeros(2, 768)},
                "name": "a"}, tmp_path / "a.pt")
    refused(lambda: load_model(tmp_path / "a.pt"), "a.pt", "an embedding")


@pytest.mark.parametrize("entries, what", [
    ({"in_channels": 9}, "inpainting"), ({"cross_attention_dim": 1024}, "Stable Diffusion 2"),
    ({"cross_attention_dim": 2048, "addition_embed_type": "text_time"}, "Stable Diffusion XL")])
def test_a_folder_of_another_model_is_named(folder, entries, what):
    file = change(folder / "unet" / "config.json", **entries)
    refused(lambda: load_model(folder), file, what, "--model")


@pytest.mark.parametrize("name", ["motion LoRA", "LoRA", "checkpoint", "embedding"])
def test_what_is_given_as_a_motion_module_is_named(small_sd15, model_folder, tmp_path, name):
    tensors = single_file(small_sd15) if name == "checkpoint" else {
        key: torch.zeros(shape) for what, keys in KINDS.items() if what.endswith(f" {name}")
        for key, shape in keys.items()}
    file = save_as(tensors, tmp_path / "a.safetensors")
    refused(lambda: load_model(model_folder, file), file, name, "no motion module in it")


def test_a_motion_module_given_as_a_lora_is_named(tmp_path, model):
    file = save_as(original_motion(model.unet), tmp_path / "mm.safetensors")
    refused(lambda: load_lora(model.unet, file), file, "a motion module", "--motion-module")


def test_a_checkpoint_without_vae_or_text_encoder(small_sd15, model_folder, tmp_path):
    tensors = single_file(small_sd15)
    file = save_as({k: v for k, v in tensors.items() if not k.startswith("first_stage")},
                   tmp_path / "a.safetensors")
    refused(lambda: load_model(file), file, "no VAE in it", "--vae")
    assert load_model(file, vae=model_folder / "vae").vae is not None
    file = save_as({k: v for k, v in tensors.items() if not k.startswith("cond_stage")},
                   tmp_path / "b.safetensors")
    refused(lambda: load_model(file), file, "no text encoder in it")


def test_every_published_list_is_what_it_is():
    for path in (Path(__file__).parent / "keys").glob("*.json"):
        tensors = {key: torch.empty(shape, device="meta")
                   for key, shape in json.loads(path.read_text()).items()}
        right = {"sd15_ldm": "a Stable Diffusion 1.5 checkpoint", "mm": "a motion module",
                 "v2_motion_lora": "a motion LoRA", "v3_sd15_adapter": "a LoRA",
                 "sd15_vae": "a VAE", "sd15_unet": "a UNet in diffusers' layout",
                 "sd15_text": "a CLIP model", "clip": "a CLIP model"}
        name = next(what for start, what in right.items() if path.name.startswith(start))
        assert kind_of(tensors)[0] == name, path.name


@pytest.mark.parametrize("content, what", [
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a pointer of Git LFS"),
    (b"\n<!DOCTYPE html><html>", "a web page"), (b"<HTML>", "a web page")])
def test_what_a_download_leaves_in_the_place_of_weights(folder, content, what):
    for file in (folder / "unet" / WEIGHTS, folder / "unet" / "diffusion_pytorch_model.bin"):
        file.write_bytes(content)
        refused(lambda: load_model(folder), file, what, "fetch it again")
        file.unlink()


# What is only spelled otherwise

def parameters(model):
    return {f"{part}.{name}": p for part in ("text_encoder", "vae", "unet")
            for name, p in getattr(model, part).named_parameters()}


def same(loaded, expected) -> bool:
    a, b = parameters(loaded), parameters(expected)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in b)


def test_contents_count_not_endings(small_sd15, folder, model, tmp_path):
    """safetensors under .ckpt, torch.save's under .safetensors."""
    file, motion = tmp_path / "sd.ckpt", tmp_path / "mm.safetensors"
    save_file(single_file(small_sd15), file)
    torch.save(original_motion(small_sd15.unet), motion)
    assert same(load_model(file, motion), small_sd15)
    lora = tmp_path / "lora.ckpt"
    add_lora(model.unet, "spatial", (2,), rank=2)
    save_lora(model.unet, lora, {"prompt": "a bear"})
    file = load_lora(random_model().unet, lora)
    assert file.tensors == 40 and file.metadata["prompt"] == "a bear"


def test_a_text_encoder_without_its_prefix(small_sd15, folder, model, tmp_path):
    """As transformers 5 saves it in a folder, and some checkpoints have it."""
    file = folder / "text_encoder" / "model.safetensors"
    save_as({k.removeprefix("text_model."): v for k, v in load_file(file).items()}, file)
    assert same(load_model(folder), model)
    tensors = {k.replace("transformer.text_model.", "transformer."): v
               for k, v in single_file(small_sd15).items()}
    loaded = load_model(save_as(tensors, tmp_path / "sd.safetensors"))
    assert torch.equal(loaded.text_encoder.token_embedding.weight,
                       small_sd15.text_encoder.token_embedding.weight)


def test_tokenizer_json_alone(tmp_path):
    """What transformers 5 writes; the tiny model's, with merges as pairs and as strings."""
    source = Path(__file__).resolve().parent.parent / "weights" / "tiny" / "tokenizer"
    whole = read_tokenizer(source, 77)
    merges = sorted(whole.rank, key=whole.rank.get)
    for form in (list, " ".join):
        (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {
            "type": "BPE", "vocab": whole.vocabulary, "merges": [form(pair) for pair in merges]}}))
        read = read_tokenizer(tmp_path, 77)
        assert read(["a Teddy bear's 雪"]).tolist() == whole(["a Teddy bear's 雪"]).tolist()


@torch.no_grad()
def test_a_folder_of_animatediffpipeline(folder, tmp_path):
    """Its UNet is a UNetMotionModel with the motion modules inside: as both files apart."""
    other = random_model(3, seed=7)
    apart = tmp_path / "apart"
    save_model(other, apart, torch.float32)
    unet = UNetMotionModel.from_unet2d(UNet2DConditionModel.from_pretrained(apart / "unet"),
                                       MotionAdapter.from_pretrained(apart / "motion_adapter"))
    shutil.rmtree(apart / "motion_adapter")
    shutil.rmtree(apart / "unet")
    unet.save_pretrained(apart / "unet")
    assert same(load_model(apart), other)
    assert load_model(apart).unet.config == other.unet.config
    assert same(load_model(folder, motion_module=apart, vae=apart), load_model(
        folder, motion_module=apart / "unet", vae=apart / "vae"))


@pytest.mark.parametrize("alpha", [1, 0.5])
def test_an_alpha_that_is_a_plain_number_counts(tmp_path, model, alpha):
    stem = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    pair = {f"{stem}.lora_down.weight": torch.ones(2, 32), f"{stem}.lora_up.weight":
            torch.ones(32, 2)}
    torch.save(pair | {f"{stem}.alpha": alpha}, tmp_path / "number.pt")
    torch.save(pair | {f"{stem}.alpha": torch.tensor(alpha)}, tmp_path / "tensor.pt")
    number, tensor = (read_lora(tmp_path / f"{name}.pt", model.unet)
                      for name in ("number", "tensor"))
    assert number.unet.keys() == tensor.unet.keys()
    [one], [other] = number.unet.values(), tensor.unet.values()
    assert one.scale == other.scale == alpha / 2


def test_a_torchscript_archive_is_named(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "ViT-B-32.pt")
    refused(lambda: read_tensors(tmp_path / "ViT-B-32.pt"), "ViT-B-32.pt", "TorchScript archive",
            "Hugging Face")


def test_a_name_that_is_not_utf_8_is_no_damaged_file(tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/s\xff"))
    folder.mkdir()
    write_tensors({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").rename(folder / "a.safetensors")
    refused(lambda: read_tensors(folder / "a.safetensors"), "names in UTF-8 alone; rename")


def test_a_bundled_embedding_is_named_and_the_lora_applies(tmp_path, model):
    pair = {f"{STEM}.lora_A.weight": torch.zeros(2, 64), f"{STEM}.lora_B.weight": torch.ones(64, 2)}
    file = read_lora(save_as(pair | {"bundle_emb.my_cat.string_to_param.*": torch.zeros(1, 32)},
                             tmp_path / "a.safetensors"), model.unet)
    assert file.tensors == 2
    assert file.notes == ["its embedding my_cat is left out: this code uses none"]


@pytest.mark.parametrize("name", ["adapter.safetensors", "pytorch_lora_weights.safetensors",
                                  "adapter_model.safetensors"])
def test_a_folder_given_as_a_lora(tmp_path, folder, name):
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / name).touch()
    assert find_lora(tmp_path / "lora", "--lora").name == name
    refused(lambda: find_lora(folder, "--lora"), folder, "a model folder", "--model")
    (tmp_path / "lora" / name).rename(tmp_path / "lora" / "adapter-000004.safetensors")
    refused(lambda: find_lora(tmp_path / "lora", "--lora"), tmp_path / "lora",
            "its training has not ended; go on with --resume, or name")


# Values

@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "motion_adapter"])
@pytest.mark.parametrize("value", [None, -1, 0, 2.5, 10 ** 400, "8", [], [0], {}, True,
                                   float("nan")], ids=lambda value: str(value)[:9])
def test_every_value_of_a_config_is_checked(folder, part, value):
    file = folder / part / "config.json"
    whole = json.loads(file.read_text())
    used = {"unet": ["in_channels", "block_out_channels", "cross_attention_dim",
                     "attention_head_dim", "norm_num_groups", "layers_per_block"],
            "vae": ["block_out_channels", "layers_per_block", "latent_channels", "norm_num_groups",
                    "scaling_factor"],
            "text_encoder": ["vocab_size", "hidden_size", "num_hidden_layers",
                             "num_attention_heads", "intermediate_size", "max_position_embeddings"],
            "motion_adapter": ["motion_num_attention_heads"]
            + ["motion_max_seq_length"] * (value is not None)}[part]
    if value == 2.5:        # a scale may be
        used = [key for key in used if key != "scaling_factor"]
    assert set(used) <= whole.keys()
    for key in used:
        file.write_text(json.dumps(whole | {key: value}))
        refused(lambda: load_model(folder), file, key)


@pytest.mark.parametrize("content", [b"[1]", b"7", b"\xff\xfe{}", b"[" * 100_000, b""])
def test_a_config_that_is_no_object(folder, content):
    (folder / "unet" / "config.json").write_bytes(content)
    refused(lambda: load_model(folder), folder / "unet" / "config.json", "fetch it again")


def test_a_vocabulary_larger_than_the_table(folder):
    file = folder / "tokenizer" / "vocab.json"
    vocabulary = json.loads(file.read_text())
    file.write_text(json.dumps(vocabulary | {"more": len(vocabulary)}))
    refused(lambda: load_model(folder), file, "another model")
    for bad in ({"a": None}, {"a": 5}, {START: 10 ** 6}):
        file.write_text(json.dumps(vocabulary | bad))
        refused(lambda: load_model(folder), file)


def test_parts_of_two_models(folder, model_folder):
    change(folder / "unet" / "config.json", cross_attention_dim=48)
    refused(lambda: load_model(folder), folder, "width 48", "two models")


# Bytes

def test_two_files_of_one_lora_are_the_same_bytes(tmp_path, model):
    add_lora(model.unet, "spatial", (2, 6), rank=2)
    told = {f"key {k}": f"ä \x1f \" {k}" for k in range(20)} | {"prompt": "雪", "rank": 2}
    files = []
    for k in range(4):
        files.append(tmp_path / str(k) / "a.safetensors")
        save_lora(model.unet, files[-1], dict(sorted(told.items(), key=lambda _: torch.rand(1))))
    assert len({path.read_bytes() for path in files}) == 1
    header = files[0].read_bytes()[8:]
    names = json.loads(header[:int.from_bytes(files[0].read_bytes()[:8], "little")])["__metadata__"]
    assert list(names) == sorted(names) and names["key 3"] == told["key 3"]
    assert load_lora(random_model().unet, files[0]).tensors > 0
    for target in ("diffusers", "kohya", "animatediff", "comfyui"):
        assert target in TARGETS
        twice = [{p.name: p.read_bytes() for p in export(files[0], target, tmp_path / f"out {k}")}
                 for k in range(2)]
        assert twice[0] == twice[1]


def test_a_folder_that_diffusers_and_transformers_saved(folder, model):
    """With every entry that they write today, most of them None."""
    for part, kind in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL),
                       ("text_encoder", CLIPTextModel), ("motion_adapter", MotionAdapter)):
        before = len(json.loads((folder / part / "config.json").read_text()))
        kind.from_pretrained(folder / part).save_pretrained(folder / part)
        assert len(json.loads((folder / part / "config.json").read_text())) > before
    assert same(load_model(folder), model)
    assert load_model(folder).vae.config == model.vae.config


def test_stable_diffusion_15s_own_configs():
    """As published, written by diffusers 0.6.0: no scaling_factor."""
    cross, up = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
    assert unet_config({
        "_class_name": "UNet2DConditionModel", "_diffusers_version": "0.6.0", "act_fn": "silu",
        "attention_head_dim": 8, "block_out_channels": [320, 640, 1280, 1280],
        "center_input_sample": False, "cross_attention_dim": 768,
        "down_block_types": [cross, cross, cross, "DownBlock2D"], "downsample_padding": 1,
        "flip_sin_to_cos": True, "freq_shift": 0, "in_channels": 4, "layers_per_block": 2,
        "mid_block_scale_factor": 1, "norm_eps": 1e-05, "norm_num_groups": 32, "out_channels": 4,
        "sample_size": 64, "up_block_types": ["UpBlock2D", up, up, up]},
        SD15_UNET.motion, "") == SD15_UNET
    assert vae_config({
        "_class_name": "AutoencoderKL", "_diffusers_version": "0.6.0", "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512], "down_block_types": ["DownEncoderBlock2D"] * 4,
        "in_channels": 3, "latent_channels": 4, "layers_per_block": 2, "norm_num_groups": 32,
        "out_channels": 3, "sample_size": 512, "up_block_types": ["UpDecoderBlock2D"] * 4},
        "") == SD15_VAE
    assert text_config({
        "architectures": ["CLIPTextModel"], "attention_dropout": 0.0, "bos_token_id": 0,
        "dropout": 0.0, "eos_token_id": 2, "hidden_act": "quick_gelu", "hidden_size": 768,
        "initializer_factor": 1.0, "initializer_range": 0.02, "intermediate_size": 3072,
        "layer_norm_eps": 1e-05, "max_position_embeddings": 77, "model_type": "clip_text_model",
        "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 1,
        "projection_dim": 768, "torch_dtype": "float32", "vocab_size": 49408}, "") == SD15_TEXT


@pytest.mark.parametrize("part, entry, value", [
    ("unet", "flip_sin_to_cos", False), ("unet", "freq_shift", 1), ("unet", "act_fn", "gelu"),
    ("unet", "center_input_sample", True), ("unet", "downsample_padding", 0),
    ("unet", "mid_block_scale_factor", 2), ("unet", "dual_cross_attention", True),
    ("unet", "only_cross_attention", True), ("unet", "resnet_time_scale_shift", "scale_shift"),
    ("unet", "class_embed_type", "timestep"), ("unet", "encoder_hid_dim", 8),
    ("unet", "addition_embed_type", "text"), ("unet", "transformer_layers_per_block", 2),
    ("unet", "down_block_types", ["DownBlock2D"] * 4),
    ("unet", "up_block_types", ["UpBlock2D"] * 4),
    ("vae", "use_post_quant_conv", False), ("vae", "mid_block_add_attention", False),
    ("vae", "latents_mean", [0.0] * 4),
    ("motion_adapter", "motion_transformer_layers_per_block", 2),
    ("motion_adapter", "motion_mid_block_layers_per_block", 2)])
def test_no_entry_that_changes_what_is_computed_is_passed_over(folder, part, entry, value):
    file = change(folder / part / "config.json", **{entry: value})
    refused(lambda: load_model(folder), file, f"{entry} is")


@pytest.mark.parametrize("part, entry, parts", [
    ("unet", "attention_head_dim", "attention heads"), ("unet", "norm_num_groups", "groups"),
    ("vae", "norm_num_groups", "groups"),
    ("text_encoder", "num_attention_heads", "attention heads"),
    ("motion_adapter", "motion_num_attention_heads", "attention heads of the motion module")])
def test_widths_are_divisible(folder, part, entry, parts):
    change(folder / part / "config.json", **{entry: 3})
    refused(lambda: load_model(folder), "cannot be divided into 3 " + parts)


def test_a_vae_of_other_latents_is_of_another_model(tmp_path):
    model = random_model()
    model.vae = VAE(replace(model.vae.config, latent_channels=8))
    save_model(model, tmp_path / "m")
    refused(lambda: load_model(tmp_path / "m"), tmp_path / "m", "4 latent channels, its VAE 8")
