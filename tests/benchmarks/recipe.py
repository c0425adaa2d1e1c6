"""The paper's whole recipe on one device: seconds, memory, and what fewer bits change.

  python -m tests.benchmarks.recipe --device cuda --precision fp16

500, 500 and 30 training steps and a sample of 25 guided steps, at Stable Diffusion 1.5's and
AnimateDiff v3's size with random weights, 256 x 256 pixels, 16 frames. A few steps of each are
timed, and the whole is counted from their median. Then one forward in bf16 and in fp16 against
fp32.
"""

import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from customttt.errors import command_parser, run_command
from customttt.files.random_model import random_model
from customttt.files.save import save_model

from . import ours
from .work import Job, matrix_rate

STEPS = {"spatial": 500, "temporal": 500, "ttt": 30, "denoise": 25, "decode": 1}


def main() -> None:
    parser = command_parser(__doc__)
    parser.add_argument("--device", type=torch.device,
                        default=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="fp16")
    parser.add_argument("--runs", type=int, default=5, help="timed steps of each (default: 5)")
    parser.add_argument("--small", action="store_true", help="small random weights, to try this")
    args = parser.parse_args()
    if args.device.type == "cuda":
        torch.cuda.set_device(args.device.index or 0)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        with args.device:
            save_model(random_model(3, full_size=not args.small), folder, torch.float16)
        job = Job(**vars(args), model=Path(folder))
        [rate], operations, _ = measured(job, matrix_rate, 1)
        rate = operations / rate
        print(f"matrix products: {rate / 1e12:.3g} TFLOP/s")
        total = {}
        for row, steps in STEPS.items():
            seconds, operations, peak = measured(job, ours.ROWS[row], args.runs)
            median = statistics.median(seconds)
            total[row] = steps * median
            print(f"{row:9} {steps:4} x {median:7.4f} s = {total[row]:6.1f} s, {peak:5.2f} GB, "
                  f"{operations / median / rate:4.0%} of the matrix rate", flush=True)
        training = sum(total[row] for row in ("spatial", "temporal", "ttt"))
        print(f"training {training:.1f} s, sampling {total['denoise'] + total['decode']:.2f} s")
        exact = noise(job, "fp32")
        for precision in ("bf16", "fp16"):
            error = (noise(job, precision) - exact).norm() / exact.norm()
            print(f"{precision}: a forward differs from fp32 by {error:.2e} of its norm")


def measured(job: Job, row, runs: int) -> tuple[list[float], int, float]:
    """Seconds of each run, matrix operations of one, and the peak in GB (0 on a CPU)."""
    once, seconds, cuda = row(job), [], job.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    with FlopCounterMode(display=False) as counter:     # a first run warms up
        once()
    once()
    for _ in range(runs):
        if cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        once()
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() / 1e9 if cuda else 0.0
    return seconds, counter.get_total_flops(), peak


@torch.no_grad()
def noise(job: Job, precision: str) -> torch.Tensor:
    """What the UNet predicts for one clip, computed in this precision from fp16 weights."""
    torch.backends.cudnn.allow_tf32 = False
    job = Job(**vars(job) | {"precision": precision})
    unet, generator = ours.opened(job).unet, torch.Generator().manual_seed(0)
    x = torch.randn(job.shape, generator=generator)
    text = torch.randn(job.text().shape, generator=generator)
    return unet(x.to(job.device, job.dtype), job.timestep(),
                text.to(job.device, job.dtype)).float()


if __name__ == "__main__":
    run_command(main)
