"""The four parts of a text-to-video model, together."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from .clip import TextEncoder
from .tokenizer import Tokenizer
from .unet import UNet
from .vae import VAE


@dataclass
class Model:
    """The four parts, on one device and in one dtype. `name` goes into what is trained on it."""

    name: str
    tokenizer: Tokenizer
    text_encoder: TextEncoder
    vae: VAE
    unet: UNet
    device: torch.device
    dtype: torch.dtype

    @torch.no_grad()
    def encode_text(self, texts: list[str]) -> Tensor:
        """A list of strings -> embeddings (b 77 d) on the model's device."""
        return self.text_encoder(self.tokenizer(texts).to(self.device))

    def checksum(self) -> str:
        """SHA-256 of the sums of all weights, whose bits are summed as whole numbers: quick, and
        exact on every device. And of what else makes the model: configurations (one motion file
        can be read as version 1 or as version 3) and the tokenizer."""
        as_whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}
        sums = [p.detach().flatten().view(as_whole[p.element_size()]).sum().item()
                for part in (self.text_encoder, self.vae, self.unet) for p in part.parameters()]
        configs = [part.config for part in (self.text_encoder, self.vae, self.unet)]
        tokenizer = sorted(self.tokenizer.vocabulary.items()), sorted(self.tokenizer.rank.items())
        whole = sums, configs, tokenizer, self.tokenizer.pad, self.tokenizer.length
        return hashlib.sha256(repr(whole).encode()).hexdigest()
