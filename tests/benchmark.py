"""Seconds of one full-size forward beside diffusers, in one process, with the same random weights.

  python tests/benchmark.py [--frames 16] [--repeats 3] [--device cpu] [--precision fp32]

Stable Diffusion 1.5 with AnimateDiff v3, 32 x 32 latents (256 x 256 pixels). Needs the [test] extra
and about 8 GB; the weights are shared.
"""

import argparse
import statistics
import time

import torch
from diffusers import UNetMotionModel

from customttt.files import keys
from customttt.model.config import SD15_UNET
from customttt.model.unet import UNet
from customttt.run.loop import DTYPES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=list(DTYPES), default="fp32")
    args = parser.parse_args()
    dtype = DTYPES[args.precision]
    torch.manual_seed(0)

    ours = UNet(SD15_UNET).to(args.device, dtype).eval()
    weights = {keys.diffusers_unet(name): p for name, p in ours.named_parameters()}
    with torch.device("meta"):
        theirs = UNetMotionModel(block_out_channels=SD15_UNET.channels, cross_attention_dim=768,
                                 motion_num_attention_heads=8, num_attention_heads=8,
                                 use_motion_mid_block=False).eval()
    unmatched = theirs.load_state_dict(weights, strict=False, assign=True)
    assert not unmatched.unexpected_keys, unmatched.unexpected_keys[:3]
    for name in unmatched.missing_keys:     # only the tables of positional encodings
        module = theirs.get_submodule(name.removesuffix(".pe"))
        fresh = type(module)(module.pe.shape[2], max_seq_length=module.pe.shape[1])
        module.pe = fresh.pe.to(args.device, dtype)

    x = torch.randn(1, 4, args.frames, 32, 32).to(args.device, dtype)
    text = torch.randn(1, 77, 768).to(args.device, dtype)
    repeated = text.repeat_interleave(args.frames, dim=0)       # as its pipeline does
    t = torch.tensor([500], device=args.device)
    seconds = {"ours": [], "diffusers": []}
    with torch.no_grad():
        for _ in range(args.repeats + 1):       # the first round warms up
            seconds["ours"].append(timed(lambda: ours(x, t, text)))
            seconds["diffusers"].append(timed(lambda: theirs(x, t, repeated).sample))
    for name, times in seconds.items():
        times = times[1:]
        print(f"{name}: {statistics.median(times):.3f} s (min {min(times):.3f}, "
              f"max {max(times):.3f}, {len(times)} runs, {torch.get_num_threads()} threads)")


def timed(forward) -> float:
    start = time.perf_counter()
    forward()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
