"""Weight files and JSON: memory-mapped, no code unpickled, every failure one sentence."""

import json
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..errors import UserError, writing
from . import keys


def read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); fetch it again") from error


def write_json(content: dict, path: Path) -> None:
    with writing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n",
                             encoding="utf-8")


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


class WeightFile:
    """A safetensors file that is mapped anew after every 32 MB.

    Pages that were read count as memory until their mapping is closed: without this, a file that is
    converted to another dtype would stay in memory beside the weights made of it.
    """

    def __init__(self, path: Path):
        self.path, self.file, self.bytes = path, _open_safetensors(path), 0

    def read(self, key: str) -> Tensor:
        if self.bytes > 2 ** 25:
            self.file, self.bytes = _open_safetensors(self.path), 0
        tensor = self.file.get_tensor(key)
        self.bytes += tensor.nbytes
        return tensor


@dataclass(frozen=True)
class Stored:
    """A tensor of a weight file: its shape now, its values when `fill` wants them."""

    file: WeightFile
    key: str
    shape: tuple[int, ...]

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Tensor:
        return self.file.read(self.key).to(device=device, dtype=dtype)


def read_weights(path: str | Path) -> dict[str, Tensor | Stored]:
    """As `read_tensors`, for `fill`, which takes one tensor at a time."""
    path = Path(path)
    if path.suffix != ".safetensors":
        return read_tensors(path)
    file = WeightFile(path)
    return {key: Stored(file, key, tuple(file.file.get_slice(key).get_shape()))
            for key in file.file.keys()}


def _open_safetensors(path: Path):
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({error}); fetch it "
                        f"again") from error


def _unpickle(path: Path):
    """torch.load that accepts tensors and plain containers only."""
    with path.open("rb") as file:
        if file.read(1) not in (b"P", b"\x80"):     # as a zip file or a pickle begins
            raise UserError(f"{path}: not a PyTorch file; fetch it again")
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


def fill(module: nn.Module, tensors: Mapping[str, Tensor | Stored], public: Callable[[str], str],
         file: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32,
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
        tensor, shape = tensors[key], shapes[name]
        linear = len(shape) == 2 and tensor.shape == (*shape, 1, 1)     # of a 1x1 convolution
        if tensor.shape != shape and not linear:
            wrong.append(f"{key} {tuple(tensor.shape)}, needed {tuple(shape)}")
            continue
        owner, _, leaf = name.rpartition(".")
        value = tensor.to(device=device, dtype=dtype).reshape(shape)
        setattr(module.get_submodule(owner), leaf, nn.Parameter(value, requires_grad=False))
    if wrong:
        raise UserError(f"{file}: {_listed('wrong shapes', wrong)}")


def _listed(what: str, items: list[str]) -> str:
    return f"{len(items)} {what}: " + ", ".join(items[:3]) + (", ..." if len(items) > 3 else "")
