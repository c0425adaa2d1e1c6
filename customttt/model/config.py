"""Architectures as plain numbers: one frozen dataclass each, and Stable Diffusion 1.5's values.

files/configs.py reads them from the `config.json` of a model folder, and writes them; a single-file
checkpoint carries none and is taken as Stable Diffusion 1.5.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class MotionConfig:
    """The motion modules of AnimateDiff (Guo et al. 2023); one per resnet outside layer 4."""

    version: int            # 1, 2 or 3: 1 normalises resnets across frames, 2 has a module at i = 4
    max_frames: int         # that it has positions for: 24 in version 1, 32 after; trained on 16
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

    @property
    def norm_across_frames(self) -> bool:
        """Whether the frames of a clip share the statistics of the resnets' GroupNorm."""
        return self.motion is not None and self.motion.version == 1


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
    inner_width: int        # of the two-layer MLP
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
ANIMATEDIFF = {each.version: each for each in (ANIMATEDIFF_V1, ANIMATEDIFF_V2, ANIMATEDIFF_V3)}
SD15_UNET = UNetConfig(channels=(320, 640, 1280, 1280), latent_channels=4, text_width=768, heads=8,
                       groups=32, motion=ANIMATEDIFF_V3)
SD15_VAE = VAEConfig(channels=(128, 256, 512, 512), resnets=2, latent_channels=4, groups=32,
                     scale=0.18215)
SD15_TEXT = TextConfig(vocabulary=49408, width=768, layers=12, heads=12, inner_width=3072,
                       length=77)
