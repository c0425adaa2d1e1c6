"""The three stages, each as the losses of one step.

Legend: z clean latents (b 4 f h w), eps noise, t timesteps (b,), f reference steps; text (b n d).
Random numbers come from a CPU generator, so that a run is the same wherever it is resumed.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from .diffusion import STEPS, add_noise, ddim_timesteps
from .lora import active
from .losses import debiased_noise_loss, noise_loss
from .model.model import Model
from .model.unet import UNet
from .sampling import ddim, initial_noise


def noise_like(z: Tensor, generator: Generator) -> Tensor:
    return torch.randn(z.shape, generator=generator).to(z.device)


def random_integers(high: int, count: int, generator: Generator) -> Tensor:
    return torch.randint(high, (count,), generator=generator)


def random_timesteps(z: Tensor, generator: Generator, least: int = 0) -> Tensor:
    """(b,), one for each of z (b ...), uniform from `least` to 999."""
    return torch.randint(least, STEPS, (len(z),), generator=generator).to(z.device)


def spatial_loss(unet: UNet, z: Tensor, text: Tensor, batch_size: int,
                 generator: Generator) -> Iterator[Tensor]:
    """Stage (a): noise MSE on single images, motion modules out. z (n 4 1 h w), text (n 77 d)."""
    chosen = random_integers(len(z), batch_size, generator)
    z, text = z[chosen], text[chosen]
    eps, t = noise_like(z, generator), random_timesteps(z, generator)
    yield noise_loss(unet(add_noise(z, eps, t), t, text, motion=False), eps)


def temporal_loss(unet: UNet, z: Tensor, text: Tensor, debiased: bool, least_timestep: int,
                  generator: Generator) -> Iterator[Tensor]:
    """Stage (b): noise MSE on a clip, plus the appearance-debiased term. z (n 4 f h w)."""
    chosen = random_integers(len(z), 1, generator)
    z, text = z[chosen], text[chosen]
    eps, t = noise_like(z, generator), random_timesteps(z, generator, least_timestep)
    k = random_integers(z.shape[2], 1, generator).item()        # the anchor frame
    eps_hat = unet(add_noise(z, eps, t), t, text)
    loss = noise_loss(eps_hat, eps)
    yield loss + debiased_noise_loss(eps_hat, eps, k) if debiased else loss


@dataclass
class TestTimeTraining:
    """Stage (c): the student keeps to what each teacher draws, under the target prompt.

    The UNet holds four sets of adapters. "spatial_reference" and "temporal_reference" are the
    teachers, frozen as stages (a) and (b) left them; "spatial" and "temporal" are the student.
    """

    unet: UNet
    shape: tuple[int, ...]      # of the latents, (1 4 f h w)
    target: Tensor              # text embeddings (1 77 d): "a teddy bear is lifting weights"
    appearance: Tensor          # "a teddy bear is doing something"
    motion: Tensor              # "an object is lifting weights"
    empty: Tensor
    settings: dict              # recipes.PAPER["ttt"]

    def losses(self, generator: Generator) -> Iterator[Tensor]:
        """Appearance preservation, then temporal preservation; their sum is minimised.

        They are yielded one by one, so that the first one's graph is gone before the second's, and
        inside `active`, so that a backward pass that recomputes layers finds the student still on.
        """
        for z_f, t_f in self.references(generator):
            x_t, t, eps = self.noised(z_f, t_f, generator)
            with active(self.unet, "spatial", "temporal"):
                yield noise_loss(self.unet(x_t, t, self.target), eps)

    def references(self, generator: Generator) -> Iterator[tuple[Tensor, int]]:
        """What each teacher draws alone under its own prompt, appearance without motion modules:
        (z_f, t_f) of `_reference`, first z_s, then z_t.

        The yields are outside of the `with`, which would reach into the caller's code.
        """
        with torch.no_grad(), active(self.unet, "spatial_reference"):
            noise = self._noise(generator, self.settings["reference_noise"] == "one")
            appearance = self._reference(noise, self.appearance, motion=False)
        yield appearance
        with torch.no_grad(), active(self.unet, "temporal_reference"):
            motion = self._reference(self._noise(generator), self.motion, motion=True)
        yield motion

    def _noise(self, generator: Generator, one: bool = False) -> Tensor:
        """Standard normal noise; `one`: the same for every frame."""
        b, c, f, h, w = self.shape
        noise = torch.randn((b, c, 1 if one else f, h, w), generator=generator)
        return noise.expand(self.shape).to(self.target.device)

    def _reference(self, noise: Tensor, text: Tensor, motion: bool) -> tuple[Tensor, int]:
        """f DDIM steps from noise -> z_f and the timestep where it stands (-1: clean).

        "uniform": the f steps span the whole schedule, so z_f is clean. "next", the other reading:
        they are the first f of the sampling schedule, so z_f is still noisy.
        """
        f = self.settings["reference_steps"]
        if self.settings["reference_timestep"] == "uniform":
            timesteps, t_f = ddim_timesteps(f), -1
        else:
            schedule = ddim_timesteps(self.settings["sampling_steps"])
            timesteps, t_f = schedule[:f], schedule[f]
        *_, z_f = ddim(self.unet, noise, text, self.empty, timesteps,
                       self.settings["reference_guidance"], motion, t_f)
        return z_f, t_f

    def noised(self, z_f: Tensor, t_f: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
        """z_{f+1}: noise eps added to z_f, up to a timestep t. Returns x_t, t (b,) and eps."""
        eps = noise_like(z_f, generator)
        if t_f < 0:
            t = random_timesteps(z_f, generator, self.settings["least_timestep"])
        else:
            t = torch.tensor([self._previous_timestep(t_f)], device=z_f.device)
        return add_noise(z_f, eps, t, t_f), t, eps

    def _previous_timestep(self, t_f: int) -> int:
        """The timestep one sampling step noisier than t_f."""
        return t_f + STEPS // self.settings["sampling_steps"]


def joining(model: Model, target: str, appearance: str, motion: str,
            settings: dict) -> TestTimeTraining:
    """Stage (c) for these prompts, of a model whose UNet holds its adapters."""
    shape = initial_noise(model, settings["frames"], settings["size"], seed=0).shape
    texts = model.encode_text([target, appearance, motion, ""]).split(1)
    return TestTimeTraining(model.unet, shape, *texts, settings)
