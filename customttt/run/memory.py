"""How much memory a run will take, told before it begins; freed memory, kept for the next step."""

import ctypes
import os
from pathlib import Path

import torch

from ..errors import UserError, flag
from ..model.model import Model
from .sheet import on_sheet

# Numbers held at the peak for each number of the first layer's features (of the VAE's, at its first
# width, one a pixel and channel): three quarters of what was measured at full size
# (docs/performance.md), so that nothing that fits is refused. The tiny model holds more.
SAMPLED, TRAINED, CHECKPOINTED, DECODED = 10, 200, 50, 10

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3     # of glibc's malloc.h
SMALL_BLOCKS = range(24, 1032, 16)     # bytes; 34 MB of them stay in use


def keep_freed_memory() -> None:
    """Let the process keep what it frees, and find it again. Does nothing where there is no glibc.

    By default glibc gives large blocks back to the kernel, which hands out zeroed pages again, one
    fault each, at every step. And where a tensor was freed, the next of its size does not fit:
    PyTorch asks for aligned blocks, glibc cuts them out of larger ones, and the cuttings are lost
    to small requests. Those get blocks of their own. With THP_MEM_ALLOC_ENABLE=1, which PyTorch
    reads as it is imported, the cuttings are too large for them, and are free when their tensor is.
    """
    try:
        libc = ctypes.CDLL(None)
        mallopt = libc.mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(M_MMAP_THRESHOLD, 2 ** 30)      # smaller blocks come from the heap,
    mallopt(M_TRIM_THRESHOLD, -1)           # which does not shrink
    libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    libc.free.argtypes, libc.free.restype = [ctypes.c_void_p], None
    small = [libc.malloc(size) for size in SMALL_BLOCKS for _ in range(2000)]
    for block in small[::2]:                # every other one, so that they are not joined again
        libc.free(block)


def check_memory(model: Model, settings: dict, training: bool, checkpointing: bool = False) -> None:
    """Raise UserError if what the settings ask for does not fit into this machine."""
    needed, there = estimate(model, settings, training, checkpointing), total(model.device)
    if there is not None and needed > there:
        flags = ", ".join(f"{flag(name)} {settings[name]}"
                          for name in ("size", "frames", "batch_size") if name in settings)
        raise UserError(f"{flags}: about {needed / 1e9:,.0f} GB of memory are needed, and "
                        f"{model.device} has {there / 1e9:,.0f}; give smaller ones"
                        + (" or --gradient-checkpointing" if training and not checkpointing
                           else ""))


def estimate(model: Model, settings: dict, training: bool, checkpointing: bool) -> float:
    """Bytes, roughly: the weights, and what the features of the UNet or the VAE take."""
    unet, size = model.unet.config, settings["size"]
    weights = sum(p.numel() * p.element_size() for part in (model.unet, model.vae)
                  for p in part.parameters())
    frames = settings["frames"]
    if training and unet.motion is None:        # a sheet of images
        frames = len(on_sheet(frames))
    features = (size / model.vae.factor) ** 2 * unet.channels[0] * model.dtype.itemsize
    drawn = 2 * frames * features * SAMPLED        # with and without the prompt
    pictures = settings.get("batch_size", frames)
    held = CHECKPOINTED if checkpointing else TRAINED
    trained = pictures * features * held if training else 0
    pixels = size ** 2 * model.vae.config.channels[0] * model.dtype.itemsize * DECODED
    return weights + max(drawn, trained, pixels)


def total(device: torch.device) -> float | None:
    """Bytes of memory that the device has; None where that is not known."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if device.type != "cpu":
        return None
    try:
        there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):       # Windows
        return None
    for limit in map(Path, ("/sys/fs/cgroup/memory.max",
                            "/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        try:
            there = min(there, int(limit.read_text()))
        except (OSError, ValueError):       # "max", or no such file
            continue
    return there
