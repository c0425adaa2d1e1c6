"""What is saved is what is loaded, in every layout; what cannot be is refused in a sentence."""

import contextlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import TINY
from diffusers.models.embeddings import SinusoidalPositionalEmbedding
from safetensors.torch import load_file, save_file

import customttt
from customttt import UserError, load_model
from customttt.files import keys
from customttt.files.load import WEIGHTS
from customttt.files.random_model import main as random_model_command, random_model
from customttt.files.save import save_model
from customttt.model.motion import positional_encoding

LISTS = Path(__file__).parent / "keys"
UNET = Path("unet", WEIGHTS)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A small random model, in place of the tiny one: motion modules of every version fit it."""
    folder = tmp_path_factory.mktemp("models") / "random"
    save_model(random_model(), folder, torch.float32)
    return folder


@pytest.fixture
def model():
    return random_model()


# ------------------------------------------------------------------ helpers

def parameters(model, only=lambda name: True):
    return {f"{part}.{name}": p for part in ("text_encoder", "vae", "unet")
            for name, p in getattr(model, part).named_parameters() if only(name)}


def image_only(name):
    return not keys.is_motion(name)


def assert_same_bits(loaded, expected):
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], p) for name, p in expected.items())


def save_as(tensors, path):
    """.safetensors, or a pickle as training scripts write it."""
    tensors = {key: value.detach().contiguous() for key, value in tensors.items()}
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save({"epoch": 1, "global_step": 500, "state_dict": tensors}, path)
    return path


def single_file(model, dtype=torch.float32):
    """A checkpoint's tensors in the original layout; the VAE's attention as 1x1 convolutions."""
    tensors = {keys.original_unet(name): p for name, p in model.unet.named_parameters()
               if image_only(name)}
    for name, p in model.vae.named_parameters():
        key = keys.original_vae(name)
        tensors[key] = p[:, :, None, None] if ".mid.attn_1." in key and p.ndim == 2 else p
    tensors |= {keys.original_text(name): p for name, p in model.text_encoder.named_parameters()}
    return {key: value.detach().to(dtype) for key, value in tensors.items()}


EXTRAS = {"betas": torch.zeros(1000), "sqrt_recipm1_alphas_cumprod": torch.zeros(1000),
          "model_ema.decay": torch.tensor(0.9), "model_ema.num_updates": torch.tensor(7),
          "model_ema.diffusion_modelinput_blocks00weight": torch.zeros(32, 4, 3, 3),
          "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None]}


def original_motion(unet, pe=True):
    """The motion modules in AnimateDiff's own layout, with a table of positions an attention."""
    tensors = {keys.original_motion(name): p for name, p in unet.named_parameters()
               if keys.is_motion(name)}
    for name, module in unet.named_modules():
        if pe and name.endswith((".block.attn1", ".block.attn2")) and keys.is_motion(name):
            table = positional_encoding(unet.config.motion.max_frames, module.to_q.in_features)
            tensors[keys.original_motion(name + ".") + "pos_encoder.pe"] = table[None]
    return tensors


@pytest.fixture
def folder(model_folder, tmp_path):
    """A copy of the random model folder, to spoil."""
    return shutil.copytree(model_folder, tmp_path / "model")


@pytest.fixture
def small_sd15(model_folder, tmp_path, monkeypatch):
    """Single files are Stable Diffusion 1.5: here that is the small model, tokenizer beside it."""
    model = random_model()
    monkeypatch.setattr("customttt.files.load.SD15_UNET", model.unet.config)
    monkeypatch.setattr("customttt.files.load.SD15_VAE", model.vae.config)
    monkeypatch.setattr("customttt.files.load.SD15_TEXT", model.text_encoder.config)
    shutil.copytree(model_folder / "tokenizer", tmp_path / "tokenizer")
    return model


def refused(load, *named):
    """The error is one sentence (one line) that names these."""
    with pytest.raises(UserError) as caught:
        load()
    message = str(caught.value)
    print(message)
    assert "\n" not in message and len(message) < 500
    for each in named:
        assert str(each) in message


# ------------------------------------------------------------------ model folders

