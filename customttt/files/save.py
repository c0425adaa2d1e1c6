"""Writing a model folder in the Hugging Face layout of Stable Diffusion 1.5, motion adapter too.

Used for the tiny model; what this writes, diffusers and transformers load as well.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from ..lora import wrapped
from ..model.clip import TextEncoder
from ..model.model import Model
from ..model.motion import MotionModule, positional_encoding
from ..model.unet import UNet
from ..model.vae import VAE
from . import keys
from .configs import motion_json, text_json, unet_json, vae_json
from .load import WEIGHTS
from .lora_files import uncompiled
from .reading import write_json, write_tensors
from .tokenizers import save_tokenizer


def save_model(model: Model, folder: str | Path, dtype: torch.dtype = torch.float16) -> None:
    """Write tokenizer/, text_encoder/, vae/, unet/ and, where there is one, motion_adapter/.
    Raises ValueError for a model with LoRAs on it."""
    unet, vae, text_encoder = map(uncompiled, (model.unet, model.vae, model.text_encoder))
    if any([*wrapped(unet), *wrapped(text_encoder)]):
        raise ValueError("the model has LoRAs on it: merge them first (merge_lora)")
    folder = Path(folder)
    save_tokenizer(model.tokenizer, folder / "tokenizer")
    save_text_encoder(text_encoder, folder, dtype)
    save_vae(vae, folder, dtype)
    save_unet(unet, folder, dtype)
    if unet.config.motion is not None:
        save_motion(unet, folder, dtype)


def save_text_encoder(encoder: TextEncoder, folder: Path, dtype=torch.float16) -> None:
    save_part(encoder, keys.public_text, text_json(encoder.config),
              folder / "text_encoder" / "model.safetensors", dtype)


def save_vae(vae: VAE, folder: Path, dtype=torch.float16) -> None:
    save_part(vae, keys.diffusers_vae, vae_json(vae.config), folder / "vae" / WEIGHTS, dtype)


def save_unet(unet: UNet, folder: Path, dtype=torch.float16) -> None:
    """Without its motion modules."""
    save_part(unet, keys.diffusers_unet, unet_json(unet.config), folder / "unet" / WEIGHTS, dtype,
              only=keys.is_image)


def save_motion(unet: UNet, folder: Path, dtype=torch.float16) -> None:
    """Its motion modules alone."""
    save_part(unet, keys.diffusers_unet, motion_json(unet.config),
              folder / "motion_adapter" / WEIGHTS, dtype, only=keys.is_motion,
              constants=position_tables(unet))


def position_tables(unet: UNet) -> dict[str, Tensor]:
    """The sinusoids that diffusers keeps in a motion adapter, by their public names.

    They tell how many frames it can take, and version 1 from 3.
    """
    return {keys.diffusers_unet(f"{name}.block.pos_embed.pe"):
            positional_encoding(unet.config.motion.max_frames, module.proj_in.in_features)[None]
            for name, module in unet.named_modules() if isinstance(module, MotionModule)}


def save_part(module: nn.Module, public, config: dict, path: Path, dtype: torch.dtype,
              only=lambda name: True, constants: dict[str, Tensor] | None = None) -> None:
    """One module's weights under their public names, and `config.json` beside them."""
    tensors = {public(name): p.detach().to("cpu", dtype).contiguous()
               for name, p in module.named_parameters() if only(name)} | (constants or {})
    write_tensors(tensors, path)
    write_json(config, path.parent / "config.json")
