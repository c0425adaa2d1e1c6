"""LoRA files: ours, and the layouts that other tools write, recognised by their keys.

A file is a set of pairs: for one Linear or convolution of the UNet (or the text encoder), `down`
and `up`. Layouts differ in what they call the module (the stem) and the two tensors (the ending).
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..lora import check_name, put_lora, wrapped
from ..model.clip import TextEncoder
from ..model.unet import UNet
from . import keys
from .checks import clipped
from .diagnose import kind_of
from .peft import peft_config, peft_scale
from .reading import floating, read_metadata, read_tensors, write_tensors

# What follows a module's name (the stem) in a key, once `.processor` is taken out of it.
PARTS = {
    r"\.lora_down\.weight": "down", r"\.lora_up\.weight": "up",      # kohya's and ours
    r"\.lora_A(\.[\w-]+)?\.weight": "down",                         # peft, with or without the
    r"\.lora_B(\.[\w-]+)?\.weight": "up",                           # adapter's name
    r"(\.lora(_linear_layer)?|_lora)\.down\.weight": "down",        # diffusers, new and old;
    r"(\.lora(_linear_layer)?|_lora)\.up\.weight": "up",            # MotionLoRA
    r"\.alpha": "alpha",
}
# What a file may hold that is not a plain pair for this model: pattern of a key, what it is.
REFUSED = {
    r"\.(hada|lokr|oft|boft)_|\.[ab][12]\.weight$|\.(diff|diff_b|w_norm|b_norm|on_input)$":
        "a LyCORIS variant other than LoRA and LoCon",
    r"dora_scale|lora_magnitude_vector": "DoRA",
    r"\.lora_mid\.weight$": "LoCon with a Tucker core",
    r"(double|single|single_transformer)_blocks": "a LoRA for FLUX",
    r"^lora_te[12]_|^text_encoder_2\.|transformer_blocks[._][1-9]|add_embedding|label_emb":
        "a LoRA for SDXL or another larger model",
}

# What diffusers' first LoRAs of a text encoder call its projections.
OLD_PROJECTIONS = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}
PEFT = "base_model.model."      # before each key that peft's save_pretrained writes
IN_FOLDERS = ("adapter.safetensors", "pytorch_lora_weights.safetensors",
              "pytorch_lora_weights.bin", "adapter_model.safetensors", "adapter_model.bin",
              "diffusion_pytorch_model.safetensors")        # MotionLoRA's


@dataclass
class Pair:
    """One module's update, scale * up @ down."""

    down: Tensor
    up: Tensor
    scale: float        # alpha / rank, by the file's alphas or peft's settings (peft.py); else 1


@dataclass
class LoRAFile:
    """The pairs by our own module names, of the UNet and of the text encoder."""

    unet: dict[str, Pair] = field(default_factory=dict)
    text: dict[str, Pair] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)      # sentences: what was left out or assumed
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def tensors(self) -> int:
        """How many tensors of the file apply, alphas not counted."""
        return 2 * (len(self.unet) + len(self.text))


def save_lora(unet: UNet, path: str | Path, metadata: dict | None = None,
              names: str | Iterable[str] | None = None) -> None:
    """Write the UNet's LoRAs of these names (default: all) to a safetensors file.

    Keys are dotted: `layers.2.spatial_transformers.0.block.attn1.to_q.lora_down.weight`; a
    LoRA's scale is multiplied into `lora_up`. The file's metadata says what was trained (stage ttt
    reads kind, prompt, rank and spatial_layers or temporal_layers); values that are not strings
    are written as JSON. Raises ValueError where there is nothing to save, a name that no LoRA has,
    or one module with two of these LoRAs.
    """
    tensors, there = {}, set()
    if names is not None:
        names = {names} if isinstance(names, str) else set(names)
    for target, wrapper in wrapped(uncompiled(unet)):
        there |= wrapper.loras.keys()
        held = [name for name in wrapper.loras if names is None or name in names]
        if len(held) > 1:
            raise ValueError(f"{target} holds {' and '.join(held)}: save each to a file of its own")
        for name in held:
            lora = wrapper.loras[name]
            down, up = lora.down.weight.detach(), lora.up.weight.detach() * lora.scale
            tensors[f"{target}.lora_down.weight"] = down.cpu().contiguous()
            tensors[f"{target}.lora_up.weight"] = up.cpu().contiguous()
    lost = (names or set()) - there
    if lost or not tensors:
        called = f" called {' or '.join(sorted(lost))}" if lost else ""
        raise ValueError(f"no LoRA{called} to save; the UNet has {sorted(there) or 'none'}")
    write_tensors(tensors, path, metadata)


