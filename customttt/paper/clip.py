"""CLIP as a judge: both towers and the tokenizer from public files, frames prepared as CLIP's own.

Axes: n images or prompts, d width.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from ..errors import UserError
from ..files import keys
from ..files.checks import check_divisible, whole, wrong
from ..files.configs import TEXT_FIXED, check_fixed
from ..files.reading import fill, read_json, read_weights
from ..files.tokenizers import read_tokenizer
from ..model.clip import CLIP
from ..model.config import TextConfig, VisionConfig
from ..model.tokenizer import Tokenizer
from ..run.data import fingerprint

HEAD = 64       # channels of an attention head in all of OpenAI's CLIPs
FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass
class Embedder:
    """CLIP and its tokenizer, on one device."""

    clip: CLIP
    tokenizer: Tokenizer

    @torch.no_grad()
    def embed_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Pillow images of any size -> unit vectors (n d)."""
        device = self.clip.logit_scale.device
        size = self.clip.vision_model.config.image_size
        return torch.cat([self.clip.embed_images(prepare(image, size)[None].to(device))
                          for image in images])

    @torch.no_grad()
    def embed_texts(self, prompts: Sequence[str]) -> Tensor:
        """Prompts -> unit vectors (n d)."""
        ids = self.tokenizer(list(prompts)).to(self.clip.logit_scale.device)
        return self.clip.embed_text(ids, self.tokenizer.end)


def prepare(image: Image.Image, size: int) -> Tensor:
    """OpenAI's preprocessing, as VGen's metrics call it: the shorter side resized to `size`
    (Pillow's bicubic, rounded to 8 bits), the centre cut out -> (3 size size) in [-1, 1]."""
    image = image.convert("RGB")
    shorter = min(image.size)
    image = image.resize([int(size * side / shorter) for side in image.size],
                         Image.Resampling.BICUBIC)
    left, top = (round((side - size) / 2) for side in image.size)
    image = image.crop((left, top, left + size, top + size))
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return rearrange(pixels, "(h w c) -> c h w", h=size, c=3) / 127.5 - 1


def load_clip(path: str | Path, device: torch.device | str = "cpu") -> Embedder:
    """A folder or file of transformers' CLIPModel: openai/clip-vit-base-patch32, the tiny one, ...

    The architecture is read from the tensors' shapes; only the number of heads needs `config.json`,
    and without one a head is 64 wide. vocab.json and merges.txt stand beside the file, or in the
    folder `tokenizer/` beside its folder. Raises UserError.
    """
    file, beside, folder = clip_files(Path(path))
    tensors, config = read_weights(file), {}
    if beside.is_file():
        config = read_json(beside)
        for tower in ("text_config", "vision_config"):
            of = config.setdefault(tower, {})
            if not isinstance(of, dict):
                raise wrong(tower, of, str(beside), "named entries")
            check_fixed(of, TEXT_FIXED, str(beside))
    try:
        with torch.device("meta"):
            clip = CLIP(*architecture(tensors, config, str(beside)))
    except (KeyError, ValueError) as error:     # a tensor is missing, or has other dimensions
        why = f"no {error} in it" if isinstance(error, KeyError) else error
        raise UserError(f"--clip {file}: not a CLIP as transformers' CLIPModel saves it "
                        f"({why})") from error
    fill(clip, tensors, keys.public_clip, str(file), device)
    return Embedder(clip.eval(), read_tokenizer(
        folder, clip.text_model.config.length, clip.text_model.config.vocabulary))


def clip_files(path: Path) -> tuple[Path, Path, Path]:
    """A CLIP's weights, its config.json, if there is one, and its tokenizer's folder."""
    file = next((path / name for name in FILES if (path / name).is_file()), path)
    if not file.is_file():
        raise UserError(f"--clip {path}: no CLIP there; give a folder with {FILES[0]} in it")
    own = any((file.parent / name).is_file() for name in ("vocab.json", "tokenizer.json"))
    return file, file.with_name("config.json"), (
        file.parent if own else file.parent.parent / "tokenizer")


def all_clip_files(path: Path) -> list[Path]:
    """What `load_clip` reads and scores depend on."""
    file, config, folder = clip_files(path)
    words = [folder / name for name in ("vocab.json", "merges.txt", "tokenizer.json")]
    return [file, *filter(Path.is_file, (config, *words))]


@functools.cache
def clip_fingerprint(path: Path) -> str:
    """SHA-256 of those files."""
    return fingerprint(all_clip_files(path))


def architecture(tensors: Mapping, config: dict,
                 file: str = "config.json") -> tuple[TextConfig, VisionConfig, int]:
    """Text tower, image tower and width of the projection. Raises KeyError or ValueError for
    another kind, UserError for what config.json says of it."""
    def shape(key: str) -> tuple[int, ...]:
        return tuple(tensors[key].shape)

    def tower(name: str, width: int) -> dict:
        prefix = f"{name}_model.encoder.layers."
        depth = len({key.removeprefix(prefix).split(".")[0] for key in tensors
                     if key.startswith(prefix)})
        heads = whole(config.get(f"{name}_config", {}), "num_attention_heads", file, most=width,
                      default=max(1, width // HEAD))
        check_divisible((width,), heads, "heads", file)
        return {"width": width, "layers": depth, "heads": heads,
                "inner_width": shape(f"{prefix}0.mlp.fc1.weight")[0]}

    vocabulary, text_width = shape("text_model.embeddings.token_embedding.weight")
    length, _ = shape("text_model.embeddings.position_embedding.weight")
    vision_width, _, patch, _ = shape("vision_model.embeddings.patch_embedding.weight")
    positions, _ = shape("vision_model.embeddings.position_embedding.weight")
    text = TextConfig(vocabulary=vocabulary, length=length, **tower("text", text_width))
    vision = VisionConfig(image_size=patch * math.isqrt(positions - 1), patch=patch,
                          **tower("vision", vision_width))
    return text, vision, shape("text_projection.weight")[0]
