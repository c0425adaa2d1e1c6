"""One measurement, in a process of its own: `python work.py` with a JSON object of flags.

Prints a JSON line: seconds of each run, peak memory in GB, matrix operations of one run.
"""

import argparse
import json
import re
import resource
import sys
import time
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

FULL = {"clip": 16, "side": 32}
SMALL = {"clip": 2, "side": 8}


class Job(argparse.Namespace):
    """What is measured: row, side, model, folder, device, precision, small, commands; and its
    inputs."""

    @property
    def dtype(self) -> torch.dtype:
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[
            self.precision]

    @property
    def shape(self) -> tuple[int, ...]:
        sizes = SMALL if self.small else FULL
        return 1, 4, sizes["clip"], sizes["side"], sizes["side"]

    def clip(self) -> torch.Tensor:
        return torch.randn(self.shape).to(self.device, self.dtype)

    def timestep(self) -> torch.Tensor:
        return torch.tensor([500], device=self.device)

    def text(self) -> torch.Tensor:
        config = json.loads((self.model / "unet" / "config.json").read_text())
        return torch.randn(1, 77, config["cross_attention_dim"]).to(self.device, self.dtype)


def matrix_rate(job):
    """A product of the size that rules in the UNet: its rate is what a step is held against."""
    x, weight = torch.randn(4096, 1280), torch.randn(5120, 1280)
    x, weight = (each.to(job.device, job.dtype) for each in (x, weight))
    return lambda: [x @ weight.T for _ in range(10)]


def function_of(job):
    if job.row == "rate":
        return matrix_rate(job)
    if job.side == "peer" and job.row != "placement":
        import peer
        return peer.ROWS[job.row](job)
    import ours
    from customttt.run import memory
    if hasattr(memory, "keep_freed_memory"):        # not in an older checkout
        memory.keep_freed_memory()
    if job.row == "placement":
        return ours.placement(job, full=job.side == "peer")
    return ours.ROWS[job.row](job)


def forget_peak(device: torch.device) -> None:
    """What is measured begins here: what came before is no part of the peak."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:     # elsewhere the peak is the whole process's
        pass


def peak(job) -> float:
    if job.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    if job.row == "tiny":
        return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9
    try:
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024 / 1e9
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def main() -> None:
    flags = json.loads(sys.argv[1])
    job = Job(**flags | {"device": torch.device(flags["device"]), "model": Path(flags["model"])})
    if job.device.type == "cuda":
        torch.cuda.set_device(job.device.index or 0)
    torch.manual_seed(0)
    once, seconds, operations = function_of(job), [], None
    forget_peak(job.device)
    if job.row not in ("load", "tiny"):         # a first run warms up, its operations are counted
        with FlopCounterMode(display=False) as counter:
            once()
        operations = counter.get_total_flops()
        if job.device.type == "cuda":
            torch.cuda.synchronize()
    for _ in range(job.runs):
        start = time.perf_counter()
        once()
        if job.device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"seconds": seconds, "peak": peak(job), "operations": operations}))


if __name__ == "__main__":
    main()
