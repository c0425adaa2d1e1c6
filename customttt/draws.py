"""The streams of random numbers, one for each purpose, seeded by --seed and the stream's name:

  lora      the start of a fresh LoRA
  latents   the VAE's samples of the data
  data      which images and clips a step sees
  noise     a step's timesteps, noise, anchor frame and chances
  dropout   the LoRAs' dropout
  sheet     the noise that contact sheets start from
  table ... the noise that a clip of the paper's tables starts from; "probe ...", of the probe
  sampling  the noise that sample.py starts from: --seed itself, as in other tools

So what is judged shares no draw with what is trained. "lora" and "dropout" seed PyTorch's own
generators. All but dropout on a GPU are drawn on the CPU, so that a seed means the same everywhere.
"""

import hashlib

import torch
from torch import Generator, Tensor

from .diffusion import TIMESTEPS


def stream_seed(seed: int, name: str) -> int:
    """A seed of the stream of that name, below 2^63."""
    return int.from_bytes(hashlib.sha256(f"{name} {seed}".encode()).digest()[:8], "big") >> 1


class Draws:
    """What a training step draws, from the streams "data" and "noise". Axes: b clips, f frames."""

    def __init__(self, seed: int):
        self.stream = {name: Generator().manual_seed(stream_seed(seed, name))
                       for name in ("data", "noise")}

    def some(self, of: int, count: int) -> Tensor:
        """(count,): which of the images or clips, with replacement."""
        return torch.randint(of, (count,), generator=self.stream["data"])

    def timesteps(self, z: Tensor, least: int = 0) -> Tensor:
        """(b,), one for each clip of z, uniform from `least` to 999."""
        t = torch.randint(least, TIMESTEPS, (len(z),), generator=self.stream["noise"])
        return t.to(z.device)

    def noise(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Standard normal."""
        return torch.randn(shape, generator=self.stream["noise"], dtype=torch.float32).to(device)

    def noise_like(self, z: Tensor) -> Tensor:
        return self.noise(z.shape, z.device)

    def frame(self, z: Tensor) -> int:
        """An anchor frame of z (b 4 f h w)."""
        return torch.randint(z.shape[2], (), generator=self.stream["noise"]).item()

    def chance(self, p: float) -> bool:
        """True with probability p."""
        return torch.rand((), generator=self.stream["noise"]).item() < p

    def state(self) -> dict[str, Tensor]:
        return {name: generator.get_state() for name, generator in self.stream.items()}

    def set_state(self, state: dict[str, Tensor]) -> None:
        for name, generator in self.stream.items():
            generator.set_state(state[name])
