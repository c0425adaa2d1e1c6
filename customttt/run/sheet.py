"""The contact sheet of a run: a row of samples for each of some sets of LoRAs."""

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from ..diffusion import ddim, ddim_timesteps
from ..draws import stream_seed
from ..lora import lora_on
from ..media.clips import contact_sheet, write_video
from ..model.model import Model
from ..sampling import decode_frames, initial_noise

COLUMNS = 8


def sheet_drawer(model: Model, prompt: str, settings: dict, seed: int,
                 rows: Sequence[tuple[str, ...]], above: Sequence[Tensor],
                 motion: bool) -> Callable[[Path], None]:
    """A function that writes the sheet: `above` (uint8 (f H W 3), what was learned from), then the
    prompt sampled from one noise with each of `rows`, the LoRAs that are on."""
    text, empty = model.encode_text([prompt, ""]).split(1)
    noise = initial_noise(model, settings["frames"], settings["size"], stream_seed(seed, "sheet"))
    timesteps = ddim_timesteps(settings["sampling_steps"])

    def draw(path: Path) -> None:
        clips = [clip for clip in above if clip.shape[1] == settings["size"]]
        for names in rows:
            with lora_on(model.unet, *names):
                *_, z = ddim(model.unet, noise.to(model.device), text, empty, timesteps,
                             settings["guidance"], motion)
            clips.append(decode_frames(model, z))
        write_video(contact_sheet([clip[::max(1, len(clip) // COLUMNS)] for clip in clips]), path)
    return draw
