"""Architectures as plain numbers: one frozen dataclass each, and Stable Diffusion 1.5's values.

Every config is read from the `config.json` of a model folder (Hugging Face layout); a single-file
checkpoint carries none and is taken as Stable Diffusion 1.5.
"""

from dataclasses import dataclass

from .errors import UserError


@dataclass(frozen=True)
class MotionConfig:
    """The motion modules of AnimateDiff (Guo et al. 2023); one per resnet outside the mid layer."""

    version: int            # 1, 2 or 3: 1 normalises resnets across frames, 2 has a module at i = 4
    max_frames: int         # the clip length it was trained for: 24 in version 1, 32 after
    heads: int              # attention heads, at every width


@dataclass(frozen=True)
class UNetConfig:
    """The nine-layer UNet; see the table in unet.py."""

    channels: tuple[int, int, int, int]     # width at each of the four resolutions
    latent_channels: int
    text_width: int         # width of the text embeddings that cross-attention reads
    heads: int              # attention heads, at every width
    groups: int             # groups of every GroupNorm
    motion: MotionConfig | None             # None: an image model


@dataclass(frozen=True)
class VAEConfig:
    """The image autoencoder of latent diffusion (Rombach et al. 2022)."""

    channels: tuple[int, ...]               # width at each resolution; each but the last halves it
    resnets: int            # per resolution in the encoder; the decoder has one more
    latent_channels: int
    groups: int
    scale: float            # latents are multiplied by it, to about unit variance


@dataclass(frozen=True)
class TextConfig:
    """The text tower of CLIP (Radford et al. 2021)."""

    vocabulary: int
    width: int
    layers: int
    heads: int
    inner_width: int        # of the two-layer perceptron
    length: int             # tokens per prompt, start and end included


@dataclass(frozen=True)
class VisionConfig:
    """The image tower of CLIP (Radford et al. 2021), a vision transformer."""

    width: int
    layers: int
    heads: int
    inner_width: int
    image_size: int         # pixels, square
    patch: int              # pixels, square


ANIMATEDIFF_V1 = MotionConfig(version=1, max_frames=24, heads=8)
ANIMATEDIFF_V2 = MotionConfig(version=2, max_frames=32, heads=8)
ANIMATEDIFF_V3 = MotionConfig(version=3, max_frames=32, heads=8)    # the paper's: none at i = 4
SD15_UNET = UNetConfig(channels=(320, 640, 1280, 1280), latent_channels=4, text_width=768, heads=8,
                       groups=32, motion=ANIMATEDIFF_V3)
SD15_VAE = VAEConfig(channels=(128, 256, 512, 512), resnets=2, latent_channels=4, groups=32,
                     scale=0.18215)
SD15_TEXT = TextConfig(vocabulary=49408, width=768, layers=12, heads=12, inner_width=3072,
                       length=77)

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
