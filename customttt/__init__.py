"""CustomTTT: a subject and a motion, each learned with LoRA, joined by test-time training."""

from . import recipes
from .diffusion import add_noise, ddim_step, ddim_timesteps
from .draws import Draws
from .errors import UserError
from .files.load import load_model
from .files.lora_files import load_lora, save_lora
from .lion import Lion
from .lora import add_lora, lora_on, merge_lora
from .losses import noise_loss, preservation_loss, spatial_loss, temporal_loss
from .media.clips import write_frames
from .model import config
from .model.model import Model
from .model.unet import UNet
from .run.data import Texts
from .sampling import sample_latents, sample_video
from .stages import spatial_step, temporal_step, ttt_step

__all__ = ["Draws", "Lion", "Model", "Texts", "UNet", "UserError", "add_lora", "add_noise",
           "config", "ddim_step", "ddim_timesteps", "load_lora", "load_model", "lora_on",
           "merge_lora", "noise_loss", "preservation_loss", "recipes", "sample_latents",
           "sample_video", "save_lora", "spatial_loss", "spatial_step", "temporal_loss",
           "temporal_step", "ttt_step", "write_frames"]
