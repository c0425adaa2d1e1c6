"""Weight files and JSON: memory-mapped, no code unpickled, every failure one sentence."""

import io
import json
import math
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import UserError, in_words, writing
from . import keys
from .checks import clipped, shortened


PICKLED = (b"PK", b"\x80")      # how a file of torch.save begins: a zip file, or a pickle
NO_WEIGHTS = {      # what a download leaves in their place, by its beginning
    b"version https://git-lfs": "a pointer of Git LFS (see git lfs pull)",
    b"<!doctype html": "a web page", b"<html": "a web page"}
FLOATS = {      # that are read, by safetensors' names
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}


def read_json(path: Path) -> dict:
    """The object in a JSON file. Raises UserError for anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({in_words(error)}); fetch it "
                        f"again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds {shortened(content)}, not named entries; fetch it again")
    return content


def save_pickled(content, path: Path) -> None:
    """torch.save, by way of memory: on a full disk it would not say that it is full, and what it
    writes to a file varies with the file's name."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with writing(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def write_json(content: dict, path: Path) -> None:
    with writing(path) as temporary:
        # A file's name may hold bytes that are no text: JSON has the same escape for them.
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n",
                             encoding="utf-8", errors="backslashreplace")


def write_tensors(tensors: dict[str, Tensor], path: str | Path,
                  metadata: Mapping | None = None) -> None:
    """A safetensors file, the same bytes each time; metadata that are not strings become JSON."""
    text = {str(key): (value if isinstance(value, str) else json.dumps(value, default=str)).encode(
        "utf-8", "replace").decode() for key, value in (metadata or {}).items()}
    with writing(path) as temporary:
        save_file(tensors, temporary, text | {"format": "pt"})
        _sort_metadata(temporary)


def is_safetensors(path: Path) -> bool:
    """By content: people call such files .ckpt, and others .safetensors."""
    if not path.is_file():
        raise UserError(f"{path}: is a folder; name a file in it" if path.is_dir() else
                        f"{path}: no such file")
    with path.open("rb") as file:
        head = file.read(40)
    for start, what in NO_WEIGHTS.items():
        if head.lstrip().lower().startswith(start):
            raise UserError(f"{path}: {what}, not the weights themselves; fetch it again")
    return head[8:9] == b"{" or path.suffix == ".safetensors" and not head.startswith(PICKLED)


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata of a safetensors file; none of another."""
    if not is_safetensors(Path(path)):
        return {}
    with _open_safetensors(Path(path)) as file:
        return file.metadata() or {}


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Name -> tensor of a safetensors file, or of one that torch.save wrote; a bare tensor in it
    is called "tensor".

    Tensors are views of the memory-mapped file: nothing is copied until it is used.
    """
    path = Path(path)
    if is_safetensors(path):
        with _open_safetensors(path) as file:
            return {key: file.get_tensor(key) for key in file.keys()}
    content = _unpickle(path)
    content = {"tensor": content} if isinstance(content, Tensor) else content
    content = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: holds no state dict of tensors; fetch it again")
    content = {key: torch.tensor(float(value)) if isinstance(value, (int, float))
               and str(key).endswith(".alpha") else value for key, value in content.items()}
    inner = {f"{name}.{key}": value for name, some in content.items() if isinstance(some, Mapping)
             for key, value in some.items()}        # of embeddings: string_to_param
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)} or inner
    tensors = {key: value for key, value in tensors.items()
               if isinstance(key, str) and isinstance(value, Tensor)}
    for key, value in tensors.items():
        if not is_plain(value):
            raise UserError(f"{path}: {clipped(key)} holds no plain numbers; fetch the file again")
    return tensors


def is_plain(tensor: Tensor) -> bool:
    """Whether it has a storage with a number for each of its elements, or is small."""
    return (tensor.layout == torch.strided
            and not (tensor.is_nested or tensor.is_meta or tensor.is_quantized)
            and tensor.nbytes <= max(tensor.untyped_storage().nbytes(), 2 ** 20))


