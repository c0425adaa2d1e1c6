"""Which colour word is the bow's: what a head of the attention to the text is asked in pretraining.

Learned from the noise alone this is slow: of three colours that a caption names, all must find
their part. Axes: n images, h w rows and columns of a layer, H W of the latents.
"""

import torch.nn.functional as F
from torch import Tensor

from ...files import keys
from ...model.blocks import Attention
from ...model.unet import UNet
from ..world import clips as world

READERS = (1, 7, 8)         # layers whose attention to the text is asked


def reading_heads(unet: UNet) -> dict[str, Tensor]:
    """By the name of each attention to the text in READERS: log probabilities (n (h w) tokens) of
    its first head, in the latest forward pass."""
    read = {}

    def keep(name: str, attention: Attention, inputs: tuple[Tensor, Tensor]) -> None:
        pixels, text = inputs
        d = attention.to_q.out_features // attention.heads
        q, k = attention.to_q(pixels)[..., :d].float(), attention.to_k(text)[..., :d].float()
        read[name] = (q @ k.mT * d ** -0.5).log_softmax(-1)

    for name, module in unet.named_modules():
        if name.endswith("attn2") and int(name.split(".")[1]) in READERS \
                and not keys.is_motion(name):
            module.register_forward_hook(lambda m, inputs, y, name=name: keep(name, m, inputs))
    return read


def colour_tokens(clip: world.Clip, caption: str) -> list[int]:
    """Where the colour words of body, detail and accent stand among the caption's tokens (every
    word is one, after the start token); 0 for those that it does not say."""
    words, said = ["", *caption.split()], clip.subject.said
    return ([words.index(colour) if colour in words else 0 for colour in said] + [0, 0, 0])[:3]


def misreading(log_p: Tensor, parts: Tensor, said: Tensor) -> Tensor:
    """Mean surprise at the right colour word, where a pixel shows a part whose colour is said.

    log_p (n (h w) tokens) of a layer; parts (n 3 H W), how much of each pixel shows which part;
    said (n 3), the token of each part's colour, or 0.
    """
    side = round(log_p.shape[1] ** 0.5)
    weight = F.adaptive_avg_pool2d(parts, side).flatten(2) * (said > 0)[..., None]      # (n 3 hw)
    right = log_p.gather(2, said[:, None].expand(-1, log_p.shape[1], -1)).mT            # (n 3 hw)
    return -(weight * right).sum() / weight.sum().clamp(min=1)
