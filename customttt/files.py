"""Reading weight files: memory-mapped, never unpickling code, every failure one sentence."""

import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from . import keys
from .errors import UserError


def read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); fetch it again") from error


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata of a safetensors file."""
    with _open_safetensors(Path(path)) as file:
        return file.metadata() or {}


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Name -> tensor of a .safetensors, or of a .ckpt, .pt, .pth or .bin file.

    Tensors are views of the memory-mapped file: nothing is copied until it is used.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        with _open_safetensors(path) as file:
            return {key: file.get_tensor(key) for key in file.keys()}
    content = _unpickle(path)
    content = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: holds no state dict of tensors")
    return {key: value for key, value in content.items() if isinstance(value, Tensor)}


def _open_safetensors(path: Path):
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({error}); fetch it again") from error


def _unpickle(path: Path):
    """torch.load that accepts tensors and plain containers only."""
    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:        # files older than torch 1.6 cannot be mapped
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: refused, because it holds more than tensors, and unpickling that "
                        f"could run code; use the .safetensors file of this model") from error
    except Exception as error:
        raise UserError(f"{path}: not a whole PyTorch file ({error}); fetch it again") from error


def fill(module: nn.Module, tensors: Mapping[str, Tensor], public: Callable[[str], str], file: str,
         device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32,
         only: Callable[[str], bool] = lambda name: True) -> None:
    """Replace the parameters of `module` (built on "meta") by the tensors of a file.

    `public` gives a parameter's name in the file; `only` selects the parameters to fill. Each is
    filled exactly once; a tensor that is missing, left over or of another shape raises UserError.
    """
    wanted = {public(name): name for name, _ in module.named_parameters() if only(name)}
    missing = [key for key in wanted if key not in tensors]
    unknown = [key for key in tensors if key not in wanted and not keys.is_dropped(key)]
    if missing or unknown:
        raise UserError(f"{file}: not the weights that are needed: "
                        + "; ".join(_listed(what, some) for what, some in
                                    (("missing", missing), ("unknown", unknown)) if some))
    shapes = {name: p.shape for name, p in module.named_parameters()}
    wrong = []
    for key, name in wanted.items():
        tensor = tensors[key]
        if tensor.shape == (*shapes[name], 1, 1):       # a 1x1 convolution that is a Linear here
            tensor = tensor[:, :, 0, 0]
        if tensor.shape != shapes[name]:
            wrong.append(f"{key} {tuple(tensor.shape)}, needed {tuple(shapes[name])}")
            continue
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf,
                nn.Parameter(tensor.to(device=device, dtype=dtype), requires_grad=False))
    if wrong:
        raise UserError(f"{file}: {_listed('wrong shapes', wrong)}")


def _listed(what: str, items: list[str]) -> str:
    return f"{len(items)} {what}: " + ", ".join(items[:3]) + (", ..." if len(items) > 3 else "")
