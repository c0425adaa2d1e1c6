"""`config.json` of a model folder, as Hugging Face writes it: read and written here alone."""

from ..errors import UserError
from ..model.config import MotionConfig, TextConfig, UNetConfig, VAEConfig

# What the code does and no config.json may contradict: key, accepted values.
UNET_FIXED = {
    "down_block_types": [["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]],
    "up_block_types": [["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3],
    "layers_per_block": [2], "act_fn": ["silu"], "center_input_sample": [False],
    "flip_sin_to_cos": [True], "freq_shift": [0], "downsample_padding": [1], "norm_eps": [1e-5],
    "mid_block_scale_factor": [1], "use_linear_projection": [False, None],
    "class_embed_type": [None], "addition_embed_type": [None],
    "dual_cross_attention": [False, None], "only_cross_attention": [False, None],
    "resnet_time_scale_shift": ["default"],
    "num_attention_heads": [None], "encoder_hid_dim": [None], "transformer_layers_per_block": [1],
}
VAE_FIXED = {"act_fn": ["silu"], "use_quant_conv": [True], "use_post_quant_conv": [True],
             "mid_block_add_attention": [True], "shift_factor": [None], "latents_mean": [None]}
TEXT_FIXED = {"hidden_act": ["quick_gelu"], "layer_norm_eps": [1e-5]}
MOTION_FIXED = {"motion_layers_per_block": [2], "motion_mid_block_layers_per_block": [1],
                "motion_transformer_layers_per_block": [1]}


def check_fixed(config: dict, fixed: dict, file: str) -> None:
    """Raise UserError where a config.json asks for an architecture that is not built here."""
    for key, accepted in fixed.items():
        if key in config and config[key] not in accepted:
            raise UserError(f"{file}: {key} is {config[key]!r}, but this code builds Stable "
                            f"Diffusion 1.5's architecture, where it is {accepted[0]!r}")


def unet_config(config: dict, motion: MotionConfig | None, file: str) -> UNetConfig:
    check_fixed(config, UNET_FIXED, file)
    return UNetConfig(channels=tuple(config["block_out_channels"]),
                      latent_channels=config["in_channels"],
                      text_width=config["cross_attention_dim"],
                      heads=config["attention_head_dim"],   # the format's misnomer: it is a count
                      groups=config["norm_num_groups"], motion=motion)


def vae_config(config: dict, file: str) -> VAEConfig:
    check_fixed(config, VAE_FIXED, file)
    return VAEConfig(channels=tuple(config["block_out_channels"]),
                     resnets=config["layers_per_block"], latent_channels=config["latent_channels"],
                     groups=config["norm_num_groups"],
                     scale=config.get("scaling_factor", 0.18215))   # absent from SD 1.5's own file


def text_config(config: dict, file: str) -> TextConfig:
    check_fixed(config, TEXT_FIXED, file)
    return TextConfig(vocabulary=config["vocab_size"], width=config["hidden_size"],
                      layers=config["num_hidden_layers"], heads=config["num_attention_heads"],
                      inner_width=config["intermediate_size"],
                      length=config["max_position_embeddings"])


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
