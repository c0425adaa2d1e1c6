"""LoRA files: ours, and the layouts that other tools write, recognised by their keys.

A file is a set of pairs: for one Linear or convolution of the UNet (or the text encoder), `down` and
`up`. Layouts differ in what they call the module (the stem) and the two tensors (the ending).
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from . import keys
from .clip import TextEncoder
from .errors import UserError, writing
from .files import read_metadata, read_tensors
from .lora import adapted, attach
from .unet import UNet

# stem, ending -> which of the two tensors (or the alpha) of the pair
ENDINGS = [
    (r"(?P<stem>.+)\.(lora_down|lora_A(\.default)?|lora\.down)\.weight", "down"),
    (r"(?P<stem>.+)\.(lora_up|lora_B(\.default)?|lora\.up)\.weight", "up"),
    (r"(?P<stem>.+)\.alpha", "alpha"),
    (r"(?P<stem>.+\.processor\.\w+)_lora\.down\.weight", "down"),
    (r"(?P<stem>.+\.processor\.\w+)_lora\.up\.weight", "up"),
]
# What these files hold instead of plain down and up, or for which other model they are made.
REFUSED = {
    r".*\.(hada_|lokr_|oft_|diff|diff_b|glora|a1\.|b1\.|on_input).*|.*\.(oft_blocks|w_norm|b_norm)":
        "a LyCORIS variant other than LoRA and LoCon",
    r".*dora_scale|.*lora_magnitude_vector.*": "DoRA",
    r".*\.lora_mid\.weight": "LoCon with a Tucker core",
    r"lora_te[12]_.*|text_encoder_2\..*|.*add_embedding.*|.*label_emb.*": "a LoRA for SDXL",
    r".*transformer_blocks[._][1-9].*": "a LoRA for SDXL",
    r".*double_blocks.*|.*single_blocks.*|.*single_transformer_blocks.*": "a LoRA for FLUX",
}


@dataclass
class Pair:
    """One module's update, scale * up @ down."""

    down: Tensor
    up: Tensor
    scale: float        # alpha / rank where the file has an alpha, else 1


@dataclass
class LoRAFile:
    """The pairs by our own module names, of the UNet and of the text encoder."""

    unet: dict[str, Pair] = field(default_factory=dict)
    text: dict[str, Pair] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)       # sentences: what and why
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def tensors(self) -> int:
        return 2 * (len(self.unet) + len(self.text))


def save_lora(unet: UNet, path: str | Path, metadata: dict | None = None,
              names: tuple[str, ...] = ("spatial", "temporal")) -> None:
    """Write the adapters of these names to a safetensors file.

    Keys are dotted: `layers.2.spatial_transformers.0.block.attn1.to_q.lora_down.weight`; an adapter's
    scale is multiplied into `lora_up`. The file's metadata says what was trained; values that are
    not strings are written as JSON.
    """
    tensors = {}
    for module_name, module in adapted(unet):
        for name in names:
            if name in module.adapters:
                adapter = module.adapters[name]
                down, up = adapter.down.weight.detach(), adapter.up.weight.detach() * adapter.scale
                tensors[f"{module_name}.lora_down.weight"] = down.cpu().contiguous()
                tensors[f"{module_name}.lora_up.weight"] = up.cpu().contiguous()
    if not tensors:
        raise ValueError(f"no adapter called {' or '.join(names)} to save: add_lora comes first")
    text = {key: value if isinstance(value, str) else json.dumps(value)
            for key, value in (metadata or {}).items()}
    with writing(path) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"} | text)


def load_lora(unet: UNet, path: str | Path, scale: float = 1.0, name: str | None = None,
              text_encoder: TextEncoder | None = None, dropout: float = 0.0) -> LoRAFile:
    """Put a LoRA file of any known layout on the UNet, switched on, and return what was read.

    `name`: what to call its adapter (default: the file's name). A file with text-encoder tensors
    needs `text_encoder`. `dropout` is for training on. Raises UserError where a part would not apply; nothing is ignored silently.
    """
    file = read_lora(path, unet, text_encoder)
    for module, pairs in ((unet, file.unet), (text_encoder, file.text)):
        called = name or _free_name(module, Path(path).stem) if pairs else None
        for target, pair in pairs.items():
            adapter = attach(module, target, called, len(pair.down), dropout, scale * pair.scale)
            for part, tensor in ((adapter.down, pair.down), (adapter.up, pair.up)):
                part.weight.data.copy_(tensor.reshape(part.weight.shape))
    return file


def _free_name(module: nn.Module, stem: str) -> str:
    """A name for a loaded adapter that no other adapter has."""
    stem = re.sub(r"\W", "_", stem)
    taken = {name for _, each in adapted(module) for name in each.adapters}
    return next(name for name in [stem, *(f"{stem}_{k}" for k in range(len(taken) + 1))]
                if name not in taken)


