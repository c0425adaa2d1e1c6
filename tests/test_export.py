"""What we export loads elsewhere and does there what it does here; and it comes back unchanged.

diffusers and peft are the real ones. ComfyUI and AnimateDiff are not packages: the rules by which
they read a file, published in their source, are written here as functions.
"""

import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import relative_error, tiny_model
from diffusers import (AnimateDiffPipeline, AutoencoderKL, DDIMScheduler, MotionAdapter,
                       UNet2DConditionModel)
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from einops import rearrange
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from customttt import add_lora, load_lora, merge_lora, sample_latents, save_lora
from customttt.errors import UserError
from customttt.files import keys
from customttt.files.export import TARGETS, export
from customttt.files.reading import read_metadata, read_tensors
from customttt.lora import wrapped

KINDS = {"spatial": ("spatial",), "temporal": ("temporal",), "joined": ("spatial", "temporal")}
LAYERS = {"spatial": (2, 6), "temporal": (2, 5)}
PROMPT = "a teddy bear is lifting weights"
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.fixture(params=KINDS)
def adapter(request, tmp_path):
    """A random adapter of each kind, as train.py leaves it: output/KIND/adapter.safetensors."""
    return make_adapter(tmp_path / request.param, request.param)


def make_adapter(folder, kind, std=0.1, spatial_rank=4, **options):
    model = tiny_model()
    for each in KINDS[kind]:
        rank = spatial_rank if each == "spatial" else 4
        for p in add_lora(model.unet, each, LAYERS[each], rank, **options):
            torch.nn.init.normal_(p, std=std)
    file = folder / "adapter.safetensors"
    save_lora(model.unet, file, {"kind": kind, "prompt": PROMPT, "rank": 4}, KINDS[kind])
    return file


def merged(*files):
    model = tiny_model()
    for file in files:
        load_lora(model.unet, file)
    merge_lora(model.unet)
    return model


def deltas(file):
    """What a file adds to each weight of our UNet, by our names."""
    model = tiny_model()
    load_lora(model.unet, file)
    return {name: next(iter(each.loras.values())).delta().detach()
            for name, each in wrapped(model.unet)}


# ------------------------------------------------------------------ diffusers

def pipeline(folder):
    """AnimateDiffPipeline from a model folder of save_model, every part by from_pretrained."""
    return AnimateDiffPipeline(
        vae=AutoencoderKL.from_pretrained(folder / "vae"),
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder").float(),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        unet=UNet2DConditionModel.from_pretrained(folder / "unet"),
        motion_adapter=MotionAdapter.from_pretrained(folder / "motion_adapter"),
        scheduler=DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="linear",
                                steps_offset=1, clip_sample=False))


def make_norms_per_frame(unet):
    """The motion modules' GroupNorm as in the original AnimateDiff, and here."""
    def forward(norm, x):
        y = F.group_norm(rearrange(x, "b c f h w -> (b f) c h w"), norm.num_groups, norm.weight,
                         norm.bias, norm.eps)
        return rearrange(y, "(b f) c h w -> b c f h w", b=len(x))
    for module in unet.modules():
        if isinstance(module, AnimateDiffTransformer3D):
            module.norm.forward = partial(forward, module.norm)


@torch.no_grad()
@pytest.mark.parametrize("kind, target", [*((kind, "diffusers") for kind in KINDS),
                                          ("spatial", "kohya")])