@pytest.mark.parametrize("version", [None, 1, 2, 3])
def test_saved_and_loaded_bit_for_bit(version, tmp_path):
    model = random_model(version)
    save_model(model, tmp_path / "m", torch.float32)
    loaded = load_model(tmp_path / "m")
    assert_same_bits(parameters(loaded), parameters(model))
    for part in ("unet", "vae", "text_encoder"):
        assert getattr(loaded, part).config == getattr(model, part).config
    assert loaded.name == "m"
    assert not any(p.requires_grad or p.is_meta for p in parameters(loaded).values())
    assert loaded.tokenizer(["a Bär"]).tolist() == model.tokenizer(["a Bär"]).tolist()


def test_loading_does_not_import_the_compiler():
    """torch._dynamo alone takes longer than all the rest of loading the tiny model."""
    code = (f"import sys, customttt; customttt.load_model({str(TINY)!r}); "
            f"sys.exit('torch._dynamo' in sys.modules)")
    subprocess.run([sys.executable, "-c", code], check=True, cwd=TINY.parents[1])


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("wanted", [torch.float16, torch.float32])
def test_any_dtype_is_converted(stored, wanted, tmp_path, model):
    save_model(model, tmp_path / "m", stored)
    loaded = load_model(tmp_path / "m", dtype=wanted)
    assert_same_bits(parameters(loaded),
                     {name: p.to(stored).to(wanted) for name, p in parameters(model).items()})


