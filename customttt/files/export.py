"""Write a LoRA that train.py made as the files that other tools load.

  python -m customttt.files.export output/ttt --to diffusers|comfyui|animatediff|kohya

docs/interoperability.md says what loads where. No model is needed: the names come from the file.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError, command_parser, run_command
from . import keys
from .checks import clipped
from .lora_files import find_lora, public_stem, split_key
from .reading import floating, read_metadata, read_tensors, save_pickled, write_tensors

Pairs = dict[str, dict[str, Tensor]]        # our name of a module -> its "down" and its "up"


def diffusers(pairs: Pairs) -> dict[str, Tensor]:
    """peft's names with `unet.` before them: without it diffusers takes nothing from the file.

    Filled up with zeros to one rank: diffusers before 0.41 takes one alpha for all, and where ranks
    differ it scales the smaller ones up.
    """
    rank = max(len(pair["down"]) for pair in pairs.values())
    tensors = {}
    for name, pair in pairs.items():
        stem, more = f"unet.{public_stem(keys.diffusers_unet, name)}", rank - len(pair["down"])
        rest = (0, 0) * (pair["down"].ndim - 2)         # a convolution's rows and columns
        tensors[f"{stem}.lora_A.weight"] = F.pad(pair["down"], (*rest, 0, 0, 0, more))
        tensors[f"{stem}.lora_B.weight"] = F.pad(pair["up"], (*rest, 0, more))
    return tensors


def kohya(pairs: Pairs) -> dict[str, Tensor]:
    """One underscored name a module (kohya-ss/sd-scripts); alpha = rank, so that the scale is 1."""
    tensors = {}
    for name, pair in pairs.items():
        stem = "lora_unet_" + public_stem(keys.diffusers_unet, name).replace(".", "_")
        tensors |= {f"{stem}.lora_{part}.weight": tensor for part, tensor in pair.items()}
        tensors[f"{stem}.alpha"] = torch.tensor(float(len(pair["down"])))
    return tensors


def processor(pairs: Pairs, layout=keys.diffusers_unet) -> dict[str, Tensor]:
    """`attn1.to_q` -> `attn1.processor.to_q_lora`: the names of diffusers' first LoRAs.

    Their readers take `processor.`, `_lora`, `down.` and `up.` out of a key and make `to_out.` into
    `to_out.0.`: load_diffusers_lora of guoyww/AnimateDiff, load_motion_lora_as_patches of
    ComfyUI-AnimateDiff-Evolved. They add up @ down of matrices and read no alpha.
    """
    tensors = {}
    for name, pair in pairs.items():
        owner, _, leaf = public_stem(layout, name).replace(".to_out.0", ".to_out").rpartition(".")
        tensors |= {f"{owner}.processor.{leaf}_lora.{part}.weight": tensor
                    for part, tensor in pair.items()}
    return tensors


def motion_lora(pairs: Pairs) -> dict[str, Tensor]:
    """The same with AnimateDiff's own names (`temporal_transformer`), as published MotionLoRAs."""
    return processor(pairs, keys.original_motion)


@dataclass(frozen=True)
class Format:
    """One of the files that a tool wants: of which kinds, in what layout, how to load it there."""

    kinds: tuple[str, ...]
    layout: Callable[[Pairs], dict[str, Tensor]]
    ending: str
    how: str


TARGETS = {
    "diffusers": [Format(("spatial", "temporal"), diffusers, ".safetensors",
                         'pipe.load_lora_weights("{file}")')],
    "comfyui": [Format(("spatial",), kohya, ".spatial.safetensors",
                       "put it into ComfyUI's models/loras; node Load LoRA, strength_model 1"),
                Format(("temporal",), motion_lora, ".motion.safetensors",
                       "put it into ComfyUI's models/animatediff_motion_lora; node Load "
                       "AnimateDiff LoRA (of AnimateDiff-Evolved), strength 1; beta_schedule "
                       "sqrt_linear (AnimateDiff)")],
    "animatediff": [Format(("spatial",), processor, ".spatial.ckpt",
                           'in the --config of scripts/animate.py: adapter_lora_path: "{file}"'),
                    Format(("temporal",), motion_lora, ".motion.ckpt",
                           "in the --config of scripts/animate.py: motion_module_lora_configs: "
                           '[{{path: "{file}", alpha: 1.0}}]')],
    "kohya": [Format(("spatial",), kohya, ".safetensors",
                     "any tool for Stable Diffusion 1.5 LoRAs; A1111 and Forge: models/Lora")],
}


def lora_kind(name: str) -> str:
    return "temporal" if keys.is_motion(name) else "spatial"


def export(lora: str | Path, target: str, output: str | Path | None = None) -> dict[Path, str]:
    """Write the files that `target` needs; returns how each is loaded there.

    They go into `output` (default: beside the LoRA), weights unchanged. Raises UserError.
    """
    path = find_lora(lora, "export")
    pairs = read_pairs(path)
    if target == "kohya" and any(lora_kind(name) == "temporal" for name in pairs):
        raise UserError(f"{path}: adapts motion modules, for which kohya has no names; "
                        f"use --to comfyui, which writes a file for each kind")
    if target == "animatediff" and any(pair["down"].ndim > 2 for pair in pairs.values()):
        raise UserError(f"{path}: adapts convolutions, which AnimateDiff's loader cannot read; use "
                        f"--to diffusers or comfyui")
    folder = path.parent if output is None else Path(output)
    stem = path.resolve().parent.name if path.stem == "adapter" else path.stem
    written = {}
    for form in TARGETS[target]:
        part = {name: pair for name, pair in pairs.items() if lora_kind(name) in form.kinds}
        if part:
            kinds = {lora_kind(name) for name in part}
            metadata = {"kind": "joined" if len(kinds) == 2 else kinds.pop()}
            file = folder / f"{stem}.{target}{form.ending}"
            if file.suffix == ".ckpt":      # AnimateDiff reads LoRAs with torch.load alone
                save_pickled({"state_dict": form.layout(part)}, file)
            else:
                write_tensors(form.layout(part), file, read_metadata(path) | metadata)
            written[file] = form.how.format(file=file.as_posix())
    return written


def read_pairs(path: Path) -> Pairs:
    """The pairs of a file in our own layout. Raises UserError for any other."""
    pairs: Pairs = {}
    for key, tensor in read_tensors(path).items():
        name, part = split_key(key)
        if not name.startswith("layers.") or part == "alpha":
            raise UserError(f"{path}: not a LoRA that train.py wrote ({clipped(key)})")
        dtype = tensor.dtype if tensor.dtype.itemsize > 1 else torch.float16   # few read 8 bits
        pairs.setdefault(name, {})[part] = floating(tensor, "cpu", dtype, key, path)
    if not pairs or not all(map(is_whole_pair, pairs.values())):
        raise UserError(f"{path}: not a whole LoRA; train it again")
    return pairs


def is_whole_pair(pair: dict[str, Tensor]) -> bool:
    """Down and up are there, and of one rank, which is not zero."""
    if len(pair) < 2 or min(tensor.ndim for tensor in pair.values()) < 2:
        return False
    return pair["up"].shape[1] == len(pair["down"]) > 0


def main() -> None:
    parser = command_parser(__doc__)
    parser.add_argument("lora", type=Path,
                        help="adapter.safetensors, or the folder that train.py wrote")
    parser.add_argument("--to", required=True, choices=list(TARGETS))
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="default: beside the LoRA")
    args = parser.parse_args()
    for file, how in export(args.lora, args.to, args.output).items():
        print(f"{file}: {how}")


if __name__ == "__main__":
    run_command(main)
