"""Loading whole models: a folder, a single-file checkpoint, a motion module, a VAE of its own."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..model.clip import TextEncoder
from ..model.config import (ANIMATEDIFF_V1, ANIMATEDIFF_V2, ANIMATEDIFF_V3, SD15_TEXT, SD15_UNET,
                            SD15_VAE, MotionConfig)
from ..model.model import Model
from ..model.unet import UNet
from ..model.vae import VAE
from . import keys
from .configs import MOTION_FIXED, check_fixed, text_config, unet_config, vae_config
from .reading import Stored, fill, read_json, read_weights
from .tokenizers import read_tokenizer

WEIGHTS = "diffusion_pytorch_model.safetensors"     # of unet/, vae/ and motion_adapter/


def load_model(path: str | Path, motion_module: str | Path | None = None,
               device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32,
               vae: str | Path | None = None) -> Model:
    """Load a model folder (Hugging Face layout) or a single-file checkpoint (original layout).

    `motion_module`: a motion file or folder; without it the model folder's `motion_adapter/` is
    taken, and where there is none the UNet is an image model. `vae`: a VAE file or folder in place
    of the model's own. Parts are built on "meta" and filled from memory-mapped files, so peak
    memory is about the weights. Raises UserError.
    """
    path = Path(path)
    if motion_module is None and (path / "motion_adapter").is_dir():
        motion_module = path / "motion_adapter"
    motion = None if motion_module is None else read_motion_module(motion_module)
    if path.is_dir():
        text_part, vae_part, unet_part = _folder_parts(path, motion)
    elif path.is_file():
        text_part, vae_part, unet_part = _checkpoint_parts(path, motion)
    else:
        raise UserError(f"{path}: no such model folder or checkpoint file")
    if vae is not None:
        vae_part = _other_vae(Path(vae), vae_part.module)

    for part in (text_part, vae_part, unet_part):
        fill(part.module, part.tensors, part.public, part.file, device, dtype, keys.is_image)
        part.module.eval()
    if motion is not None:
        fill(unet_part.module, motion.tensors, motion.public, motion.file, device, dtype,
             keys.is_motion)
    tokenizer = read_tokenizer(_tokenizer_folder(path), text_part.module.config.length)
    return Model(path.stem if path.is_file() else path.resolve().name, tokenizer,
                 text_part.module, vae_part.module, unet_part.module, torch.device(device), dtype)


@dataclass
class Part:
    """One module of a model, built on "meta", and what fills it."""

    module: nn.Module
    tensors: dict[str, Tensor | Stored]
    public: Callable[[str], str]        # our name of a parameter -> its name in the file
    file: str


@dataclass
class MotionFile:
    """The motion modules of a file: their architecture, and what fills them once they are built."""

    config: MotionConfig
    tensors: dict[str, Tensor | Stored]
    public: Callable[[str], str]        # as in Part
    file: str


def read_motion_module(path: str | Path) -> MotionFile:
    """Read a motion module, in AnimateDiff's own layout or in diffusers'; v1, v2 or v3.

    A mid block means version 2; else positions for 24 frames mean version 1. A file without them
    (AnimateLCM's, which has a mid block) is taken to be made for 32, as version 2 and 3 are.
    Training checkpoints are taken too: `module.` is stripped and the image UNet in them ignored.
    """
    folder, heads, length = Path(path), ANIMATEDIFF_V3.heads, None
    if folder.is_dir():
        config = read_json(folder / "config.json")
        check_fixed(config, MOTION_FIXED, str(folder / "config.json"))
        heads = config.get("motion_num_attention_heads", heads)
        length = config.get("motion_max_seq_length")
        path = _weight_file(folder, WEIGHTS)
    tensors = {key.removeprefix("module."): value for key, value in read_weights(path).items()}
    tensors = {key: value for key, value in tensors.items() if keys.is_motion(key)}
    if not tensors:
        raise UserError(f"{path}: no motion module in it (no key contains motion_modules)")
    original = any(".temporal_transformer." in key for key in tensors)
    length = max((v.shape[1] for k, v in tensors.items() if k.endswith(".pe")), default=length)
    config = (ANIMATEDIFF_V2 if any(key.startswith("mid_block.") for key in tensors) else
              ANIMATEDIFF_V1 if length == ANIMATEDIFF_V1.max_frames else ANIMATEDIFF_V3)
    config = MotionConfig(config.version, length or config.max_frames, heads)
    return MotionFile(config, tensors, keys.original_motion if original else keys.diffusers_unet,
                      str(path))


def _folder_parts(path: Path, motion: MotionFile | None) -> tuple[Part, Part, Part]:
    """Text encoder, VAE and UNet of a model folder."""
    configs = {part: path / part / "config.json" for part in ("text_encoder", "vae", "unet")}
    for part, file in configs.items():
        if not file.is_file():
            raise UserError(f"{path}: no {part}/config.json in it; a model folder has tokenizer/, "
                            f"text_encoder/, vae/ and unet/, as on Hugging Face")
    with torch.device("meta"):
        text_encoder = TextEncoder(_configured(text_config, configs["text_encoder"]))
        vae = VAE(_configured(vae_config, configs["vae"]))
        unet = UNet(_configured(unet_config, configs["unet"], motion and motion.config))
    text_file = _weight_file(path / "text_encoder", "model.safetensors")
    vae_file, unet_file = (_weight_file(path / part, WEIGHTS) for part in ("vae", "unet"))
    return (Part(text_encoder, read_weights(text_file), keys.public_text, str(text_file)),
            Part(vae, _modern(read_weights(vae_file)), keys.diffusers_vae, str(vae_file)),
            Part(unet, read_weights(unet_file), keys.diffusers_unet, str(unet_file)))


def _modern(tensors: dict[str, Tensor | Stored]) -> dict[str, Tensor | Stored]:
    """A VAE's tensors in diffusers' layout, its attention under the present names."""
    return {keys.modern_vae_key(key): value for key, value in tensors.items()}


def _configured(read, file: Path, *others):
    try:
        return read(read_json(file), *others, file=str(file))
    except KeyError as error:
        raise UserError(f"{file}: lacks the entry {error}") from error


def _weight_file(folder: Path, name: str) -> Path:
    """The weights in a part's folder: fp32 or fp16, safetensors before pickle."""
    stem = name.removesuffix(".safetensors")
    pickled = {"model": "pytorch_model.bin"}.get(stem, f"{stem}.bin")
    for candidate in (name, f"{stem}.fp16.safetensors", pickled):
        if (folder / candidate).is_file():
            return folder / candidate
    raise UserError(f"{folder}: no weights here; put {name} there")


def _checkpoint_parts(path: Path, motion: MotionFile | None) -> tuple[Part, Part, Part]:
    """Text encoder, VAE and UNet of a single-file checkpoint of Stable Diffusion 1.5."""
    tensors = read_weights(path)
    image = {k: v for k, v in tensors.items() if k.startswith("model.diffusion_model.")}
    vae_tensors = {k: v for k, v in tensors.items() if k.startswith("first_stage_model.")}
    if not image:
        raise UserError(f"{path}: not a Stable Diffusion checkpoint (no model.diffusion_model.* in "
                        f"it); a motion module goes into --motion-module, a LoRA into --lora")
    others = {k: v for k, v in tensors.items() if k not in image and k not in vae_tensors}
    with torch.device("meta"):
        unet = UNet(replace(SD15_UNET, motion=motion and motion.config))
        return (Part(TextEncoder(SD15_TEXT), others, keys.original_text, str(path)),
                Part(VAE(SD15_VAE), vae_tensors, keys.original_vae, str(path)),
                Part(unet, image, keys.original_unet, str(path)))


def _other_vae(path: Path, own: VAE) -> Part:
    """A VAE from elsewhere, in the place of the model's `own`.

    A folder, or a file in diffusers' layout or in the original one, where the names may begin with
    `first_stage_model.` and what else the file holds is left aside (a whole checkpoint will do).
    """
    config, file = own.config, path
    if path.is_dir():
        config, file = _configured(vae_config, path / "config.json"), _weight_file(path, WEIGHTS)
    if (config.scale, config.latent_channels) != (own.config.scale, own.config.latent_channels):
        raise UserError(f"{path}: a VAE for other latents ({config.latent_channels} channels, "
                        f"scale {config.scale}) than the model's ({own.config.latent_channels}, "
                        f"{own.config.scale})")
    tensors, prefix, public = read_weights(file), "first_stage_model.", keys.original_vae
    if any(key.startswith("encoder.down_blocks.") for key in tensors):
        tensors, public = _modern(tensors), keys.diffusers_vae
    elif any(key.startswith(prefix) for key in tensors):
        tensors = {k: v for k, v in tensors.items() if k.startswith(prefix)}
    elif any(key.startswith("encoder.down.") for key in tensors):
        tensors = {prefix + k: v for k, v in tensors.items() if not keys.is_dropped(k)}
    else:
        raise UserError(f"{file}: no VAE in it (no key begins with encoder.down)")
    with torch.device("meta"):
        return Part(VAE(config), tensors, public, str(file))


def _tokenizer_folder(path: Path) -> Path:
    if path.is_dir():
        return path / "tokenizer"
    folder = path.parent / "tokenizer"
    if not folder.is_dir():
        raise UserError(f"{path}: a checkpoint file holds no tokenizer; put vocab.json and "
                        f"merges.txt of Stable Diffusion 1.5 into {folder}")
    return folder