def load_lora(unet: UNet, path: str | Path, scale: float = 1.0, name: str | None = None,
              text_encoder: TextEncoder | None = None, dropout: float = 0.0) -> LoRAFile:
    """Put a LoRA file of any known layout on the UNet, switched on, and return what was read.

    `name`: what to call it there (default: after the file; ValueError as in `add_lora`). A file
    with text-encoder tensors needs `text_encoder`. `dropout` is for training on. Nothing is ignored
    silently: what does not apply raises UserError or is in the returned file's `notes`.
    """
    unet, text_encoder = uncompiled(unet), uncompiled(text_encoder)
    file = read_lora(path, unet, text_encoder)
    parts = [(module, pairs, _free_name(module, Path(path).stem) if name is None else name)
             for module, pairs in ((unet, file.unet), (text_encoder, file.text)) if pairs]
    for module, pairs, called in parts:
        check_name(module, pairs, called)
    for module, pairs, called in parts:
        for target, pair in pairs.items():
            with torch.random.fork_rng(devices=[]):     # what it is first filled with is drawn
                lora = put_lora(module, target, called, len(pair.down), dropout,
                                scale * pair.scale)
            for part, tensor in ((lora.down, pair.down), (lora.up, pair.up)):
                part.weight.data.copy_(tensor.reshape(part.weight.shape))
    return file


def uncompiled(module: nn.Module | None) -> nn.Module | None:
    """What torch.compile was given, whose parameters have the names that files know."""
    return getattr(module, "_orig_mod", module)


def _free_name(module: nn.Module, stem: str) -> str:
    """A name for a loaded LoRA that no other LoRA has."""
    stem = "file_" + re.sub(r"\W", "_", stem)
    taken = {name for _, each in wrapped(module) for name in each.loras}
    return next(name for name in [stem, *(f"{stem}_{k}" for k in range(len(taken) + 1))]
                if name not in taken)


def find_lora(path: str | Path, flag: str, instead: str = "") -> Path:
    """The LoRA file that is meant: of a folder, the one that train.py, diffusers or peft wrote."""
    path = Path(path)
    file = next(filter(Path.is_file, map(path.joinpath, IN_FOLDERS)), path)
    if path.is_dir() and file == path and (path / "unet" / "adapter_config.json").is_file():
        raise UserError(f"{flag} {path}: the LoRA is in a folder of it; give {path / 'unet'}")
    if path.is_dir() and file == path and (path / "unet").is_dir():
        raise UserError(f"{flag} {path}: this is a model folder, not a LoRA; give it to --model")
    if path.is_dir() and file == path and next(path.glob("adapter-*.safetensors"), None):
        raise UserError(f"{flag} {path}: its training has not ended; go on with --resume, or name "
                        f"one of the files adapter-*.safetensors in it")
    if not file.is_file():
        raise UserError(f"{flag} {path}: no LoRA file there; name one, or a folder that train.py "
                        f"wrote" + (f", or {instead}" if instead else ""))
    return file


def read_lora(path: str | Path, unet: UNet, text_encoder: TextEncoder | None = None) -> LoRAFile:
    """Read a LoRA file of any known layout for these modules. Raises UserError."""
    path = Path(path)
    tensors = read_tensors(path)
    for pattern, what in REFUSED.items():
        if (found := next((key for key in tensors if re.search(pattern, key)), None)) is not None:
            raise UserError(f"{path}: {what} ({clipped(found)}), which cannot be applied here")
    targets = unet_stems(unet) | ({} if text_encoder is None else text_stems(text_encoder))
    modules, unknown = {}, []
    for key, tensor in tensors.items():
        stem, part = split_key(key)
        if stem not in targets:
            unknown.append(key)
        elif part in modules.setdefault(targets[stem], {"stem": stem}):
            raise UserError(f"{path}: holds two LoRAs for one module ({clipped(key)}); split it "
                            f"first")
        else:
            modules[targets[stem]][part] = tensor
    if not modules and not unknown:
        raise UserError(f"{path}: no tensors in it")
    file = LoRAFile(metadata=read_metadata(path))
    file.notes = _explain_unknown(path, unknown, tensors, unet, bool(modules))
    by_peft = path.stem == "adapter_model" or any(key.startswith(PEFT) for key in tensors)
    config = peft_config(path, file.metadata, by_peft, file.notes)
    for (where, target), parts in modules.items():
        module = (unet if where == "unet" else text_encoder).get_submodule(target)
        getattr(file, where)[target] = _pair(path, parts, module.weight, config)
    return file


def split_key(key: str) -> tuple[str, str]:
    """A key of any layout -> its module's stem and "down", "up" or "alpha"; ("", "") for others."""
    for ending, part in PARTS.items():
        if (found := re.fullmatch(f"(.+?){ending}", key.replace(".processor.", "."))) is not None:
            outer = r"^(base_model\.model\.|module\.|unet\.|_orig_mod\.)+"
            return re.sub(outer, "", found[1]), part
    return "", ""


def unet_stems(unet: UNet) -> dict[str, tuple[str, str]]:
    """What any layout may call a Linear or convolution of the UNet -> ("unet", our name)."""
    stems = {}
    for name in _adaptable(unet):
        diffusers = public_stem(keys.diffusers_unet, name)
        if keys.is_motion(name):
            original = public_stem(keys.original_motion, name)
            spellings = [name, diffusers, original, original.replace(".", "_")]     # A1111's
        else:
            original = public_stem(keys.original_unet, name).removeprefix("model.diffusion_model.")
            spellings = [name, diffusers, "lora_unet_" + diffusers.replace(".", "_"),
                         "lycoris_" + diffusers.replace(".", "_"), "diffusion_model." + original,
                         "lora_unet_" + original.replace(".", "_")]
        # Old diffusers and MotionLoRA leave out the 0 of to_out.0.
        spellings += [each.removesuffix(".0") for each in spellings if each.endswith(".to_out.0")]
        stems |= {spelling: ("unet", name) for spelling in spellings}
    return stems


