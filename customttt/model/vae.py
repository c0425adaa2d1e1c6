"""The image autoencoder of latent diffusion (Rombach et al. 2022): pixels to latents and back.

Axes: n images, c channels, H W pixels, h w latent rows and columns.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .blocks import Attention, ResNet, Upsample
from .config import VAEConfig

EPS = 1e-6      # of every GroupNorm here; the UNet's resnets have 1e-5


class VAE(nn.Module):
    """Encodes pixels in [-1, 1] to latents scaled to about unit variance, and decodes them."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        self.config = config
        c = config.latent_channels
        self.encoder = Encoder(config)
        self.quant_conv = nn.Conv2d(2 * c, 2 * c, 1)
        self.post_quant_conv = nn.Conv2d(c, c, 1)
        self.decoder = Decoder(config)

    @property
    def factor(self) -> int:
        """Pixels per latent, along each side."""
        return 2 ** (len(self.config.channels) - 1)

    def posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(n 3 H W) in [-1, 1] -> mean and standard deviation (n c h w), not yet scaled.
        Raises ValueError for shapes that do not fit."""
        if pixels.ndim != 4 or pixels.shape[1] != 3 or any(
                side % self.factor for side in pixels.shape[2:]):
            raise ValueError(f"pixels: (n 3 H W) with H and W divisible by {self.factor}; "
                             f"got {tuple(pixels.shape)}")
        mean, log_variance = self.quant_conv(self.encoder(pixels)).chunk(2, dim=1)
        return mean, (0.5 * log_variance.clamp(-30, 20)).exp()

    def encode(self, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(n 3 H W) in [-1, 1] -> scaled latents (n c h w): the mean, or with a generator a sample.

        The generator is a CPU one, so that a seed means the same on every device. Raises ValueError
        for shapes that do not fit.
        """
        z, deviation = self.posterior(pixels)
        if generator is not None:
            z = z + deviation * torch.randn(
                z.shape, generator=generator, dtype=torch.float32).to(z)
        return z * self.config.scale

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (n c h w) -> pixels (n 3 H W), about [-1, 1] (not clamped). Raises
        ValueError for shapes that do not fit."""
        if latents.ndim != 4 or latents.shape[1] != self.config.latent_channels:
            raise ValueError(f"latents: (n {self.config.latent_channels} h w); "
                             f"got {tuple(latents.shape)}")
        return self.decoder(self.post_quant_conv(latents / self.config.scale))


class Level(nn.Module):
    """The resnets of one resolution, then a change of resolution."""

    def __init__(self, inputs: int, outputs: int, resnets: int, groups: int, then: str = ""):
        super().__init__()
        self.resnets = nn.ModuleList(ResNet(inputs if j == 0 else outputs, outputs, groups, EPS)
                                     for j in range(resnets))
        self.downsample = DownsampleRight(outputs) if then == "downsample" else None
        self.upsample = Upsample(outputs) if then == "upsample" else None

    def forward(self, x: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        if self.downsample is not None:
            x = self.downsample(x)
        if self.upsample is not None:
            x = self.upsample(x)
        return x


class DownsampleRight(nn.Module):
    """(n c H W) -> (n c H/2 W/2), padded on the right and the bottom only."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Middle(nn.Module):
    """A resnet, one attention head over all pixels, a resnet."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.resnet_1 = ResNet(channels, channels, groups, EPS)
        self.norm = nn.GroupNorm(groups, channels, eps=EPS)
        self.attention = Attention(channels, heads=1, qkv_bias=True)
        self.resnet_2 = ResNet(channels, channels, groups, EPS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.resnet_1(x)
        y = self.attention(rearrange(self.norm(x), "n c h w -> n (h w) c"))
        x = x + rearrange(y, "n (h w) c -> n c h w", h=x.shape[2])
        return self.resnet_2(x)


class Encoder(nn.Module):
    """(n 3 H W) -> (n 2c h w): mean and log variance."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        widths, groups = config.channels, config.groups
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.levels = nn.ModuleList(
            Level(inputs, outputs, config.resnets, groups,
                  then="downsample" if k < len(widths) - 1 else "")
            for k, (inputs, outputs) in enumerate(zip(widths[:1] + widths[:-1], widths)))
        self.middle = Middle(widths[-1], groups)
        self.norm_out = nn.GroupNorm(groups, widths[-1], eps=EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.levels:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.middle(x))))


class Decoder(nn.Module):
    """(n c h w) -> (n 3 H W); one resnet more per resolution than the encoder."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        widths, groups = config.channels[::-1], config.groups
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.middle = Middle(widths[0], groups)
        self.levels = nn.ModuleList(
            Level(inputs, outputs, config.resnets + 1, groups,
                  then="upsample" if k < len(widths) - 1 else "")
            for k, (inputs, outputs) in enumerate(zip(widths[:1] + widths[:-1], widths)))
        self.norm_out = nn.GroupNorm(groups, widths[-1], eps=EPS)
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(self.conv_in(x))
        for level in self.levels:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))
