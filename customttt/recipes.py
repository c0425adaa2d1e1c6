"""Every number of the method, one a line: its value, and where it comes from.

"supplement" is the paper's supplementary material, section 1 unless said otherwise. "open" marks
what it does not say: docs/method.md lists each with the alternative and the evidence. "tiny" is
what differs for a model of small widths. Each entry is a command-line flag of train.py or
sample.py.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

from .model.config import SD15_UNET
from .model.unet import UNet


class Setting(NamedTuple):
    value: Any
    source: str


@dataclass(frozen=True)
class Recipe:
    """The settings of one stage."""

    full: dict[str, Setting]        # at Stable Diffusion 1.5's widths
    tiny: dict[str, Setting]        # what differs at smaller ones

    def of(self, unet: UNet) -> dict[str, Setting]:
        """The settings for this UNet."""
        return self.full if is_full_size(unet) else self.full | self.tiny

    def values(self, unet: UNet) -> dict[str, Any]:
        return {name: setting.value for name, setting in self.of(unet).items()}


def is_full_size(unet: UNet) -> bool:
    return unet.config.channels == SD15_UNET.channels


SAMPLED = {
    "size": Setting(256, "supplement"),             # pixels along each side
    "frames": Setting(16, "supplement"),            # of a clip, and pictures on a sheet of images
    "sampling_steps": Setting(25, "supplement"),    # DDIM
    "guidance": Setting(9.0, "supplement"),         # classifier-free guidance
}
FPS = {"fps": Setting(8.0, "supplement")}
TRAINED = {
    "dropout": Setting(0.1, "supplement"),
    "betas": Setting((0.9, 0.99), "supplement"),    # Lion's
    "weight_decay": Setting(0.1, "supplement"),
}
FRESH = {"rank": Setting(32, "supplement")}         # of a LoRA
SMALL = {
    "size": Setting(64, "tiny: the tiny world is 64 pixels wide"),
    "guidance": Setting(3.0, "tiny: of 2, 3 and 5, none is better for its images"),
}

SAMPLING = Recipe(full=SAMPLED | FPS, tiny=SMALL)

SPATIAL = Recipe(
    full=SAMPLED | TRAINED | FRESH | {
        "steps": Setting(500, "supplement"),
        "learning_rate": Setting(1e-5, "supplement"),
        "spatial_layers": Setting((2, 6), "supplement, section 3"),         # W_s
        "batch_size": Setting(1, "open: images a step"),
    },
    tiny=SMALL | {
        "learning_rate": Setting(5e-5, "tiny: trials, docs/method.md"),
        "spatial_layers": Setting((1, 7), "tiny: latents of 8 x 8, as the paper's layers have"),
    })

TEMPORAL = Recipe(
    full=SAMPLED | FPS | TRAINED | FRESH | {
        "steps": Setting(500, "supplement"),
        "learning_rate": Setting(5e-5, "supplement"),
        "temporal_layers": Setting((2, 5), "supplement, section 3"),        # W_t
        "least_timestep": Setting(0, "open: timesteps are drawn from here to 999"),
        "debiased": Setting(True, "open: add MotionDirector's appearance-debiased term"),
    },
    tiny=SMALL | {
        "steps": Setting(250, "tiny: the three stages are to take minutes on a CPU"),
        "learning_rate": Setting(3e-4, "tiny: trials, docs/method.md"),
        "temporal_layers": Setting((1, 7), "tiny: latents of 8 x 8, as the paper's layer 2 has"),
        "least_timestep": Setting(500, "tiny: motion is decided where noise is strong"),
    })

TTT = Recipe(
    full=SAMPLED | TRAINED | {
        "steps": Setting(30, "supplement, section 2.2 and table 4"),
        "learning_rate": Setting(1e-6, "supplement"),
        "reference_steps": Setting(5, "supplement, table 4"),               # DDIM
        "reference_guidance": Setting(9.0, "open: as in sampling"),
        "reference_noise": Setting("independent", "open: of the appearance reference's frames"),
        "reference_timestep": Setting("uniform", "open: where the references are noised"),
        "least_timestep": Setting(0, "open: timesteps are drawn from here to 999"),
    },
    tiny=SMALL | {
        "learning_rate": Setting(1e-5, "tiny: at 1e-6 the student hardly moves, docs/method.md"),
        "reference_guidance": Setting(3.0, "tiny: as in sampling"),
        "least_timestep": Setting(500, "tiny: motion is decided where noise is strong"),
    })