def test_diffusers_gives_the_same_output_and_uses_all(kind, target, tmp_path, model_folder):
    adapter = make_adapter(tmp_path / kind, kind, std=0.4)  # else most of the output is the input
    [file] = export(adapter, target)
    pipe = pipeline(model_folder)
    make_norms_per_frame(pipe.unet)
    x, t, text = torch.randn(2, 4, 5, 16, 16), torch.tensor([801, 1]), torch.randn(2, 7, 96)
    plain = pipe.unet(x, t, text.repeat_interleave(5, dim=0)).sample
    pipe.load_lora_weights(str(file))
    injected = [each for each in pipe.unet.modules() if isinstance(each, LoraLayer)]
    written = [key for key in read_tensors(file) if not key.endswith(".alpha")]
    assert 2 * len(injected) == len(written) == len(read_tensors(adapter))
    assert all(scale == 1 for each in injected for scale in each.scaling.values())
    theirs = pipe.unet(x, t, text.repeat_interleave(5, dim=0)).sample
    assert relative_error(merged(adapter).unet(x, t, text), theirs) <= 1e-5
    assert relative_error(plain, theirs) > 0.01


@pytest.mark.parametrize("per_frame, guidance", [(True, 9.0), (False, 3.0)])
def test_diffusers_whole_pipeline(per_frame, guidance, tmp_path, model_folder):
    """Seed, tokenizer, text encoder, UNet with both LoRAs, guidance, DDIM: the same latents.

    In float64: at guidance 9 fp32's rounding alone, printed beside it, can pass the bound. As
    diffusers is, its motion GroupNorm shares statistics among the frames: that is measured at the
    guidance that suits the tiny model. The figures of docs/interoperability.md are printed here.
    """
    torch.manual_seed(0)
    adapter = make_adapter(tmp_path / "joined", "joined")
    pipe = pipeline(model_folder)
    pipe.set_progress_bar_config(disable=True)
    if per_frame:
        make_norms_per_frame(pipe.unet)
    pipe.load_lora_weights(str(*export(adapter, "diffusers")))
    pipe.to(torch.float64)
    model = merged(adapter)

    def ours():
        *_, z = sample_latents(model, PROMPT, steps=5, frames=8, size=64, seed=1,
                               guidance=guidance)
        return z
    in_fp32 = ours()
    model.unet.double()
    model.text_encoder.double()
    in_fp64 = ours()
    noise = pipe.prepare_latents(1, 4, 8, 64, 64, torch.float32, torch.device("cpu"),
                                 torch.Generator().manual_seed(1))      # as it draws it in fp32
    theirs = pipe(PROMPT, num_frames=8, height=64, width=64, num_inference_steps=5,
                  guidance_scale=guidance, latents=noise.double(), output_type="latent").frames
    print("fp32 against float64, both ours: ", end="")
    relative_error(in_fp32, in_fp64)
    error = relative_error(in_fp64, theirs)
    assert error <= 1e-5 if per_frame else 0.01 < error < 0.5


def snippet():
    text = (Path(__file__).parent.parent / "README.md").read_text()
    return re.search(r"```python\n(.+?)```", text, re.DOTALL)[1]


def test_the_documented_snippet_runs(tmp_path, model_folder, monkeypatch):
    """With other paths and smaller numbers, and nothing else changed."""
    adapter = make_adapter(tmp_path / "output" / "ttt", "joined")
    export(adapter, "diffusers")
    monkeypatch.chdir(tmp_path)
    code = snippet()
    for written, here in {'"weights/stable-diffusion-v1-5"': repr(str(model_folder)),
                          'num_inference_steps=25': 'num_inference_steps=2',
                          'width=256, height=256': 'width=64, height=64'}.items():
        assert code.count(written) == 1
        code = code.replace(written, here)
    names = {}
    exec(code, names)
    assert len(names["frames"]) == 16 and names["frames"][0].size == (64, 64)
    assert (tmp_path / "teddy.gif").stat().st_size > 0


# ------------------------------------------------------------------ the others, by their key rules

def read_as_animatediff(tensors):
    """load_diffusers_lora of guoyww/AnimateDiff (animatediff/utils/convert_lora_safetensor_to_
    diffusers.py): module name -> what it adds."""
    added = {}
    for key in tensors:
        if "up." in key:
            continue
        name = key.replace("processor.", "").replace("_lora", "").replace("down.", "")
        name = name.replace("up.", "").replace("to_out.", "to_out.0.")
        added[name] = torch.mm(tensors[key.replace(".down.", ".up.")], tensors[key])
    return added


