"""peft's settings of a LoRA file: they say by how much its pairs are scaled."""

import json
import re
from pathlib import Path

from ..errors import UserError
from .checks import number, shortened, wrong
from .reading import read_json

MOST_ALPHA, LONGEST_PATTERN = 1e6, 500
# Of init_lora_weights: such an adapter's start was taken off the base model's weights.
STARTS = ("pissa", "olora", "corda", "lora_ga", "loftq")


def peft_config(path: Path, metadata: dict[str, str], by_peft: bool, notes: list[str]) -> dict:
    """The settings: diffusers writes them into a file's metadata, peft beside the file. `by_peft`:
    whether its keys are as peft writes them.

    diffusers' save_lora_weights puts `unet.` and `text_encoder.` before each setting (and each
    key), its save_lora_adapter nothing; both write all of peft's LoraConfig as JSON.
    """
    beside = path.with_name("adapter_config.json")
    if "lora_adapter_metadata" in metadata:
        try:
            config = json.loads(metadata["lora_adapter_metadata"])
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: its lora_adapter_metadata is not JSON ({error})") from error
        if not isinstance(config, dict):
            raise wrong("lora_adapter_metadata", config, str(path), "named entries")
        return checked(config, path)
    if by_peft and beside.is_file():
        return checked(read_json(beside), path)
    if by_peft:
        notes.append(f"no {beside.name} beside it, so its alpha is taken to be its rank")
    return {}


def checked(config: dict, path: Path) -> dict:
    """Raise UserError for an adapter that goes with changed weights of the base model."""
    for key, value in config.items():
        if key.endswith("init_lora_weights") and str(value).lower().startswith(STARTS):
            raise UserError(f"{path}: {key} is {shortened(value)}: it goes with other weights than "
                            f"the model's; convert it in peft (PiSSA, OLoRA, CorDA: "
                            f"save_pretrained with path_initial_model_for_weight_conversion), or "
                            f"train with another start")
    return config


def peft_scale(config: dict, stem: str, rank: int, file: str) -> float:
    """alpha / rank (rsLoRA: / sqrt(rank)); alpha_pattern goes before lora_alpha, as in peft."""
    part = "text_encoder." if stem.startswith("text_encoder.") else "unet."
    config = {key.removeprefix(part): value for key, value in config.items()}
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise wrong("alpha_pattern", patterns, file, "named numbers")
    name = stem.removeprefix(part)
    pattern = next((each for each in patterns if _matches(each, name, file)), None)
    alpha = (number(patterns, pattern, file, MOST_ALPHA) if pattern is not None else
             number(config, "lora_alpha", file, MOST_ALPHA, default=rank))
    return alpha / (rank ** 0.5 if config.get("use_rslora") else rank)


def _matches(pattern: str, name: str, file: str) -> bool:
    """Whether a pattern of peft means this module. Repeats of repeats, which never end, are not."""
    if len(pattern) > LONGEST_PATTERN or re.search(r"[+*}]\)*[+*{]", pattern):
        raise wrong("alpha_pattern", pattern, file, "a shorter or simpler pattern")
    try:
        return re.match(rf"(.*\.)?({pattern})$", name) is not None
    except (re.error, RecursionError, OverflowError) as error:
        raise wrong("alpha_pattern", pattern, file, f"a regular expression ({error})") from error
