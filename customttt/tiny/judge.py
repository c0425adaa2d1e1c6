"""The tiny CLIP as a judge: loading, saving, and its choice among captions.

Axes: n images, H W pixels, d width.
"""

from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from .. import keys
from ..clip import CLIP
from ..config import VisionConfig, text_config
from ..files import fill, read_json, read_tensors
from ..save import save_part, text_json
from ..tokenizer import END, Tokenizer


def clip_json(clip: CLIP, tokenizer: Tokenizer) -> dict:
    """transformers' CLIPModel config. The end token's id makes it pool there, as `CLIP` does."""
    vision, projection = clip.vision_model.config, clip.text_projection.out_features
    return {"architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": projection,
            "text_config": text_json(clip.text_model.config) | {
                "projection_dim": projection, "eos_token_id": tokenizer.vocabulary[END]},
            "vision_config": {
                "model_type": "clip_vision_model", "hidden_size": vision.width,
                "num_hidden_layers": vision.layers, "num_attention_heads": vision.heads,
                "intermediate_size": vision.inner_width, "image_size": vision.image_size,
                "patch_size": vision.patch, "projection_dim": projection,
                "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}}


def save_clip(clip: CLIP, tokenizer: Tokenizer, folder: Path, dtype=torch.float16) -> None:
    save_part(clip, keys.public_clip, clip_json(clip, tokenizer), folder / "model.safetensors", dtype)


def load_clip(folder: str | Path) -> tuple[CLIP, Tokenizer]:
    """Read `clip/` of a model folder, both towers, and the tokenizer beside it."""
    folder = Path(folder)
    config = read_json(folder / "clip" / "config.json")
    vision = config["vision_config"]
    text = text_config(config["text_config"], "clip/config.json")
    with torch.device("meta"):
        clip = CLIP(text, VisionConfig(vision["hidden_size"], vision["num_hidden_layers"],
                                       vision["num_attention_heads"], vision["intermediate_size"],
                                       vision["image_size"], vision["patch_size"]),
                    config["projection_dim"])
    file = folder / "clip" / "model.safetensors"
    fill(clip, read_tensors(file), keys.public_clip, str(file))
    return clip.eval(), Tokenizer.from_folder(folder / "tokenizer", text.length)


def as_pixels(frames: Tensor) -> Tensor:
    """(n H W 3) uint8 -> (n 3 H W) in [-1, 1]."""
    return rearrange(frames, "n h w c -> n c h w").float() / 127.5 - 1


@torch.no_grad()
def similarities(clip: CLIP, tokenizer: Tokenizer, frames: Tensor, captions: list[str]) -> Tensor:
    """Frames (n H W 3) uint8 and m captions -> cosines (n m)."""
    return clip.embed_images(as_pixels(frames)) @ clip.embed_text(tokenizer(captions), tokenizer.end).T


def choose(clip: CLIP, tokenizer: Tokenizer, frames: Tensor, captions: list[str]) -> int:
    """The index of the caption that fits the frames best on average."""
    return similarities(clip, tokenizer, frames, captions).mean(0).argmax().item()
