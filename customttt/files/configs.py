"""`config.json` of a model folder, as Hugging Face writes it: read and written here."""

import warnings
from pathlib import Path

from ..errors import UserError
from ..model.config import (ANIMATEDIFF, ANIMATEDIFF_V1, MotionConfig, TextConfig, UNetConfig,
                            VAEConfig)
from .checks import check_divisible, number, shortened, whole, whole_list
from .diagnose import NOISE, OTHER_MODEL

# What the code does and no config.json may contradict: key, accepted values.
UNET_FIXED = {
    "down_block_types": [["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
                         ["CrossAttnDownBlockMotion"] * 3 + ["DownBlockMotion"]],   # of AnimateDiff
    "up_block_types": [["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
                       ["UpBlockMotion"] + ["CrossAttnUpBlockMotion"] * 3],
    "layers_per_block": [2], "act_fn": ["silu"], "center_input_sample": [False],
    "flip_sin_to_cos": [True], "freq_shift": [0], "downsample_padding": [1], "norm_eps": [1e-5],
    "mid_block_scale_factor": [1], "use_linear_projection": [False, None],
    "class_embed_type": [None], "addition_embed_type": [None],
    "dual_cross_attention": [False, None], "only_cross_attention": [False, None],
    "resnet_time_scale_shift": ["default"],
    "encoder_hid_dim": [None], "transformer_layers_per_block": [1],
}
VAE_FIXED = {"act_fn": ["silu"], "use_quant_conv": [True], "use_post_quant_conv": [True],
             "mid_block_add_attention": [True], "shift_factor": [None], "latents_mean": [None]}
TEXT_FIXED = {"hidden_act": ["quick_gelu"], "layer_norm_eps": [1e-5]}
MOTION_FIXED = {"motion_layers_per_block": [2], "motion_mid_block_layers_per_block": [1],
                "motion_transformer_layers_per_block": [1], "conv_in_channels": [None]}

MOST_WIDE, MOST_FRAMES, LEVELS = 2 ** 14, 2 ** 12, range(1, 9)
MOST_PARTS = 2 ** 10        # attention heads, or groups of a norm


def check_fixed(config: dict, fixed: dict, file: str) -> None:
    """Raise UserError where a config.json asks for an architecture that is not built here."""
    for key, accepted in fixed.items():
        if key in config and config[key] not in accepted:
            raise UserError(f"{file}: {key} is {shortened(config[key])}, but this code builds "
                            f"Stable Diffusion 1.5's architecture, where it is {accepted[0]!r}")


def of_other_model(config: dict) -> str | None:
    """What a UNet's config.json is of, where it is not of Stable Diffusion 1.5."""
    width = config.get("cross_attention_dim")
    if config.get("addition_embed_type") == "text_time" or width == 2048:
        return "Stable Diffusion XL"
    if width == 1024:
        return "Stable Diffusion 2"
    return {9: "a model for inpainting", 8: "a model that edits images"}.get(
        config.get("in_channels")) if isinstance(config.get("in_channels"), int) else None


def unet_config(config: dict, motion: MotionConfig | None, file: str) -> UNetConfig:
    if (other := of_other_model(config)) is not None:
        raise UserError(f"{file}: this is {other}, and {OTHER_MODEL}")
    check_fixed(config, UNET_FIXED, file)
    # attention_head_dim is the format's misnomer: it is a count
    heads = "num_attention_heads" if config.get("num_attention_heads") else "attention_head_dim"
    four = range(4, 5)
    made = UNetConfig(channels=whole_list(config, "block_out_channels", file, MOST_WIDE, four),
                      latent_channels=whole(config, "in_channels", file, 64),
                      text_width=whole(config, "cross_attention_dim", file, MOST_WIDE),
                      heads=whole(config, heads, file, MOST_PARTS),
                      groups=whole(config, "norm_num_groups", file, MOST_PARTS), motion=motion)
    check_divisible(made.channels, made.heads, "attention heads", file)
    check_divisible(made.channels, made.groups, "groups", file)
    if motion is not None:
        check_divisible(made.channels, motion.heads, "attention heads of the motion module", file)
    return made


def vae_config(config: dict, file: str) -> VAEConfig:
    check_fixed(config, VAE_FIXED, file)
    made = VAEConfig(channels=whole_list(config, "block_out_channels", file, MOST_WIDE,
                                         LEVELS),
                     resnets=whole(config, "layers_per_block", file, 16),
                     latent_channels=whole(config, "latent_channels", file, 64),
                     groups=whole(config, "norm_num_groups", file, MOST_PARTS),
                     # absent from SD 1.5's own file
                     scale=number(config, "scaling_factor", file, 1000, default=0.18215))
    check_divisible(made.channels, made.groups, "groups", file)
    return made


def text_config(config: dict, file: str) -> TextConfig:
    check_fixed(config, TEXT_FIXED, file)
    made = TextConfig(vocabulary=whole(config, "vocab_size", file, 2 ** 20),
                      width=whole(config, "hidden_size", file, MOST_WIDE),
                      layers=whole(config, "num_hidden_layers", file, 128),
                      heads=whole(config, "num_attention_heads", file, MOST_PARTS),
                      inner_width=whole(config, "intermediate_size", file, 4 * MOST_WIDE),
                      length=whole(config, "max_position_embeddings", file, 4096, least=3))
    check_divisible((made.width,), made.heads, "attention heads", file)
    return made


def check_schedule(config: dict, file: str) -> None:
    """Raise UserError for a scheduler_config.json of a model that does not predict noise."""
    predicts = config.get("prediction_type", "epsilon")
    if predicts != "epsilon":
        raise UserError(f"{file}: the model predicts {shortened(predicts)}, and {NOISE}")


def motion_config(path: Path, mid: bool, length: int | None, version: int | None) -> MotionConfig:
    """The version of a motion module with or without a mid block, with or without positions."""
    if version not in (None, *ANIMATEDIFF):
        raise UserError(f"--motion-version {version}: must be 1, 2 or 3")
    if version is not None and mid != (version == 2):
        raise UserError(f"--motion-version {version}: {path} has {'a' if mid else 'no'} mid block, "
                        f"so it is {'' if mid else 'not '}version 2")
    if version is None and length is None and not mid:
        warnings.warn(f"{path}: does not tell its version; taken as version 1, for 24 frames, as "
                      f"AnimateDiff's train.py writes it (else: --motion-version 3)", stacklevel=3)
    if version is None:
        version = 2 if mid else 1 if length in (None, ANIMATEDIFF_V1.max_frames) else 3
    return ANIMATEDIFF[version]


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
