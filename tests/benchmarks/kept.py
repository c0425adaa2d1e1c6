"""Bytes that a training step keeps for its backward pass, by the line that made them.

  python tests/benchmarks/kept.py temporal [--frames 16]

At Stable Diffusion 1.5's widths with AnimateDiff v3, 32 x 32 latents, random weights, the paper's
placements, fp32. With fewer frames than 16, what counts as large (model/frozen.py) shrinks as they
do, so that the shares are those of 16. PYTHONPATH=CHECKOUT shows another checkout of this.
"""

import argparse
import collections
import traceback

import torch

from customttt.lora import add_lora
from customttt.model.config import SD15_UNET
from customttt.model.unet import UNet

LAYERS = {"spatial": (2, 6), "temporal": (2, 5)}


def scale_large(frames: int) -> None:
    try:
        from customttt.model import blocks, frozen
    except ImportError:     # an older checkout keeps everything
        return
    frozen.LARGE = frozen.LARGE * frames // 16
    blocks.PART = blocks.PART * frames // 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=LAYERS)
    parser.add_argument("--frames", type=int, help="default: 16, and 1 in the spatial stage")
    args = parser.parse_args()
    motion = args.stage == "temporal"
    frames = args.frames or (16 if motion else 1)
    if motion:
        scale_large(frames)
    with torch.device("meta"):
        unet = UNet(SD15_UNET).requires_grad_(False).train()
    unet.to_empty(device="cpu")
    for p in unet.parameters():
        p.data.uniform_(-0.03, 0.03)
    for p in add_lora(unet, args.stage, LAYERS[args.stage]):
        p.requires_grad_(True)
    weights = {p.data_ptr() for p in unet.parameters()}
    seen, by_line = {}, collections.Counter()

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights | seen.keys():
            seen[storage.data_ptr()] = tensor       # held, so that no other takes its place
            lines = [each for each in traceback.extract_stack() if "/customttt/" in each.filename]
            by_line[f"{lines[-1].filename.rpartition('/')[2]}: {lines[-1].line}"] \
                += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        unet(torch.randn(1, 4, frames, 32, 32), torch.tensor([500]), torch.randn(1, 77, 768),
             motion=motion)
    print(f"{sum(by_line.values()) / 1e6:.0f} MB are kept")
    for line, size in by_line.most_common(15):
        print(f"{size / 1e6:8.1f} MB  {line}")


if __name__ == "__main__":
    main()
