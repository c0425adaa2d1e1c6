"""Every setting of the three stages and of sampling, one a line: its value, where it comes from,
what it is. What is fixed stands where it is used: the LoRA's scale and start in lora.py, beta in
losses.py.

"supplement" is the paper's supplementary material, section 1 unless said otherwise. "open" marks
what it does not say: docs/method.md lists each with the alternative and the reason. "tiny" is what
differs for a model of small widths, and why.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

from .diffusion import TIMESTEPS
from .model.config import SD15_UNET
from .model.unet import UNet


class Setting(NamedTuple):
    value: Any
    source: str
    about: str = ""
    zero: bool = False              # whether it may be 0; nothing may be less
    below: float = 2 ** 31          # it must be less than this
    choices: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Recipe:
    """The settings of one stage, by name."""

    full: dict[str, Setting]        # at Stable Diffusion 1.5's widths
    tiny: dict[str, Setting]        # what differs at smaller ones: value and source alone

    def of(self, unet: UNet) -> dict[str, Setting]:
        """The settings for this UNet."""
        return self.full if is_full_size(unet) else self.full | self.tiny

    def values(self, unet: UNet) -> dict[str, Any]:
        return {name: setting.value for name, setting in self.of(unet).items()}


def is_full_size(unet: UNet) -> bool:
    return unet.config.channels == SD15_UNET.channels


# Of DDIM. Steps are 1000 // steps apart: where that is rounded down much, they start low (334 steps
# at 667, as in diffusers); more than 500 would be 1 apart, and 501 would start at 501.
MOST_STEPS = TIMESTEPS // 2
EVERYWHERE = {
    "size": Setting(256, "supplement", "pixels along each side"),
    "frames": Setting(16, "supplement", "of a clip"),
    "sampling_steps": Setting(25, "supplement", "DDIM steps of a sample", below=MOST_STEPS + 1),
    "guidance": Setting(9.0, "supplement", "classifier-free guidance of a sample", zero=True),
}
FPS = {"fps": Setting(8.0, "supplement", "frames a second")}
TRAINING = {
    "dropout": Setting(0.1, "supplement", "of the LoRA's update", zero=True, below=1),
    "betas": Setting((0.9, 0.99), "supplement", "of Lion", zero=True, below=1),
    "weight_decay": Setting(0.1, "supplement", "of Lion", zero=True),
}
FRESH_LORA = {"rank": Setting(32, "supplement", "of the LoRA", below=4097)}
LEAST_TIMESTEP = {"least_timestep": Setting(
    0, "open: AnimateDiff-MotionDirector draws from all",
    "training timesteps are drawn from here to 999", zero=True, below=TIMESTEPS)}
SMALL = {
    "size": Setting(64, "tiny: its world is 64 pixels wide"),
    "guidance": Setting(3.0, "tiny: docs/study.md"),
}

SAMPLING = Recipe(full=EVERYWHERE | FPS, tiny=SMALL)

SPATIAL = Recipe(
    full=EVERYWHERE | TRAINING | FRESH_LORA | {
        "steps": Setting(500, "supplement", "training steps"),
        "learning_rate": Setting(1e-5, "supplement", "of Lion"),
        "spatial_layers": Setting((2, 6), "supplement, section 3", "with LoRA, W_s", zero=True),
        "batch_size": Setting(1, "open: AnimateDiff-MotionDirector draws one frame a step",
                              "images a step"),
        "frames": Setting(16, "as in sampling", "of the contact sheet, which shows eight at most"),
    },
    tiny=SMALL | {
        "betas": Setting((0.98, 0.998), "tiny: the signs of noisy gradients, docs/study.md"),
        "learning_rate": Setting(1e-4, "tiny: docs/study.md"),
        "spatial_layers": Setting((1, 2, 6, 7, 8), "tiny: docs/study.md"),
        "batch_size": Setting(4, "tiny: the signs of noisy gradients, docs/study.md"),
    })

TEMPORAL = Recipe(
    full=EVERYWHERE | FPS | TRAINING | FRESH_LORA | LEAST_TIMESTEP | {
        "steps": Setting(500, "supplement", "training steps"),
        "learning_rate": Setting(5e-5, "supplement", "of Lion"),
        "temporal_layers": Setting((2, 5), "supplement, section 3", "with LoRA, W_t", zero=True),
        "debiased": Setting(True, "open: AnimateDiff-MotionDirector adds it",
                            "MotionDirector's appearance-debiased term"),
    },
    tiny=SMALL | {
        "least_timestep": Setting(700, "tiny: motion is decided where noise is strong"),
        "steps": Setting(250, "tiny: the three stages are to take minutes on a CPU"),
        "rank": Setting(8, "tiny: docs/study.md"),
        "learning_rate": Setting(1e-3, "tiny: docs/study.md"),
        "temporal_layers": Setting((2, 3, 5, 6), "tiny: docs/study.md"),
    })

TTT = Recipe(
    full=EVERYWHERE | TRAINING | LEAST_TIMESTEP | {
        "steps": Setting(30, "supplement", "training steps"),
        "learning_rate": Setting(1e-6, "supplement", "of Lion"),
        "reference_steps": Setting(5, "supplement, section 1 and table 4",
                                   "DDIM steps of the reference latents",
                                   below=MOST_STEPS + 1),
        "reference_guidance": Setting(9.0, "open: as in sampling",
                                      "classifier-free guidance of the reference latents",
                                      zero=True),
        "reference_noise": Setting("independent", "open: without motion modules frames are images",
                                   "what the frames of z_s start from",
                                   choices=("independent", "one")),
        "reference_timestep": Setting("uniform", "open: as in the first two stages",
                                      "which DDIM steps the teachers take, and where their "
                                      "latents are noised to",
                                      choices=("uniform", "next")),
    },
    tiny=SMALL | {
        "least_timestep": Setting(500, "tiny: motion is decided where noise is strong"),
        "learning_rate": Setting(1e-5, "tiny: at 1e-6 the student hardly moves, docs/study.md"),
        "reference_guidance": Setting(3.0, "tiny: as in sampling"),
    })
