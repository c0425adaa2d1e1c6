"""Every number of the method, one a line, with where it comes from.

"supplement" is the paper's supplementary material, section 1 unless said otherwise. "open" marks
what it does not say; docs/method.md lists each with the alternative and the evidence. Each entry is
a command-line flag of train.py or sample.py, and `TINY` says what differs for small models.
"""

from .model.config import SD15_UNET
from .model.unet import UNet

COMMON = {
    "size": 256,                    # pixels along each side; supplement
    "frames": 16,                   # of a clip, and pictures on a sheet of images; supplement
}
SAMPLING = {
    "sampling_steps": 25,           # DDIM; supplement
    "guidance": 9.0,                # classifier-free guidance; supplement
}
TRAINING = {
    "rank": 32,                     # supplement
    "dropout": 0.1,                 # supplement
    "betas": (0.9, 0.99),           # Lion's; supplement
    "weight_decay": 0.1,            # supplement
}
STAGES = ("spatial", "temporal", "ttt")
PAPER = {
    "sampling": COMMON | SAMPLING | {
        "fps": 8.0,                 # supplement
    },
    "spatial": COMMON | SAMPLING | TRAINING | {
        "steps": 500,               # supplement
        "learning_rate": 1e-5,      # supplement
        "spatial_layers": (2, 6),   # W_s of layers 2 and 6; supplement, section 3
        "batch_size": 1,            # open: images a step
    },
    "temporal": COMMON | SAMPLING | TRAINING | {
        "fps": 8.0,                 # supplement
        "steps": 500,               # supplement
        "learning_rate": 5e-5,      # supplement
        "temporal_layers": (2, 5),  # W_t of layers 2 and 5; supplement, section 3
        "least_timestep": 0,        # open: timesteps are drawn uniformly from here to 999
        "debiased": True,           # open: add MotionDirector's appearance-debiased term
    },
    "ttt": COMMON | SAMPLING | TRAINING | {
        "steps": 30,                # supplement, section 2.2 and table 4
        "learning_rate": 1e-6,      # supplement
        "reference_steps": 5,       # DDIM steps f of the references; supplement, table 4
        "reference_guidance": 9.0,  # open: as in sampling
        "reference_noise": "independent",   # open: the noises of the appearance reference's frames
        "reference_timestep": "uniform",    # open: where the references are noised
        "least_timestep": 0,        # open: with "uniform", from here to 999
    },
}
_SMALL = {"size": 64, "guidance": 3.0}
TINY: dict[str, dict] = {           # what differs for a model of small widths
    "sampling": _SMALL,
    "spatial": _SMALL | {"learning_rate": 5e-5, "spatial_layers": (1, 7)},
    "temporal": _SMALL | {"learning_rate": 3e-4, "steps": 250, "temporal_layers": (1, 7),
                          "least_timestep": 500},
    "ttt": _SMALL | {"learning_rate": 1e-5, "reference_guidance": 3.0, "least_timestep": 500},
}
WHY_TINY = {                        # more in docs/method.md
    "size": "the tiny world is 64 pixels wide",
    "guidance": "of 2, 3 and 5, none is better for the tiny model's images",
    "reference_guidance": "as in sampling",
    "learning_rate": "a search on the tiny model",
    "steps": "the three stages are to take minutes on a CPU",
    "spatial_layers": "their latents are 8 x 8 here, as those of the paper's layers are there",
    "temporal_layers": "their latents are 8 x 8 here, as those of the paper's layer 2 are there",
    "least_timestep": "motion is decided where noise is strong, and its errors there are small",
}


def recipe_name(unet: UNet) -> str:
    """"paper" for Stable Diffusion 1.5's widths, "tiny" for smaller ones."""
    return "paper" if unet.config.channels == SD15_UNET.channels else "tiny"


def recipe(stage: str, name: str) -> dict:
    """The settings of a stage under the recipe of that name."""
    return PAPER[stage] | (TINY[stage] if name == "tiny" else {})