def read_as_animatediff_evolved(tensors):
    """load_motion_lora_as_patches of ComfyUI-AnimateDiff-Evolved (animatediff/model_injection.py):
    keys without "temporal" are deleted; alpha is not read."""
    tensors = {key: value for key, value in tensors.items() if "temporal" in key}
    added = {}
    for key in tensors:
        if "up." in key:
            continue
        name = key.replace("processor.", "").replace("_lora", "").replace("down.", "")
        name = name.replace("up.", "")
        if "to_out.0." not in name:
            name = name.replace("to_out.", "to_out.0.")
        added[name] = torch.mm(tensors[key.replace(".down.", ".up.")], tensors[key])
    return added


def read_as_comfyui(tensors, diffusers_names):
    """load_lora of ComfyUI (comfy/lora.py, comfy/weight_adapter/lora.py), for kohya's names."""
    added, used = {}, set()
    for name in diffusers_names:
        x = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
        parts = f"{x}.lora_up.weight", f"{x}.lora_down.weight", f"{x}.alpha"
        if parts[0] in tensors:
            up, down, alpha = (tensors[part] for part in parts)
            added[name] = alpha.item() / len(down) * torch.mm(up.flatten(1), down.flatten(1))
            used |= set(parts)
    assert used == tensors.keys(), "lora key not loaded"
    return added


def original_names(unet, motion):
    layout = keys.original_motion if motion else keys.diffusers_unet
    return {layout(name): name.removesuffix(".weight") for name, _ in unet.named_parameters()
            if keys.is_motion(name) == motion}


READERS = {("comfyui", True): read_as_animatediff_evolved, ("comfyui", False): read_as_comfyui,
           ("animatediff", True): read_as_animatediff, ("animatediff", False): read_as_animatediff}


@pytest.mark.parametrize("target", ["comfyui", "animatediff"])
def test_published_rules_rebuild_the_same_weights(adapter, target):
    ours, theirs, unet = deltas(adapter), {}, tiny_model().unet
    for file in export(adapter, target):
        motion = "motion" in file.name
        names, reader = original_names(unet, motion), READERS[target, motion]
        if reader is read_as_comfyui:
            reader = partial(reader, diffusers_names=names)
        theirs |= {names[name]: delta for name, delta in reader(read_tensors(file)).items()}
    assert theirs.keys() == ours.keys()
    for name, delta in ours.items():
        assert torch.allclose(delta, theirs[name].view_as(delta), rtol=1e-6, atol=1e-6)


def test_the_original_repository_reads_its_files_with_torch_load(tmp_path):
    for file in export(make_adapter(tmp_path / "joined", "joined"), "animatediff"):
        content = torch.load(file, map_location="cpu", weights_only=True)
        assert list(content) == ["state_dict"]


# ------------------------------------------------------------------ and back

@pytest.mark.parametrize("kind, target", [
    (kind, target) for kind in KINDS for target in TARGETS
    if target != "kohya" or kind == "spatial"])     # the others are refused: see below