def test_fp16_and_pickled_file_names(folder, model):
    """What a Hugging Face repository may hold in place of the fp32 safetensors."""
    (folder / UNET).rename(folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    torch.save(load_file(folder / "vae" / WEIGHTS), folder / "vae" / "diffusion_pytorch_model.bin")
    (folder / "vae" / WEIGHTS).unlink()
    text = folder / "text_encoder"
    torch.save(load_file(text / "model.safetensors"), text / "pytorch_model.bin",
               _use_new_zipfile_serialization=False)        # as before torch 1.6
    (text / "model.safetensors").unlink()
    assert_same_bits(parameters(load_model(folder)), parameters(model))
    (text / "pytorch_model.bin").rename(text / "pytorch_model.fp16.bin")
    assert_same_bits(parameters(load_model(folder)), parameters(model))
    (text / "pytorch_model.fp16.bin").unlink()
    (text / "model.safetensors.index.json").touch()
    with pytest.raises(UserError, match="text_encoder: its weights are in several files"):
        load_model(folder)


def test_of_several_weight_files_fp32_is_read_before_fp16_and_no_pickle(folder, model):
    zeros = {key: torch.zeros_like(value) for key, value in load_file(folder / UNET).items()}
    save_file(zeros, folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    torch.save(zeros, folder / "unet" / "diffusion_pytorch_model.bin")
    assert_same_bits(parameters(load_model(folder)), parameters(model))


def test_random_weights_replace_no_others(model_folder, monkeypatch):
    before = (model_folder / UNET).read_bytes()
    monkeypatch.setattr(sys, "argv", ["random_model", str(model_folder)])
    with pytest.raises(UserError, match="holds a model already; give another folder"):
        random_model_command()
    assert (model_folder / UNET).read_bytes() == before


def test_old_vae_names(folder, model):
    """Stable Diffusion 1.5's own VAE file calls its attention query, key, value, proj_attn."""
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    file = folder / "vae" / WEIGHTS
    tensors = {keys.replace(key, old): value for key, value in load_file(file).items()}
    assert any(".proj_attn." in key for key in tensors)
    save_as(tensors, file)
    assert_same_bits(parameters(load_model(folder)), parameters(model))


# ------------------------------------------------------------------ single files

@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("extras", [{}, EXTRAS], ids=["plain", "extras"])
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_single_file(small_sd15, tmp_path, suffix, extras, dtype):
    file = save_as(single_file(small_sd15, dtype) | extras, tmp_path / f"sd{suffix}")
    loaded = load_model(file)
    expected = parameters(small_sd15, image_only)
    assert_same_bits(parameters(loaded), {k: p.to(dtype).float() for k, p in expected.items()})
    assert loaded.unet.config.motion is None


def test_what_a_merged_checkpoint_has_besides_is_named(small_sd15, tmp_path):
    merged = single_file(small_sd15) | {"first_stage_model.model_ema.decay": torch.zeros(1)}
    load_model(save_as(merged, tmp_path / "sd.safetensors"))
    save_as(merged | {"denoiser.sigmas": torch.zeros(9)}, tmp_path / "sd.safetensors")
    with pytest.warns(UserWarning, match="1 tensors left out, .*: denoiser.sigmas"):
        loaded = load_model(tmp_path / "sd.safetensors")
    assert_same_bits(parameters(loaded), parameters(small_sd15, image_only))


def test_single_file_with_a_motion_module(small_sd15, tmp_path):
    file = save_as(single_file(small_sd15), tmp_path / "sd.safetensors")
    motion = save_as(original_motion(small_sd15.unet), tmp_path / "mm.ckpt")
    assert_same_bits(parameters(load_model(file, motion)), parameters(small_sd15))


@pytest.mark.parametrize("name", ["sd15_ldm_pruned_emaonly_1145", "sd15_ldm_fp16_community_1131"])
@pytest.mark.parametrize("motion", [None, "mm_v2_guoyww_588", "mm_v3_diffusers_540"])
def test_public_single_files_at_full_size(name, motion, model_folder, tmp_path, monkeypatch):
    """The public files' key lists on "meta": every parameter is filled, every extra left out."""
    def read(path):
        listed = json.loads((LISTS / f"{Path(path).stem}.json").read_text())
        return {key: torch.empty(shape, device="meta") for key, shape in listed.items()}

    monkeypatch.setattr("customttt.files.load.read_weights", read)
    shutil.copytree(model_folder / "tokenizer", tmp_path / "tokenizer")
    for each in filter(None, (name, motion)):
        (tmp_path / f"{each}.safetensors").touch()
    loaded = load_model(tmp_path / f"{name}.safetensors",
                        motion and tmp_path / f"{motion}.safetensors", device="meta")
    assert sum(p.numel() for p in parameters(loaded).values()) == (
        859_520_964 + 83_653_863 + 123_060_480
        + {None: 0, "mm_v2_guoyww_588": 453_209_280, "mm_v3_diffusers_540": 417_137_600}[motion])


def test_single_file_without_tokenizer(small_sd15, tmp_path):
    file = save_as(single_file(small_sd15), tmp_path / "sd.safetensors")
    shutil.rmtree(tmp_path / "tokenizer")
    refused(lambda: load_model(file), file, "vocab.json and merges.txt", tmp_path / "tokenizer")


# ------------------------------------------------------------------ motion modules

@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("version, frames", [(1, 24), (2, 32), (3, 32)])
def test_original_motion_module(model_folder, tmp_path, version, frames, training, suffix):
    """Also as AnimateDiff's train.py saves it: `module.` before each key, the whole UNet in it."""
    unet = random_model(version, seed=7).unet
    tensors = original_motion(unet)
    if training:
        tensors |= {keys.diffusers_unet(n): p for n, p in unet.named_parameters() if image_only(n)}
        tensors = {"module." + key: value for key, value in tensors.items()}
    file = save_as(tensors, tmp_path / f"mm{suffix}")
    loaded = load_model(model_folder, motion_module=file)
    assert_same_bits(parameters(loaded),
                     parameters(random_model(), image_only)
                     | {f"unet.{n}": p for n, p in unet.named_parameters() if keys.is_motion(n)})
    motion = loaded.unet.config.motion
    assert (motion.version, motion.max_frames) == (version, frames)
    assert motion.heads == 8        # no motion file says how many; AnimateDiff has eight


@pytest.mark.parametrize("given, version, frames", [(None, 1, 24), (1, 1, 24), (3, 3, 32)])
def test_motion_module_without_positions_or_mid_block(model_folder, tmp_path, given, version,
                                                      frames):
    """As AnimateDiff's train.py writes them today: version 1, unless --motion-version says else."""
    file = save_as(original_motion(random_model(3, seed=7).unet, pe=False), tmp_path / "mm.ckpt")
    with contextlib.nullcontext() if given else pytest.warns(UserWarning, match="as version 1"):
        motion = load_model(model_folder, file, motion_version=given).unet.config.motion
    assert (motion.version, motion.max_frames) == (version, frames)


def test_motion_module_without_positions(model_folder, tmp_path, recwarn):
    """AnimateLCM has a mid block and no positions."""
    file = save_as(original_motion(random_model(2, seed=7).unet, pe=False), tmp_path / "mm.ckpt")
    motion = load_model(model_folder, file).unet.config.motion
    assert (motion.version, motion.max_frames) == (2, 32) and not recwarn.list
    refused(lambda: load_model(model_folder, file, motion_version=1), file, "--motion-version 1",
            "has a mid block")
    refused(lambda: load_model(model_folder, file, motion_version=4), "--motion-version 4",
            "must be 1, 2 or 3")
    shutil.copytree(model_folder, tmp_path / "images", ignore=shutil.ignore_patterns("motion_*"))
    refused(lambda: load_model(tmp_path / "images", motion_version=2), "--motion-version 2",
            "has no motion module")


def test_a_motion_module_that_is_shown_an_image_is_refused(model_folder, tmp_path):
    """PIA's .ckpt has a first convolution of nine channels; AnimateDiff's training checkpoints have
    Stable Diffusion's own."""
    tensors = original_motion(random_model(3, seed=7).unet)
    for more, taken in (({"conv_in.weight": torch.zeros(32, 9, 3, 3)}, False),
                        ({"img_encoder.weight": torch.zeros(2)}, False),
                        ({"conv_in.weight": torch.zeros(32, 4, 3, 3)}, True)):
        file = save_as(tensors | more, tmp_path / "mm.ckpt")
        if taken:
            load_model(model_folder, motion_module=file)
        else:
            refused(lambda: load_model(model_folder, motion_module=file), file, "shown an image")


def test_positions_that_were_learned_are_refused(model_folder, tmp_path):
    tensors = original_motion(random_model(3, seed=7).unet)
    key = next(key for key in tensors if key.endswith(".pe"))
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        whole = {k: v.to(dtype) for k, v in tensors.items()}
        load_model(model_folder, save_as(whole, tmp_path / "mm.safetensors"))
    file = save_as(tensors | {key: tensors[key] + 0.1}, tmp_path / "mm.safetensors")
    refused(lambda: load_model(model_folder, motion_module=file), file, key, "not the sinusoid")


@pytest.mark.parametrize("version, frames", [(1, 24), (2, 32), (3, 32)])
@pytest.mark.parametrize("pe", [False, True])
def test_diffusers_motion_adapter(model_folder, tmp_path, version, frames, pe):
    """A folder with config.json, as diffusers saves it: one table of positions a module."""
    other = random_model(version, seed=7)
    save_model(other, tmp_path / "m", torch.float32)
    adapter, width = tmp_path / "m" / "motion_adapter", other.unet.config.channels[0]
    if pe:
        stem = "down_blocks.0.motion_modules.0.transformer_blocks.0.pos_embed.pe"
        save_as(load_file(adapter / WEIGHTS) | {stem: positional_encoding(frames, width)[None]},
                adapter / WEIGHTS)
    config = json.loads((adapter / "config.json").read_text())
    for channels, taken in ((9, False), (None, True)):      # PIA's reads a picture besides
        (adapter / "config.json").write_text(json.dumps(config | {"conv_in_channels": channels}))
        with contextlib.nullcontext() if taken else pytest.raises(UserError, match="conv_in_cha"):
            loaded = load_model(model_folder, motion_module=adapter)
    assert loaded.unet.config.motion == other.unet.config.motion
    only = {f"unet.{n}": p for n, p in other.unet.named_parameters() if keys.is_motion(n)}
    assert_same_bits({k: p for k, p in parameters(loaded).items() if k in only}, only)


@pytest.mark.parametrize("frames, channels", [(24, 320), (32, 320), (32, 1280)])
def test_the_positions_that_are_dropped_are_the_ones_recomputed(frames, channels):
    table = SinusoidalPositionalEmbedding(channels, max_seq_length=frames).pe[0]
    assert torch.allclose(positional_encoding(frames, channels), table, atol=1e-6, rtol=0)
    assert torch.equal(positional_encoding(7, channels), positional_encoding(frames, channels)[:7])


@pytest.mark.parametrize("version, most", [(1, 24), (2, 32), (3, 32)])
def test_a_clip_that_is_too_long(version, most):
    unet = random_model(version).unet
    inputs = torch.tensor([5]), torch.zeros(1, 3, 32)
    with torch.no_grad():
        assert unet(torch.zeros(1, 4, most, 8, 8), *inputs).shape[2] == most
        assert unet(torch.zeros(1, 4, 40, 8, 8), *inputs, motion=False).shape[2] == 40
        with pytest.raises(ValueError, match=f"{most + 1} frames, .* {version}.* at most {most}"):
            unet(torch.zeros(1, 4, most + 1, 8, 8), *inputs)


def test_an_image_model_has_no_motion_to_use():
    with pytest.raises(ValueError, match="no motion module: load one"):
        random_model(None).unet(torch.zeros(1, 4, 2, 8, 8), torch.tensor([5]),
                                torch.zeros(1, 3, 32))


# ------------------------------------------------------------------ nothing is unpickled

class Code:
    """Unpickled, it would make a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("write", [
    torch.save, partial(torch.save, _use_new_zipfile_serialization=False),
    lambda content, path: path.write_bytes(pickle.dumps(content))], ids=["zip", "legacy", "pickle"])
@pytest.mark.parametrize("place", ["checkpoint", "motion module", "folder"])
def test_a_pickle_with_code_in_it_is_refused_and_does_not_run(folder, tmp_path, place, write):
    mark, tensors = tmp_path / "the code ran", load_file(folder / UNET)
    file = tmp_path / "model.ckpt"
    if place == "folder":
        (folder / UNET).unlink()
        file = (folder / UNET).with_suffix(".bin")
    write({"state_dict": tensors, "callbacks": Code(mark)}, file)
    load = {"checkpoint": lambda: load_model(file), "folder": lambda: load_model(folder),
            "motion module": lambda: load_model(folder, motion_module=file)}[place]
    refused(load, file, "could run code")
    assert not mark.exists()
    with contextlib.suppress(Exception):
        torch.load(file, weights_only=False)        # what a careless loader does
    assert mark.exists()


# ------------------------------------------------------------------ damaged files

def rewrite(change, file):
    tensors = load_file(file)
    change(tensors)
    save_as(tensors, file)


def cut(file):
    file.write_bytes(file.read_bytes()[:file.stat().st_size // 2])


def drop_five(tensors):
    for key in [key for key in tensors if key.startswith("mid_block.resnets.0.")][:5]:
        del tensors[key]


@pytest.mark.parametrize("spoil, named", [
    (Path.unlink, ["no weights here", WEIGHTS]),
    (cut, ["not a whole safetensors file"]),
    (lambda file: file.write_bytes(b""), ["not a whole safetensors file"]),
    (lambda file: file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\n"),
     ["a pointer of Git LFS"]),
    (partial(rewrite, lambda t: t.pop("conv_in.weight")), ["1 missing: conv_in.weight"]),
    (partial(rewrite, drop_five), ["5 missing: mid_block.resnets.0.", ", ..."]),
    (partial(rewrite, lambda t: t.update(stray=torch.zeros(2))), ["1 unknown: stray"]),
    (partial(rewrite, lambda t: t.update({"conv_in.weight": torch.zeros(3, 3)})),
     ["1 wrong shapes: conv_in.weight (3, 3), needed (32, 4, 3, 3)"]),
    (partial(rewrite, lambda t: t.update({"conv_in.bias": torch.zeros(32, 1, 1)})),
     ["1 wrong shapes: conv_in.bias (32, 1, 1), needed (32,)"]),
], ids=["missing", "truncated", "empty", "pointer", "key", "keys", "unknown", "shape", "rank"])
def test_damaged_weights(folder, spoil, named):
    spoil(folder / UNET)
    refused(lambda: load_model(folder), folder / "unet", *named)


@pytest.mark.parametrize("part", ["vae", "text_encoder", "motion_adapter"])
def test_every_part_is_checked(folder, part):
    (file,) = (folder / part).glob("*.safetensors")
    rewrite(lambda tensors: tensors.update({"a.motion_modules.stray": torch.zeros(1)}), file)
    refused(lambda: load_model(folder), file, "1 unknown: a.motion_modules.stray")


@pytest.mark.parametrize("change, named", [
    (None, "no unet/config.json in it"),
    (lambda config: "{", "cannot be read as JSON"),
    (lambda config: [config.pop("cross_attention_dim"), config][1], "lacks the entry"),
    (lambda config: config | {"use_linear_projection": True}, "use_linear_projection is True"),
    (lambda config: config | {"layers_per_block": 3}, "layers_per_block is 3"),
    (lambda config: config | {"block_out_channels": [64, 64, 128, 128]}, "wrong shapes: ")])
def test_damaged_config(folder, change, named):
    file = folder / "unet" / "config.json"
    changed = None if change is None else change(json.loads(file.read_text()))
    if changed is None:
        file.unlink()
    else:
        file.write_text(changed if isinstance(changed, str) else json.dumps(changed))
    refused(lambda: load_model(folder), folder / "unet" if changed else folder, named)


@pytest.mark.parametrize("part, entry, value", [
    ("vae", "act_fn", "gelu"), ("vae", "use_quant_conv", False), ("vae", "shift_factor", 0.1159),
    ("text_encoder", "hidden_act", "gelu"), ("text_encoder", "layer_norm_eps", 1e-6),
    ("unet", "norm_eps", 1e-6), ("motion_adapter", "motion_layers_per_block", 3)])
def test_another_architecture_is_refused_in_every_part(folder, part, entry, value):
    """Its weights would load; what it computes is not what is built here."""
    file = folder / part / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {entry: value}))
    refused(lambda: load_model(folder), file, f"{entry} is {value!r}")


@pytest.mark.parametrize("name", ["mm.ckpt", "mm.safetensors"])
@pytest.mark.parametrize("damage", [cut, lambda file: file.write_bytes(b""),
                                    lambda file: file.write_text("<!doctype html>"), Path.unlink],
                         ids=["truncated", "empty", "html", "missing"])
def test_damaged_motion_module(model_folder, tmp_path, name, damage):
    file = save_as(original_motion(random_model().unet), tmp_path / name)
    damage(file)
    refused(lambda: load_model(model_folder, motion_module=file), file,
            "fetch it again" if file.exists() else "no such file")


def test_what_is_given_in_the_wrong_place(small_sd15, model_folder, tmp_path):
    lora, motion = tmp_path / "lora.safetensors", tmp_path / "mm.safetensors"
    customttt.add_lora(small_sd15.unet, "spatial", (2, 6), rank=2)
    customttt.save_lora(small_sd15.unet, lora)
    save_as(original_motion(random_model().unet), motion)
    refused(lambda: load_model(motion), motion, "not a Stable Diffusion", "--motion-module")
    refused(lambda: load_model(lora), lora, "not a Stable Diffusion", "--lora")
    refused(lambda: load_model(model_folder, motion_module=lora), lora, "no motion module in it")
    refused(lambda: load_model(tmp_path / "nowhere"), tmp_path / "nowhere", "no such")
    refused(lambda: load_model(model_folder / "unet"), model_folder / "unet", "tokenizer/")
    list_file = tmp_path / "list.ckpt"
    torch.save([torch.zeros(1)], list_file)
    refused(lambda: load_model(list_file), list_file, "no state dict")


def test_a_small_file_is_not_stable_diffusion_15(tmp_path, model_folder):
    """A single file has no config.json and is taken at full size: another size is refused."""
    shutil.copytree(model_folder / "tokenizer", tmp_path / "tokenizer")
    file = save_as(single_file(random_model()), tmp_path / "small.safetensors")
    refused(lambda: load_model(file), file, "missing: ")
