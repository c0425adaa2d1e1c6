"""The text-to-video UNet as nine layers: Stable Diffusion 1.5 with AnimateDiff's motion modules.

The paper counts the layers i = 0..8 (supplement, section 3); `UNet.layers[i]` is that index.

 i  channels  resnets  spatial transformers  motion modules  then
 0       320        2                     2               2  downsample
 1       640        2                     2               2  downsample
 2      1280        2                     2               2  downsample
 3      1280        2                     -               2
 4      1280        2                     1       1 in v2 only
 5      1280        3                     -               3  upsample
 6      1280        3                     3               3  upsample
 7       640        3                     3               3  upsample
 8       320        3                     3               3

Axes: b batch, f frames, c channels, h w rows and columns, n tokens, d width.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .blocks import Downsample, FrameGroupNorm, ResNet, SpatialTransformer, Upsample, norm_silu
from .config import UNetConfig
from .frozen import Conv2d, directly, recomputed
from .motion import MotionModule, check_clip_length


class Layer(nn.Module):
    """One of the nine: per resnet, a spatial transformer and a motion module where there is one."""

    def __init__(self, config: UNetConfig, inputs: Sequence[int], channels: int,
                 spatial_count: int, motion_count: int, then: str = ""):
        """`inputs`: the channels that each resnet reads; in layers 5 to 8 hidden + skip.
        `spatial_count`, `motion_count`: spatial transformers and motion modules. `then`:
        "downsample", "upsample" or nothing."""
        super().__init__()
        time_width, groups = 4 * config.channels[0], config.groups
        self.resnets = nn.ModuleList(
            ResNet(c, channels, groups, 1e-5, time_width, config.norm_across_frames)
            for c in inputs)
        self.spatial_transformers = nn.ModuleList(
            SpatialTransformer(channels, config.heads, config.text_width, groups)
            for _ in range(spatial_count))
        self.motion_modules = nn.ModuleList(
            MotionModule(channels, config.motion, groups) for _ in range(motion_count))
        self.downsample = Downsample(channels) if then == "downsample" else None
        self.upsample = Upsample(channels) if then == "upsample" else None

    def forward(self, x: Tensor, skips: Sequence[Tensor], time: Tensor, text: Tensor,
                motion: bool, run: Callable) -> tuple[Tensor, list[Tensor]]:
        """((b f) c h w), skips to read, (b d), (b n d) -> x for the next layer, and skips made.

        `motion`: whether the motion modules are in. `run`: `directly` or `recomputed`. `time` has a
        row for each clip.
        """
        made = []
        for j, resnet in enumerate(self.resnets):
            if skips:
                x = torch.cat([x, skips[j]], dim=1)
            x = run(resnet, x, time)
            if j < len(self.spatial_transformers):
                x = run(self.spatial_transformers[j], x, text)
            if motion and j < len(self.motion_modules):
                x = run(self.motion_modules[j], x, len(time))
            made.append(x)
        if self.downsample is not None:
            x = self.downsample(x)
            made.append(x)
        if self.upsample is not None:
            x = self.upsample(x)
        return x, made


class UNet(nn.Module):
    """Predicts eps_hat, the noise in noisy latents x_t (b 4 f h w)."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False     # less memory in training, more time
        c0, c1, c2, c3 = config.channels
        m = 0 if config.motion is None else 1
        mid = 1 if m and config.motion.version == 2 else 0

        self.conv_in = Conv2d(config.latent_channels, c0, 3, padding=1)
        self.time_embedding = TimeEmbedding(c0, 4 * c0)
        #              resnets read                     width  spatial  motion
        self.layers = nn.ModuleList([
            Layer(config, (c0, c0),                        c0,      2, 2 * m, "downsample"),   # 0
            Layer(config, (c0, c1),                        c1,      2, 2 * m, "downsample"),   # 1
            Layer(config, (c1, c2),                        c2,      2, 2 * m, "downsample"),   # 2
            Layer(config, (c2, c3),                        c3,      0, 2 * m),                 # 3
            Layer(config, (c3, c3),                        c3,      1, mid),                   # 4
            Layer(config, (c3 + c3, c3 + c3, c3 + c2),     c3,      0, 3 * m, "upsample"),     # 5
            Layer(config, (c3 + c2, c2 + c2, c2 + c1),     c2,      3, 3 * m, "upsample"),     # 6
            Layer(config, (c2 + c1, c1 + c1, c1 + c0),     c1,      3, 3 * m, "upsample"),     # 7
            Layer(config, (c1 + c0, c0 + c0, c0 + c0),     c0,      3, 3 * m),                 # 8
        ])
        self.norm_out = FrameGroupNorm(config.groups, c0, 1e-5, config.norm_across_frames)
        self.conv_out = Conv2d(c0, config.latent_channels, 3, padding=1)

    def forward(self, latents: Tensor, timesteps: Tensor, text: Tensor | Sequence[Tensor],
                motion: bool = True) -> Tensor:
        """Noisy latents (b 4 f h w), timesteps (b,), text (b n d) or nine such ->
        eps_hat (b 4 f h w).

        `motion=False` takes the motion modules out: frames are then independent images.
        Raises ValueError for shapes that do not fit, for motion modules that are not there, and for
        more frames than they have positions for.
        """
        texts = self._checked_texts(latents, timesteps, text)
        if motion:
            self._check_motion(latents.shape[2])
        run = recomputed if self.gradient_checkpointing and torch.is_grad_enabled() else directly

        time = self.time_embedding(timesteps)                                # (b d)
        if self.config.norm_across_frames and not motion:   # each frame is a clip of its own
            time = time.repeat_interleave(latents.shape[2], dim=0)
        x = self.conv_in(rearrange(latents, "b c f h w -> (b f) c h w"))
        skips = [x]
        for i, layer in enumerate(self.layers):     # 0 to 3 leave skips, 5 to 8 read them
            read = [skips.pop() for _ in layer.resnets] if i > 4 else []
            x, made = layer(x, read, time, texts[i], motion, run)
            if i < 4:
                skips += made
        x = self.conv_out(norm_silu(self.norm_out, x, len(time)))
        return rearrange(x, "(b f) c h w -> b c f h w", b=len(latents))

    def _checked_texts(self, latents: Tensor, timesteps: Tensor,
                       text: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
        """Each layer's text. Raises ValueError for shapes that do not fit."""
        texts = [text] * len(self.layers) if isinstance(text, Tensor) else text
        if len(texts) != len(self.layers):
            raise ValueError(f"text: one tensor or {len(self.layers)}, one a layer; "
                             f"got {len(texts)}")
        if latents.ndim != 5 or latents.shape[1] != self.config.latent_channels or any(
                side % 8 for side in latents.shape[3:]):
            raise ValueError(f"latents: (b {self.config.latent_channels} f h w) with h and w "
                             f"divisible by 8; got {tuple(latents.shape)}")
        b = len(latents)
        if timesteps.shape != (b,):
            raise ValueError(f"timesteps: ({b},), one a clip; got {tuple(timesteps.shape)}")
        for each in texts:
            if each.ndim != 3 or len(each) != b or each.shape[2] != self.config.text_width:
                raise ValueError(f"text: ({b} n {self.config.text_width}); got {tuple(each.shape)}")
        return texts

    def _check_motion(self, frames: int) -> None:
        """Raise ValueError where there are no motion modules, or too many frames for them."""
        if self.config.motion is None:
            raise ValueError("this UNet has no motion module: load one (motion_module=...), or "
                             "pass motion=False to treat frames as images")
        check_clip_length(self.config.motion, frames)


class TimeEmbedding(nn.Module):
    """Timesteps (b,) -> (b d): sinusoids, then a two-layer MLP. As in Stable Diffusion, cosine
    comes first and k is divided by half; in the code of Ho et al. sine does, and by half - 1."""

    def __init__(self, sinusoids: int, width: int):
        super().__init__()
        self.sinusoids = sinusoids
        self.linear_1 = nn.Linear(sinusoids, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, timesteps: Tensor) -> Tensor:
        half = self.sinusoids // 2
        k = torch.arange(half, dtype=torch.float32, device=timesteps.device)
        frequencies = torch.exp(-math.log(10000) * k / half)    # diffusers' to the last bit
        angles = timesteps.float()[:, None] * frequencies
        x = torch.cat([angles.cos(), angles.sin()], dim=-1).to(self.linear_1.weight.dtype)
        return self.linear_2(F.silu(self.linear_1(x)))
