"""One part of a model folder at a time, for training the next one on it; and the tiny CLIP.

`load_model` wants all parts and no image tower. Here `clip/` holds both towers in transformers'
layout of a CLIPModel, because the scores are made of them.
"""

from pathlib import Path

import torch
from torch import Tensor

from ...files import keys
from ...files.configs import text_config, text_json, unet_config, vae_config
from ...files.load import WEIGHTS
from ...files.reading import fill, read_json, read_tensors
from ...files.save import save_part
from ...files.tokenizers import read_tokenizer
from ...model.clip import CLIP, TextEncoder
from ...model.config import MotionConfig
from ...model.tokenizer import Tokenizer
from ...model.unet import UNet
from ...model.vae import VAE
from ...paper.clip import load_clip


def save_clip(clip: CLIP, tokenizer: Tokenizer, folder: Path) -> None:
    """Write `clip/`, fp16."""
    vision, projection = clip.vision_model.config, clip.text_projection.out_features
    config = {
        "architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": projection,
        # The end token's id makes transformers pool there, as `CLIP` does.
        "text_config": text_json(clip.text_model.config) | {
            "projection_dim": projection, "eos_token_id": tokenizer.end},
        "vision_config": {
            "model_type": "clip_vision_model", "hidden_size": vision.width,
            "num_hidden_layers": vision.layers, "num_attention_heads": vision.heads,
            "intermediate_size": vision.inner_width, "image_size": vision.image_size,
            "patch_size": vision.patch, "projection_dim": projection,
            "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}}
    save_part(clip, keys.public_clip, config, folder / "clip" / "model.safetensors", torch.float16)


def load_towers(folder: str | Path) -> tuple[CLIP, Tokenizer]:
    """Both towers, and the tokenizer beside them."""
    embedder = load_clip(Path(folder) / "clip")
    return embedder.clip, embedder.tokenizer


def longest(ids: Tensor, end: int) -> Tensor:
    """Token ids without the columns after the last first `end`: a causal tower is idle there."""
    return ids[:, :(ids == end).int().argmax(1).max() + 1]


def load_text_encoder(folder: Path) -> tuple[TextEncoder, Tokenizer]:
    part = folder / "text_encoder"
    with torch.device("meta"):
        encoder = TextEncoder(text_config(read_json(part / "config.json"), str(part)))
    filled(encoder, part / "model.safetensors", keys.public_text)
    return encoder.eval(), read_tokenizer(folder / "tokenizer", encoder.config.length)


def load_vae(folder: Path) -> VAE:
    part = folder / "vae"
    with torch.device("meta"):
        vae = VAE(vae_config(read_json(part / "config.json"), str(part)))
    filled(vae, part / WEIGHTS, keys.diffusers_vae)
    return vae.eval()


def load_image_unet(folder: Path, motion: MotionConfig | None = None) -> UNet:
    """The image UNet, with new motion modules where their config is given."""
    part = folder / "unet"
    unet = UNet(unet_config(read_json(part / "config.json"), motion, str(part)))
    filled(unet, part / WEIGHTS, keys.diffusers_unet, keys.is_image)
    return unet


def fill_motion(unet: UNet, folder: Path) -> None:
    filled(unet, folder / "motion_adapter" / WEIGHTS, keys.diffusers_unet, keys.is_motion)


def filled(module, file: Path, public, only=lambda name: True) -> None:
    fill(module, read_tensors(file), public, str(file), only=only)
