"""Parity and peak memory at Stable Diffusion 1.5's own widths: 256 x 256 pixels, random weights.

  pytest -m full_size tests/test_full_size.py -s

Both sides share the weights' memory: 8 GB, and 14 GB while a second process's peak is measured. The
references are built on "meta", else initialising them would take most of the time.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import relative_error
from diffusers import AutoencoderKL
from test_parity import (TOLERANCE, carry, perturbed, reference_image_unet, reference_video_unet,
                         run_reference, text_names)
from transformers import CLIPTextConfig, CLIPTextModel

from customttt.files import keys, save
from customttt.files.random_model import random_model

pytestmark = [pytest.mark.full_size, pytest.mark.filterwarnings("ignore::FutureWarning")]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(1)
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def model():
    """Stable Diffusion 1.5 and AnimateDiff v3 in size, random in content."""
    model = random_model(3, full_size=True)
    with torch.no_grad():
        for part in (model.text_encoder, model.vae, model.unet):
            perturbed(part)
    return model


def on_meta(build, *arguments):
    with torch.device("meta"):
        return build(*arguments)


def test_vae(model):
    theirs = on_meta(AutoencoderKL.from_config, save.vae_json(model.vae.config))
    carry(model.vae, theirs, keys.diffusers_vae)
    pixels, latents = torch.rand(1, 3, 256, 256) * 2 - 1, torch.randn(1, 4, 32, 32)
    scale = theirs.config.scaling_factor
    mean = theirs.encode(pixels).latent_dist.mean
    assert relative_error(model.vae.encode(pixels), mean * scale) <= TOLERANCE
    decoded = theirs.decode(latents / scale).sample
    assert relative_error(model.vae.decode(latents), decoded) <= TOLERANCE


def test_text_encoder(model):
    theirs = CLIPTextModel(CLIPTextConfig(**save.text_json(model.text_encoder.config)))
    carry(model.text_encoder, theirs, text_names(theirs))
    ids = torch.randint(0, 49408, (2, 77))
    assert relative_error(model.text_encoder(ids), theirs(ids).last_hidden_state) <= TOLERANCE


def clip_inputs(frames):
    return torch.randn(1, 4, frames, 32, 32), torch.tensor([801]), torch.randn(1, 77, 768)


def test_image_unet(model):
    inputs = clip_inputs(frames=2)
    expected = run_reference(on_meta(reference_image_unet, model.unet), *inputs)
    assert relative_error(model.unet(*inputs, motion=False), expected) <= TOLERANCE


def test_video_unet(model):
    """Four frames of the sixteen, to save time; diffusers' motion GroupNorm made per frame."""
    inputs = clip_inputs(frames=4)
    expected = run_reference(on_meta(reference_video_unet, model.unet), *inputs)
    assert relative_error(model.unet(*inputs), expected) <= TOLERANCE


# ------------------------------------------------------------------ peak memory of load_model

LOAD = """
import re, sys, torch, customttt
def memory(what):
    return int(re.search(what + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
before = memory("VmRSS")        # of Python and torch: twice as much with CUDA's libraries
model = customttt.load_model(sys.argv[1], dtype=getattr(torch, sys.argv[2]))
weights = [p for part in (model.text_encoder, model.vae, model.unet) for p in part.parameters()]
for p in weights:
    p.view(-1)[::512].sum()     # every page of a mapped file counts, so read every page
print((memory("VmHWM") - before) / sum(p.nbytes for p in weights))
"""


@pytest.fixture(scope="module")
def fp16_folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("full") / "size"
    save.save_model(model, folder, torch.float16)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_peak_memory_is_the_weights(fp16_folder, dtype):
    """At most 1.05 times the weights, beside Python and torch: converted or not."""
    output = subprocess.run([sys.executable, "-c", LOAD, fp16_folder, dtype], check=True,
                            cwd=Path(__file__).parents[1], capture_output=True, text=True).stdout
    print(f"peak memory, loaded as {dtype}: {float(output):.3f} x the weights")
    assert float(output) <= 1.05