def read_lora(path: str | Path, unet: UNet, text_encoder: TextEncoder | None = None) -> LoRAFile:
    """Read a LoRA file of any known layout for these modules. Raises UserError."""
    path = Path(path)
    tensors = read_tensors(path)
    for pattern, what in REFUSED.items():
        if (found := next((key for key in tensors if re.fullmatch(pattern, key)), None)) is not None:
            raise UserError(f"{path}: {what} ({found}), which cannot be applied here")
    stems = unet_stems(unet) | ({} if text_encoder is None else text_stems(text_encoder))
    parts, unknown = {}, []
    for key, tensor in tensors.items():
        stem, part = split_key(key)
        if stem in stems:
            parts.setdefault(stems[stem], {})[part] = tensor
        else:
            unknown.append(key)
    file = LoRAFile(metadata=read_metadata(path) if path.suffix == ".safetensors" else {})
    file.left_out = _explain_unknown(path, unknown, bool(parts), unet)
    for (where, target), pair in parts.items():
        base = _module(unet if where == "unet" else text_encoder, target)
        getattr(file, where)[target] = _pair(path, target, pair, base.weight, file.metadata)
    return file


def split_key(key: str) -> tuple[str, str]:
    """A key -> (stem, "down", "up" or "alpha"); ("", "") if it is none of a LoRA's.

    `processor.` (old diffusers, MotionLoRA) is taken out, and `to_out` gets the `.0` of its Linear.
    """
    for pattern, part in ENDINGS:
        if (found := re.fullmatch(pattern, key)) is not None:
            stem = found["stem"].removeprefix("base_model.model.").removeprefix("module.")
            stem = stem.removeprefix("unet.")
            if ".processor." in stem:
                stem = re.sub(r"\.to_out$", ".to_out.0", stem.replace(".processor.", "."))
            return stem, part
    return "", ""


def unet_stems(unet: UNet) -> dict[str, tuple[str, str]]:
    """What any layout may call a Linear or convolution of the UNet -> ("unet", our name)."""
    stems = {}
    for name in _adaptable(unet):
        diffusers = _stem(keys.diffusers_unet, name)
        spellings = [_stem(str, name), diffusers]
        if keys.is_motion(name):
            spellings.append(_stem(keys.original_motion, name))
        else:
            original = _stem(keys.original_unet, name).removeprefix("model.diffusion_model.")
            spellings += ["lora_unet_" + diffusers.replace(".", "_"),
                          "lora_unet_" + original.replace(".", "_")]
        stems |= {spelling: ("unet", name) for spelling in spellings}
    return stems


def text_stems(text_encoder: TextEncoder) -> dict[str, tuple[str, str]]:
    """The same for the text encoder."""
    stems = {}
    for name in _adaptable(text_encoder):
        public = _stem(keys.public_text, name)
        stems |= {"text_encoder." + public: ("text", name),
                  "lora_te_" + public.replace(".", "_"): ("text", name)}
    return stems


def _adaptable(module: nn.Module) -> list[str]:
    """Names of all Linears and convolutions, without the wrappers that LoRA has put around them."""
    names = (name for name, each in module.named_modules()
             if isinstance(each, (nn.Linear, nn.Conv2d)) and ".adapters." not in name)
    return [name.removesuffix(".base") for name in names]


def _stem(public, name: str) -> str:
    return public(name + ".weight").removesuffix(".weight")


def _module(root: nn.Module, name: str) -> nn.Module:
    module = root.get_submodule(name)
    return getattr(module, "base", module)


def _pair(path: Path, target: str, parts: dict[str, Tensor], weight: Tensor,
          metadata: dict[str, str]) -> Pair:
    """Check one module's tensors against its weight; work out the scale."""
    if not {"down", "up"} <= parts.keys():
        raise UserError(f"{path}: {target} has only {', '.join(sorted(parts))}; it needs down and up: "
                        f"the file is not whole")
    down, up = parts["down"].float(), parts["up"].float()
    rank = len(down)
    if down.numel() != rank * weight[0].numel() or up.numel() != rank * len(weight):
        raise UserError(f"{path}: a LoRA for another model: at {target} its shapes are "
                        f"{tuple(up.shape)} x {tuple(down.shape)}, the weight is "
                        f"{tuple(weight.shape)}")
    scale = 1.0
    if "alpha" in parts:
        scale = parts["alpha"].item() / rank
    elif "lora_adapter_metadata" in metadata:       # what diffusers writes beside peft's tensors
        peft = json.loads(metadata["lora_adapter_metadata"])
        alpha, r = peft.get("unet.lora_alpha"), peft.get("unet.r")
        scale = alpha / r if alpha and r else 1.0
    return Pair(down, up, scale)


def _explain_unknown(path: Path, unknown: list[str], some_known: bool, unet: UNet) -> list[str]:
    """Sentences on what may be left out by name; UserError for anything else."""
    if not unknown:
        return []
    if all("mid_block.motion_modules." in key for key in unknown) and some_known:
        return [f"{len(unknown)} tensors for the mid layer's motion module left out: only version 2 "
                f"has one, this model's is version {unet.config.motion.version}"]
    if unet.config.motion is None and all("motion_modules" in key for key in unknown):
        raise UserError(f"{path}: a motion LoRA, but no motion module is loaded; give "
                        f"--motion-module")
    if all(re.match(r"lora_te_|text_encoder\.", key) for key in unknown):
        raise UserError(f"{path}: {len(unknown)} tensors are for a text encoder that was not given "
                        f"or is another one ({unknown[0]}, ...)")
    raise UserError(f"{path}: not a LoRA for this model: {len(unknown)} keys belong nowhere "
                    f"({', '.join(unknown[:3])}, ...)")