def text_stems(text_encoder: TextEncoder) -> dict[str, tuple[str, str]]:
    """The same for the text encoder. transformers 5 calls its modules without `text_model.`."""
    stems = {}
    for name in _adaptable(text_encoder):
        public = public_stem(keys.public_text, name)
        short = public.removeprefix("text_model.")
        spellings = [public, "text_encoder." + public, "text_encoder." + short, short,
                     "lora_te_" + public.replace(".", "_"),
                     "text_encoders.clip_l.transformer." + public]      # ComfyUI's
        attention, _, projection = public.rpartition(".")
        if projection in OLD_PROJECTIONS:
            spellings.append(f"text_encoder.{attention}.{OLD_PROJECTIONS[projection]}")
        stems |= {spelling: ("text", name) for spelling in spellings}
    return stems


def _adaptable(module: nn.Module) -> list[str]:
    """Names of all Linears and convolutions, without the wrappers that LoRA has put around them."""
    names = (name for name, each in module.named_modules()
             if isinstance(each, (nn.Linear, nn.Conv2d)) and ".loras." not in name)
    return [name.removesuffix(".base") for name in names]


def public_stem(public, name: str) -> str:
    """Our name of a module -> its name in a layout of keys.py."""
    return public(name + ".weight").removesuffix(".weight")


def _pair(path: Path, parts: dict, weight: Tensor, config: dict) -> Pair:
    """Check one module's tensors against its weight, shapes before values; work out the scale."""
    stem = parts["stem"]
    if not {"down", "up"} <= parts.keys():
        raise UserError(f"{path}: {stem} lacks its down or its up tensor: the file is not whole")
    down, up = parts["down"], parts["up"]
    rank = down.shape[0] if down.ndim else 0
    if (rank == 0 or down.numel() != rank * weight[0].numel() or up.numel() != rank * len(weight)
            or up.shape[:2] != (len(weight), rank)):
        raise UserError(f"{path}: a LoRA for another model: at {stem} its shapes are "
                        f"{tuple(up.shape)} x {tuple(down.shape)}, the weight is "
                        f"{tuple(weight.shape)}; give the model that it is for to --model")
    down, up = (floating(tensor, "cpu", torch.float32, f"{stem} ({part})", path)
                for part, tensor in (("down", down), ("up", up)))
    if "alpha" not in parts:
        return Pair(down, up, peft_scale(config, stem, rank, str(path)))
    alpha = parts["alpha"]
    if alpha.numel() != 1 or alpha.is_complex() or not math.isfinite(alpha.item()):
        raise UserError(f"{path}: the alpha of {stem} is no finite number; fetch the file again")
    return Pair(down, up, alpha.item() / rank)


def _explain_unknown(path: Path, unknown: list[str], tensors: dict[str, Tensor], unet: UNet,
                     some_known: bool) -> list[str]:
    """Sentences on what may be left out by name; UserError for anything else."""
    bundled = [re.match(r"bundle_emb\.([^.]+)\.", key) for key in unknown]
    notes = [f"its embedding {name} is left out: this code uses none"
             for name in sorted({found[1] for found in bundled if found})]
    unknown = [key for key, found in zip(unknown, bundled) if not found]
    if not unknown:
        return notes
    motion = unet.config.motion
    if motion is None and all("motion_modules" in key for key in unknown):
        if some_known:
            return [*notes, f"{len(unknown)} tensors for motion modules left out: none is loaded"]
        raise UserError(f"{path}: a motion LoRA, but no motion module is loaded; give "
                        f"--motion-module")
    if some_known and all(re.match(r"mid_block[._]motion_modules[._]", split_key(key)[0])
                          for key in unknown):
        return [*notes, f"{len(unknown)} tensors for the mid layer's motion module left out: this "
                f"LoRA was made for version 2, which has one, and the model's is version "
                f"{motion.version}"]
    if all(re.match(r"lora_te_|text_encoders?\.|(text_model\.)?encoder\.", key) for key in unknown):
        raise UserError(f"{path}: {len(unknown)} tensors are for a text encoder that was not given "
                        f"or is another one ({clipped(unknown[0])}, ...)")
    kind = kind_of(tensors)
    other = kind is not None and kind[0] not in ("a LoRA", "a motion LoRA")
    what = f"this is {kind[0]}; {kind[1]}: " if other else ""
    named = ", ".join(map(clipped, unknown[:2])) + (", ..." if len(unknown) > 2 else "")
    raise UserError(f"{path}: {what}not a LoRA for this model: {len(unknown)} keys belong nowhere "
                    f"({named})")
