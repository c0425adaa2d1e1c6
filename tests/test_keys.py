"""Every public key list (tests/keys, name -> shape) maps one-to-one onto our full-size models.

`as_in_file` lists have what the public file holds (old attention names, position_ids), `ldm` is the
single-file layout, `guoyww` AnimateDiff's own. Models are on "meta": no memory, no download.
"""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from customttt import UNet, UserError
from customttt.files import keys
from customttt.files.reading import fill
from customttt.model.clip import CLIP, TextEncoder
from customttt.model.config import (ANIMATEDIFF_V2, ANIMATEDIFF_V3, SD15_TEXT, SD15_UNET, SD15_VAE,
                                    VisionConfig)
from customttt.model.vae import VAE

LISTS = Path(__file__).parent / "keys"
B32 = (replace(SD15_TEXT, width=512, heads=8, inner_width=2048),
       VisionConfig(768, 12, 12, 3072, image_size=224, patch=32), 512)
L14 = (SD15_TEXT, VisionConfig(1024, 24, 16, 4096, image_size=224, patch=14), 768)


def image(name):
    return not keys.is_motion(name)


def everything(name):
    return True


def unet(motion=None):
    return lambda: UNet(replace(SD15_UNET, motion=motion))


# One line per module that a file fills: list, module, our name -> the public one, which parameters.
ORIGINAL = [(unet(ANIMATEDIFF_V3), keys.original_unet, image),
            (lambda: VAE(SD15_VAE), keys.original_vae, everything),
            (lambda: TextEncoder(SD15_TEXT), keys.original_text, everything)]
FILES = {
    "sd15_unet": [(unet(), keys.diffusers_unet, everything)],
    "sd15_vae_as_in_file": [(lambda: VAE(SD15_VAE), keys.diffusers_vae, everything)],
    "sd15_vae_new_names": [(lambda: VAE(SD15_VAE), keys.diffusers_vae, everything)],
    "sd15_text_encoder_as_in_file": [
        (lambda: TextEncoder(SD15_TEXT), keys.public_text, everything)],
    "clip_vit_b32_as_in_file": [(lambda: CLIP(*B32), keys.public_clip, everything)],
    "clip_vit_l14_as_in_file": [(lambda: CLIP(*L14), keys.public_clip, everything)],
    "sd15_ldm_pruned_emaonly_1145": ORIGINAL,
    "sd15_ldm_fp16_community_1131": ORIGINAL,
    "mm_v2_guoyww_588": [(unet(ANIMATEDIFF_V2), keys.original_motion, keys.is_motion)],
    "mm_v2_diffusers_567": [(unet(ANIMATEDIFF_V2), keys.diffusers_unet, keys.is_motion)],
    "mm_v3_guoyww_560": [(unet(ANIMATEDIFF_V3), keys.original_motion, keys.is_motion)],
    "mm_v3_diffusers_540": [(unet(ANIMATEDIFF_V3), keys.diffusers_unet, keys.is_motion)],
}
# How many keys of each list nothing of ours reads.
DROPPED = {"sd15_text_encoder_as_in_file": 1, "clip_vit_b32_as_in_file": 2,
           "clip_vit_l14_as_in_file": 2, "sd15_ldm_pruned_emaonly_1145": 12 + 2 + 1,
           "sd15_ldm_fp16_community_1131": 1, "mm_v2_guoyww_588": 2 * 21, "mm_v2_diffusers_567": 21,
           "mm_v3_guoyww_560": 2 * 20, "mm_v3_diffusers_540": 20}


def read_list(name):
    """Public name -> shape; the VAE's attention under its present names, as the loader sees it."""
    listed = json.loads((LISTS / f"{name}.json").read_text())
    if "vae" in name:
        listed = {keys.modern_vae_key(key): shape for key, shape in listed.items()}
    return {key: tuple(shape) for key, shape in listed.items()}


def on_meta(build):
    with torch.device("meta"):
        return build()


def without_1x1(shape):
    return shape[:2] if shape[2:] == (1, 1) else shape


@pytest.mark.parametrize("name", FILES)
def test_one_to_one(name):
    listed, used = read_list(name), []
    for build, public, only in FILES[name]:
        for ours, p in on_meta(build).named_parameters():
            if only(ours):
                key = public(ours)
                assert key in listed, f"{ours} -> {key}: not in the file"
                assert listed[key] == p.shape or without_1x1(listed[key]) == p.shape, key
                used.append(key)
    assert len(used) == len(set(used)), "two parameters read one key"
    unused = listed.keys() - set(used)
    assert {key for key in unused if not keys.is_dropped(key)} == set()
    assert {key for key in used if keys.is_dropped(key)} == set()
    assert len(unused) == DROPPED.get(name, 0)


def part_of(key):
    """Which of a single file's three modules a key belongs to; the text encoder takes the rest."""
    return {"model": keys.original_unet, "first_stage_model": keys.original_vae}.get(
        key.split(".")[0], keys.original_text)


@pytest.mark.parametrize("name", FILES)
def test_the_loader_agrees(name):
    """fill() takes exactly these; with one too few, one too many, a wrong shape, it names it."""
    tensors = {key: torch.empty(shape, device="meta") for key, shape in read_list(name).items()}
    for build, public, only in FILES[name]:
        own = {k: v for k, v in tensors.items() if "ldm" not in name or part_of(k) == public}
        key = next(public(ours) for ours, _ in on_meta(build).named_parameters() if only(ours))
        fill(on_meta(build), own, public, "f", device="meta", only=only)
        for changed in (own | {key: torch.empty(3, 5, device="meta")}, own | {"stray": own[key]},
                        {k: v for k, v in own.items() if k != key}):
            with pytest.raises(UserError, match=f"^f: .*({key}|stray)"):
                fill(on_meta(build), changed, public, "f", device="meta", only=only)


def test_every_list_is_used():
    """The two LoRA lists are for the tests of LoRA files."""
    lora = {"v2_motion_lora_inferred_336", "v3_sd15_adapter_inferred_256"}
    assert {path.stem for path in LISTS.glob("*.json")} - lora == FILES.keys()


def test_the_position_tables_are_what_is_recomputed():
    """The `pe` that is dropped: one row a frame, one column a channel."""
    for name, frames in (("mm_v2_guoyww_588", 32), ("mm_v3_diffusers_540", 32)):
        tables = {shape for key, shape in read_list(name).items() if key.endswith(".pe")}
        assert tables == {(1, frames, channels) for channels in (320, 640, 1280)}


@pytest.mark.parametrize("pattern", keys.DROPPED)
def test_no_two_rules_drop_one_key(pattern):
    """Each rule of DROPPED has keys of its own, which no other rule names."""
    examples = [key for name in FILES for key in read_list(name)] + SEEN_ELSEWHERE
    own = [key for key in examples if re.fullmatch(pattern, key)]
    assert own
    assert all(sum(bool(re.fullmatch(p, key)) for p in keys.DROPPED) == 1 for key in own)


# Not in the lists: extras of v1-5-pruned, of ComfyUI's saves, of textual inversion, of a VAE.
SEEN_ELSEWHERE = ["model_ema.diffusion_modelinput_blocks00weight", "cond_stage_model.logit_scale",
                  "cond_stage_model.transformer.text_projection.weight",
                  "embedding_manager.string_to_param_dict.*", "first_stage_model.loss.logvar"]
