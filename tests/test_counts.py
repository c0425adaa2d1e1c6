"""The published numbers, on full-size models that are never allocated (device "meta")."""

import re
from collections import Counter
from dataclasses import replace

import pytest
import torch

from customttt import UNet, UserError, add_lora
from customttt.files import keys
from customttt.lora import wrapped
from customttt.model.clip import CLIP, TextEncoder
from customttt.model.config import (ANIMATEDIFF_V1, ANIMATEDIFF_V2, ANIMATEDIFF_V3, SD15_TEXT,
                                    SD15_UNET, SD15_VAE, VisionConfig)
from customttt.model.vae import VAE

SPATIAL = (0, 1, 2, 4, 6, 7, 8)
TEMPORAL = (0, 1, 2, 3, 5, 6, 7, 8)


@pytest.fixture(autouse=True)
def on_meta():
    with torch.device("meta"):
        yield


def full_size_unet(motion=ANIMATEDIFF_V3):
    return UNet(replace(SD15_UNET, motion=motion))


def count(parameters):
    return sum(p.numel() for p in parameters)


# ------------------------------------------------------------------ the paper's placements

@pytest.mark.parametrize("spatial, temporal, convolutions, expected", [
    pytest.param((2, 6), (2, 5), False, 12_124_160, id="CustomTTT"),
    pytest.param(SPATIAL, TEMPORAL, False, 28_864_512, id="Full LoRA"),
    pytest.param(SPATIAL, TEMPORAL, True, 30_461_952, id="DiffDirector")])
def test_trainable_parameters(spatial, temporal, convolutions, expected):
    unet = full_size_unet()
    trained = [*add_lora(unet, "spatial", spatial, rank=32, convolutions=convolutions),
               *add_lora(unet, "temporal", temporal, rank=32)]
    assert count(trained) == expected
    assert count(p for name, p in unet.named_parameters() if ".loras." in name) == expected


@pytest.mark.parametrize("kind, layer, needed", [
    ("spatial", 3, "no spatial transformers to adapt; spatial layers here are 0, 1, 2, 4, 6, 7, 8"),
    ("spatial", 5, "no spatial transformers to adapt; spatial layers here are 0, 1, 2, 4, 6, 7, 8"),
    ("temporal", 4, "no motion modules to adapt; temporal layers here are 0, 1, 2, 3, 5, 6, 7, 8"),
    ("spatial", 9, "counted 0 to 8"), ("temporal", -1, "counted 0 to 8"),
    ("text", 2, "'spatial' or 'temporal'")])
def test_a_layer_with_nothing_to_adapt_is_refused(kind, layer, needed):
    unet = full_size_unet()
    named = "LoRA kind 'text'" if kind == "text" else f"--{kind}-layers: LoRA layer {layer}"
    with pytest.raises(UserError, match=f"^{named}: .*{needed}"):
        add_lora(unet, kind, (2, layer))
    assert not list(wrapped(unet))      # nothing was wrapped before the refusal


def test_temporal_in_4_is_allowed_in_v2():
    assert count(add_lora(full_size_unet(ANIMATEDIFF_V2), "temporal", (4,), rank=32)) > 0


def test_temporal_without_a_motion_module_is_refused():
    with pytest.raises(UserError, match="LoRA layer 2: .* no motion module is loaded"):
        add_lora(full_size_unet(None), "temporal", (2,))


# ------------------------------------------------------------------ the architecture

@pytest.mark.parametrize("build, parameters, tensors", [
    pytest.param(lambda: UNet(replace(SD15_UNET, motion=None)), 859_520_964, 686, id="unet"),
    pytest.param(lambda: VAE(SD15_VAE), 83_653_863, 248, id="vae"),
    pytest.param(lambda: TextEncoder(SD15_TEXT), 123_060_480, 196, id="text encoder")])
def test_public_parameters(build, parameters, tensors):
    module = build()
    assert count(module.parameters()) == parameters
    assert len(list(module.parameters())) == tensors


@pytest.mark.parametrize("motion, modules, parameters", [
    (ANIMATEDIFF_V1, 20, 417_137_600), (ANIMATEDIFF_V2, 21, 453_209_280),
    (ANIMATEDIFF_V3, 20, 417_137_600)])
def test_public_motion_parameters(motion, modules, parameters):
    named = [(name, p) for name, p in full_size_unet(motion).named_parameters()
             if keys.is_motion(name)]
    assert count(p for _, p in named) == parameters
    assert len(named) == 26 * modules       # 28 in a file, two of them position tables


@pytest.mark.parametrize("text, vision, projection, millions", [
    pytest.param(replace(SD15_TEXT, width=512, heads=8, inner_width=2048),
                 VisionConfig(768, 12, 12, 3072, image_size=224, patch=32), 512, 151.28, id="B/32"),
    pytest.param(SD15_TEXT, VisionConfig(1024, 24, 16, 4096, image_size=224, patch=14), 768, 427.62,
                 id="L/14")])
def test_public_clip_parameters(text, vision, projection, millions):
    assert round(count(CLIP(text, vision, projection).parameters()) / 1e6, 2) == millions


@pytest.mark.parametrize("i, prefix, channels, resnets, spatial, v1_v3, v2, then", [
    (0, "down_blocks.0.", 320, 2, 2, 2, 2, "downsample"),
    (1, "down_blocks.1.", 640, 2, 2, 2, 2, "downsample"),
    (2, "down_blocks.2.", 1280, 2, 2, 2, 2, "downsample"),
    (3, "down_blocks.3.", 1280, 2, 0, 2, 2, None),
    (4, "mid_block.", 1280, 2, 1, 0, 1, None),
    (5, "up_blocks.0.", 1280, 3, 0, 3, 3, "upsample"),
    (6, "up_blocks.1.", 1280, 3, 3, 3, 3, "upsample"),
    (7, "up_blocks.2.", 640, 3, 3, 3, 3, "upsample"),
    (8, "up_blocks.3.", 320, 3, 3, 3, 3, None)])
def test_the_nine_layers(i, prefix, channels, resnets, spatial, v1_v3, v2, then):
    for motion in (ANIMATEDIFF_V1, ANIMATEDIFF_V2, ANIMATEDIFF_V3):
        layer = full_size_unet(motion).layers[i]
        assert len(layer.resnets) == resnets
        assert {resnet.conv2.out_channels for resnet in layer.resnets} == {channels}
        assert len(layer.spatial_transformers) == spatial
        assert len(layer.motion_modules) == (v2 if motion.version == 2 else v1_v3)
        assert [name for name in ("downsample", "upsample") if getattr(layer, name)] \
            == ([then] if then else [])
    assert all(keys.diffusers_unet(f"layers.{i}.{name}").startswith(prefix)
               for name, _ in layer.named_parameters())


def test_public_tensors_per_block():
    names = [keys.diffusers_unet(name) for name, _ in full_size_unet(None).named_parameters()]
    blocks = Counter(re.match(r"(down|up)_blocks\.\d|\w+", name)[0] for name in names)
    assert blocks == {
        "down_blocks.0": 74, "down_blocks.1": 76, "down_blocks.2": 76, "down_blocks.3": 20,
        "mid_block": 46, "up_blocks.0": 38, "up_blocks.1": 116, "up_blocks.2": 116,
        "up_blocks.3": 114, "time_embedding": 4, "conv_in": 2, "conv_norm_out": 2, "conv_out": 2}