def _sort_metadata(path: Path) -> None:
    """Put a safetensors file's metadata in order, in place: they are written in a random one."""
    with path.open("rb+") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= length:     # as it is, but for the order; the rest is filled with spaces
            file.seek(8)
            file.write(text.ljust(length))


class WeightFile:
    """A safetensors file that is mapped anew after every 32 MB.

    Pages that were read count as memory until their mapping is closed: without this, a file that is
    converted to another dtype would stay in memory beside the weights made of it.
    """

    def __init__(self, path: Path):
        self.path, self.file, self.bytes = path, _open_safetensors(path), 0

    def metadata(self) -> dict[str, str]:
        return self.file.metadata() or {}

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

    @property
    def is_floating(self) -> bool:
        return self.file.file.get_slice(self.key).get_dtype() in FLOATS

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Tensor:
        return self.file.read(self.key).to(device=device, dtype=dtype)


def read_weights(path: str | Path) -> dict[str, Tensor | Stored]:
    """As `read_tensors`, for `fill`, which takes one tensor at a time."""
    path = Path(path)
    if not is_safetensors(path):
        return read_tensors(path)
    file = WeightFile(path)
    return {key: Stored(file, key, tuple(file.file.get_slice(key).get_shape()))
            for key in file.file.keys()}


def _open_safetensors(path: Path):
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{path}: safetensors files are opened by names in UTF-8 alone; rename the "
                        f"file, or its folder") from error
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({in_words(error)}); fetch it "
                        f"again") from error


def _unpickle(path: Path):
    """torch.load that accepts tensors and plain containers only."""
    with path.open("rb") as file:
        if not file.read(2).startswith(PICKLED):
            raise UserError(f"{path}: neither a safetensors nor a PyTorch file; fetch it again")
    try:
        if path.suffix == ".safetensors":       # torch.load would believe the name
            with path.open("rb") as file:
                return torch.load(file, map_location="cpu", weights_only=True)
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:        # files older than torch 1.6 cannot be mapped
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: refused, because it holds more than tensors, and unpickling that "
                        f"could run code; use the .safetensors file of this model") from error
    except Exception as error:
        if "TorchScript" in str(error):
            raise UserError(f"{path}: is a TorchScript archive, as OpenAI's own files of CLIP are; "
                            f"use the weights alone, as Hugging Face has them") from error
        raise UserError(f"{path}: not a whole PyTorch file ({in_words(error)}); fetch it "
                        f"again") from error


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
                        + "; ".join(listed(what, some) for what, some in
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
        value = floating(tensor, device, dtype, key, file).reshape(shape)
        setattr(module.get_submodule(owner), leaf, nn.Parameter(value, requires_grad=False))
    if wrong:
        raise UserError(f"{file}: {listed('wrong shapes', wrong)}")


def floating(tensor: Tensor | Stored, device: torch.device | str, dtype: torch.dtype, key: str,
             file: str | Path) -> Tensor:
    """The tensor on a device, in a dtype. UserError if it holds other than finite numbers."""
    plain = tensor.is_floating if isinstance(tensor, Stored) else tensor.dtype in FLOATS.values()
    if not plain:
        raise UserError(f"{file}: {key} holds no plain floating-point numbers; fetch the file "
                        f"again")
    value = tensor.to(device=device, dtype=dtype)
    if value.is_meta or not value.numel():
        return value
    if not all(map(math.isfinite, value.detach().aminmax())):
        raise UserError(f"{file}: {key} is not finite in {str(dtype).removeprefix('torch.')}; "
                        f"fetch the file again, or try --precision fp32")
    return value


def listed(what: str, items: list[str]) -> str:
    named = ", ".join(map(clipped, items[:3]))
    return f"{len(items)} {what}: {named}" + (", ..." if len(items) > 3 else "")
