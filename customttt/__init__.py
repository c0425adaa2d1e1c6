"""CustomTTT: a subject and a motion, each learned with LoRA, joined by test-time training."""

from . import config
from .diffusion import add_noise, ddim_step, ddim_timesteps
from .errors import UserError
from .lion import Lion
from .lora import add_lora, merge_lora
from .lora_files import load_lora, save_lora
from .model import Model, load_model
from .sampling import sample_latents, sample_video
from .unet import UNet

__all__ = ["Lion", "Model", "UNet", "UserError", "add_lora", "add_noise", "config", "ddim_step",
           "ddim_timesteps", "load_lora", "load_model", "merge_lora", "sample_latents",
           "sample_video", "save_lora"]
