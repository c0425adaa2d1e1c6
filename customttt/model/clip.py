"""CLIP (Radford et al. 2021): the text tower that conditions the UNet, and the image tower.

Sampling and training need `TextEncoder` alone; `CLIP` joins both towers in one space and is what
scores are made of. Axes: b batch, n tokens, d width.
"""

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from .blocks import Attention
from .config import TextConfig, VisionConfig


class Embedding(nn.Embedding):
    """nn.Embedding; made on "meta", it draws no start. PyTorch would draw even there, by way of its
    compiler, whose import is the longest part of loading a small model."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()


class CLIPLayer(nn.Module):
    """Pre-norm transformer layer; the activation is CLIP's x * sigmoid(1.702 x)."""

    def __init__(self, width: int, heads: int, inner_width: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, qkv_bias=True)
        self.fc1 = nn.Linear(width, inner_width)
        self.fc2 = nn.Linear(inner_width, width)

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        """(b n d) -> (b n d)."""
        x = x + self.attention(self.norm1(x), causal=causal)
        y = self.fc1(self.norm2(x))
        return x + self.fc2(y * torch.sigmoid(1.702 * y))


class TextEncoder(nn.Module):
    """Token ids -> one embedding a token: the last layer's, normalised; causal, no padding mask."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.config = config
        self.token_embedding = Embedding(config.vocabulary, config.width)
        self.position_embedding = Embedding(config.length, config.width)
        self.layers = nn.ModuleList(CLIPLayer(config.width, config.heads, config.inner_width)
                                    for _ in range(config.layers))
        self.final_norm = nn.LayerNorm(config.width)

    def forward(self, ids: Tensor) -> Tensor:
        """(b n) -> (b n d). Raises ValueError for shapes that do not fit."""
        if ids.ndim != 2 or ids.shape[1] > self.config.length:
            raise ValueError(f"ids: (b n) with n at most {self.config.length}; "
                             f"got {tuple(ids.shape)}")
        x = self.token_embedding(ids) + self.position_embedding.weight[:ids.shape[1]]
        for layer in self.layers:
            x = layer(x, causal=True)
        return self.final_norm(x)


class ImageEncoder(nn.Module):
    """Pixels, normalised as CLIP wants them -> one embedding an image."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.config = config
        self.class_embedding = nn.Parameter(torch.randn(config.width) * config.width ** -0.5)
        self.patch_embedding = nn.Conv2d(3, config.width, config.patch, stride=config.patch,
                                         bias=False)
        self.position_embedding = Embedding((config.image_size // config.patch) ** 2 + 1,
                                            config.width)
        self.pre_norm = nn.LayerNorm(config.width)
        self.layers = nn.ModuleList(CLIPLayer(config.width, config.heads, config.inner_width)
                                    for _ in range(config.layers))
        self.post_norm = nn.LayerNorm(config.width)

    def forward(self, pixels: Tensor) -> Tensor:
        """(b 3 s s), s the image size -> (b d): the class token's."""
        patches = rearrange(self.patch_embedding(pixels), "b d h w -> b (h w) d")
        first = repeat(self.class_embedding, "d -> b 1 d", b=len(pixels))
        x = torch.cat([first, patches], dim=1) + self.position_embedding.weight
        x = self.pre_norm(x)
        for layer in self.layers:
            x = layer(x, causal=False)
        return self.post_norm(x[:, 0])


class CLIP(nn.Module):
    """Both towers and their projections into one space of width `projection`."""

    MEAN = (0.48145466, 0.4578275, 0.40821073)      # of the pixels that CLIP was trained on
    STD = (0.26862954, 0.26130258, 0.27577711)

    def __init__(self, text: TextConfig, vision: VisionConfig, projection: int):
        super().__init__()
        self.text_model = TextEncoder(text)
        self.vision_model = ImageEncoder(vision)
        self.text_projection = nn.Linear(text.width, projection, bias=False)
        self.visual_projection = nn.Linear(vision.width, projection, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(2.6592))   # log(1 / 0.07), CLIP's start

    def embed_text(self, ids: Tensor, end: int) -> Tensor:
        """Token ids (b n) -> unit vectors (b d), read at the first `end` token of each row."""
        x = self.text_model(ids)
        first_end = (ids == end).int().argmax(dim=-1)
        return F.normalize(self.text_projection(x[torch.arange(len(ids)), first_end]), dim=-1)

    def embed_images(self, pixels: Tensor) -> Tensor:
        """Pixels (b 3 s s) in [-1, 1], s the tower's size -> unit vectors (b d)."""
        mean, std = (torch.tensor(x).to(pixels)[:, None, None] for x in (self.MEAN, self.STD))
        x = self.vision_model((pixels / 2 + 0.5 - mean) / std)
        return F.normalize(self.visual_projection(x), dim=-1)
