"""The contact sheet of a run: a row of samples for each combination of LoRAs that the stage shows;
and as an animation, the rows side by side."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..diffusion import ddim, ddim_timesteps
from ..draws import stream_seed
from ..errors import UserError
from ..lora import lora_on
from ..media.clips import FPS_RANGE, contact_sheet, write_frames
from ..model.model import Model
from ..recipes import SAMPLING
from ..sampling import decode_frames, finite_frames, initial_noise

COLUMNS = 8


def sheet_writer(model: Model, prompt: str, settings: dict, seed: int,
                 rows: Sequence[tuple[str, ...]], above: Sequence[Tensor],
                 motion: bool) -> Callable[[Path], None]:
    """A function that writes the sheet: `above` (uint8 (f H W 3), what was learned from), then the
    prompt sampled from one noise with each of `rows`, the LoRAs that are on.

    Beside a sheet of clips goes a .gif: the sheet's rows as clips, from left to right.
    """
    text, empty = model.encode_text([prompt, ""]).split(1)
    noise = initial_noise(model, settings["frames"], settings["size"], stream_seed(seed, "sheet"))
    if not motion:
        noise = noise[:, :, on_sheet(settings["frames"])]    # the others would not be looked at
    timesteps = ddim_timesteps(settings["sampling_steps"])
    least, most = FPS_RANGE[".gif"]
    fps = min(max(settings.get("fps", SAMPLING.full["fps"].value), least), most)

    def write(path: Path) -> None:
        clips = [clip for clip in above if clip.shape[1] == settings["size"]]
        for names in rows:
            with lora_on(model.unet, *names):
                *_, z = ddim(model.unet, noise.to(model.device), text, empty, timesteps,
                             settings["guidance"], motion)
            try:
                clips.append(finite_frames(model, z))
            except UserError as error:      # training may go well all the same
                warnings.warn(f"{path}, row {len(clips) + 1}: {error}", stacklevel=2)
                clips.append(decode_frames(model, z))
        if motion:
            write_frames(side_by_side(clips, settings["frames"]), path.with_suffix(".gif"), fps)
        write_frames(contact_sheet([clip[on_sheet(len(clip))] for clip in clips]), path)    # last
    return write


def on_sheet(frames: int) -> list[int]:
    """Which frames of a clip are on the sheet: evenly spaced, and COLUMNS at most."""
    columns = min(frames, COLUMNS)
    return [k * frames // columns for k in range(columns)]


def side_by_side(clips: Sequence[Tensor], frames: int) -> Tensor:
    """Clips and images, uint8 (f H W 3) of one size -> one clip (`frames` H' W' 3); a shorter one
    begins again."""
    return torch.cat([contact_sheet([torch.stack([clip[k % len(clip)] for clip in clips])])
                      for k in range(frames)])
