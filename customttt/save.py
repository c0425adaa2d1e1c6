"""Writing a model folder in the Hugging Face layout of Stable Diffusion 1.5, motion adapter too.

Used for the tiny model; what this writes, diffusers and transformers load as well.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from . import keys
from .config import TextConfig, UNetConfig, VAEConfig
from .errors import writing
from .model import WEIGHTS, Model
from .motion import MotionModule, positional_encoding
from .tokenizer import END, START, Tokenizer
from .unet import UNet


def save_model(model: Model, folder: str | Path, dtype: torch.dtype = torch.float16) -> None:
    """Write tokenizer/, text_encoder/, vae/, unet/ and, where there is one, motion_adapter/."""
    folder = Path(folder)
    save_tokenizer(model.tokenizer, folder / "tokenizer")
    save_part(model.text_encoder, keys.public_text, text_json(model.text_encoder.config),
              folder / "text_encoder" / "model.safetensors", dtype)
    save_part(model.vae, keys.diffusers_vae, vae_json(model.vae.config),
              folder / "vae" / WEIGHTS, dtype)
    save_part(model.unet, keys.diffusers_unet, unet_json(model.unet.config),
              folder / "unet" / WEIGHTS, dtype, only=lambda name: not keys.is_motion(name))
    if model.unet.config.motion is not None:
        save_part(model.unet, keys.diffusers_unet, motion_json(model.unet.config),
                  folder / "motion_adapter" / WEIGHTS, dtype, only=keys.is_motion,
                  constants=position_tables(model.unet))


def position_tables(unet: UNet) -> dict[str, Tensor]:
    """The sinusoids that diffusers keeps in a motion adapter, by their public names.

    They tell how many frames it was trained for, and version 1 from 3.
    """
    return {keys.diffusers_unet(f"{name}.block.pos_embed.pe"):
            positional_encoding(unet.config.motion.max_frames, module.proj_in.in_features)[None]
            for name, module in unet.named_modules() if isinstance(module, MotionModule)}


def save_part(module: nn.Module, public, config: dict, path: Path, dtype: torch.dtype,
              only=lambda name: True, constants: dict[str, Tensor] | None = None) -> None:
    """One module's weights under their public names, and `config.json` beside them."""
    tensors = {public(name): p.detach().to("cpu", dtype).contiguous()
               for name, p in module.named_parameters() if only(name)} | (constants or {})
    with writing(path) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    write_json(config, path.parent / "config.json")


def write_json(content: dict, path: Path) -> None:
    with writing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n",
                             encoding="utf-8")


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    write_json(tokenizer.vocabulary, folder / "vocab.json")
    merges = sorted(tokenizer.rank, key=tokenizer.rank.get)
    with writing(folder / "merges.txt") as temporary:
        temporary.write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges),
                             encoding="utf-8")
    write_json({"tokenizer_class": "CLIPTokenizer", "model_max_length": tokenizer.length,
                "bos_token": START, "eos_token": END, "unk_token": END, "pad_token": tokenizer.pad},
               folder / "tokenizer_config.json")


def text_json(config: TextConfig) -> dict:
    return {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model",
            "vocab_size": config.vocabulary, "hidden_size": config.width,
            "num_hidden_layers": config.layers, "num_attention_heads": config.heads,
            "intermediate_size": config.inner_width, "max_position_embeddings": config.length,
            "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
            # In CLIP's vocabulary and in ours, the start and end tokens are the last two.
            "bos_token_id": config.vocabulary - 2, "eos_token_id": config.vocabulary - 1}


def vae_json(config: VAEConfig) -> dict:
    levels = len(config.channels)
    return {"_class_name": "AutoencoderKL", "act_fn": "silu", "in_channels": 3, "out_channels": 3,
            "block_out_channels": list(config.channels), "layers_per_block": config.resnets,
            "latent_channels": config.latent_channels, "norm_num_groups": config.groups,
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "up_block_types": ["UpDecoderBlock2D"] * levels, "scaling_factor": config.scale}


def unet_json(config: UNetConfig) -> dict:
    return {"_class_name": "UNet2DConditionModel", "act_fn": "silu",
            "in_channels": config.latent_channels, "out_channels": config.latent_channels,
            "block_out_channels": list(config.channels), "layers_per_block": 2,
            "cross_attention_dim": config.text_width, "attention_head_dim": config.heads,
            "norm_num_groups": config.groups, "norm_eps": 1e-5, "downsample_padding": 1,
            "flip_sin_to_cos": True, "freq_shift": 0, "center_input_sample": False,
            "mid_block_scale_factor": 1,
            "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
            "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3}


def motion_json(config: UNetConfig) -> dict:
    return {"_class_name": "MotionAdapter", "block_out_channels": list(config.channels),
            "motion_layers_per_block": 2, "motion_mid_block_layers_per_block": 1,
            "motion_num_attention_heads": config.motion.heads,
            "motion_norm_num_groups": config.groups,
            "motion_max_seq_length": config.motion.max_frames,
            "use_motion_mid_block": config.motion.version == 2, "conv_in_channels": None}