def test_export_then_import_is_the_identity(kind, target, tmp_path):
    adapter, model = make_adapter(tmp_path / kind, kind), tiny_model()
    for file in export(adapter, target):
        read = load_lora(model.unet, file, name="back")
        assert read.tensors == len([key for key in read_tensors(file) if "alpha" not in key])
    save_lora(model.unet, tmp_path / "back.safetensors", names=("back",))
    before, after = read_tensors(adapter), read_tensors(tmp_path / "back.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_convolutions_come_back_too(tmp_path):
    adapter = make_adapter(tmp_path / "spatial", "spatial", convolutions=True)
    for target in ("diffusers", "comfyui"):
        theirs = deltas(*export(adapter, target))
        assert all(torch.equal(delta, theirs[name]) for name, delta in deltas(adapter).items())


def test_diffusers_of_any_age_gets_one_rank(tmp_path):
    """Before 0.41 it takes one alpha for all modules, and scales a smaller rank up."""
    adapter = make_adapter(tmp_path / "joined", "joined", spatial_rank=8)
    [file] = export(adapter, "diffusers")
    ranks = {len(tensor) if "lora_A" in key else tensor.shape[1]
             for key, tensor in read_tensors(file).items()}
    assert ranks == {8}
    theirs = deltas(file)
    assert all(torch.equal(delta, theirs[name]) for name, delta in deltas(adapter).items())


def test_files_say_what_they_hold(adapter, tmp_path):
    kind = adapter.parent.name
    [file] = export(adapter, "diffusers", tmp_path / "elsewhere")
    assert file == tmp_path / "elsewhere" / f"{kind}.diffusers.safetensors"
    assert read_metadata(file) == {"format": "pt", "kind": kind, "prompt": PROMPT, "rank": "4"}
    kinds = [read_metadata(each)["kind"] for each in export(adapter, "comfyui")]
    assert tuple(kinds) == KINDS[kind]


# ------------------------------------------------------------------ refusals and the command

@pytest.mark.parametrize("kind", ["temporal", "joined"])
def test_kohya_is_refused_for_motion(kind, tmp_path):
    adapter = make_adapter(tmp_path / kind, kind)
    with pytest.raises(UserError, match=f"{kind}/adapter.safetensors: adapts motion modules"):
        export(adapter, "kohya")


def test_convolutions_are_refused_where_they_cannot_go(tmp_path):
    adapter = make_adapter(tmp_path / "spatial", "spatial", convolutions=True)
    with pytest.raises(UserError, match="adapter.safetensors: adapts convolutions"):
        export(adapter, "animatediff")


def test_only_our_own_files_are_exported(tmp_path):
    [foreign] = export(make_adapter(tmp_path / "spatial", "spatial"), "kohya")
    with pytest.raises(UserError, match="kohya.safetensors: not a LoRA that train.py wrote"):
        export(foreign, "diffusers")


def test_command(tmp_path):
    make_adapter(tmp_path / "ttt", "joined")
    command = [sys.executable, "-m", "customttt.files.export", tmp_path / "ttt", "--to"]
    done = subprocess.run([*command, "comfyui"], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 2 and all(Path(line.partition(": ")[0]).is_file() for line in lines)
    assert "models/loras" in lines[0] and "animatediff_motion_lora" in lines[1]
    done = subprocess.run([*command, "kohya"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and not done.stdout


@pytest.mark.parametrize("target", ["diffusers", "comfyui", "animatediff"])
@pytest.mark.parametrize("half, spoil", [
    ("down", lambda down: down[:2]), ("up", lambda up: up[:, :0]), ("down", lambda down: down[0, 0])],
    ids=["of two ranks", "of rank 0", "a number"])
def test_halves_that_do_not_fit_are_refused(half, spoil, target, tmp_path):
    file = make_adapter(tmp_path / "spatial", "spatial")
    tensors = read_tensors(file)
    key = next(key for key in tensors if half in key)
    save_file(tensors | {key: spoil(tensors[key]).contiguous()}, file)
    with pytest.raises(UserError, match="not a whole LoRA; train it again"):
        export(file, target)


def test_eight_bits_become_sixteen(tmp_path):
    small = {key: tensor.to(torch.float8_e4m3fn) for key, tensor in
             read_tensors(make_adapter(tmp_path, "spatial")).items()}
    exported = []
    for dtype in (torch.float8_e4m3fn, torch.float16):
        file = tmp_path / f"{dtype}.safetensors"
        save_file({key: tensor.to(dtype) for key, tensor in small.items()}, file)
        exported.append(read_tensors(*export(file, "comfyui")))
    for key, tensor in exported[1].items():
        assert exported[0][key].dtype == tensor.dtype and torch.equal(exported[0][key], tensor)
