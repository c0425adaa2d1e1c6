"""Loading whole models: a folder, a single-file checkpoint, a motion module, a VAE of its own."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..model.clip import TextEncoder
from ..model.config import ANIMATEDIFF_V3, SD15_TEXT, SD15_UNET, SD15_VAE, MotionConfig
from ..model.model import Model
from ..model.motion import positional_encoding
from ..model.unet import UNet
from ..model.vae import VAE
from . import keys
from .checks import whole
from .configs import (MOST_FRAMES, MOST_PARTS, MOST_WIDE, MOTION_FIXED, check_fixed,
                      check_schedule, motion_config, text_config, unet_config, vae_config)
from .diagnose import refuse_other, refuse_unlike
from .reading import Stored, fill, floating, listed, read_json, read_weights
from .tokenizers import read_tokenizer

WEIGHTS = "diffusion_pytorch_model.safetensors"     # of unet/, vae/ and motion_adapter/


def load_model(path: str | Path, motion_module: str | Path | None = None,
               device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32,
               vae: str | Path | None = None, motion_version: int | None = None,
               motion: bool = True) -> Model:
    """Load a model folder (Hugging Face layout) or a single-file checkpoint (original layout).

    `motion_module`: a motion file or folder; without it the motion modules in the model folder are
    taken (`motion_adapter/`, or inside `unet/` in a folder of AnimateDiffPipeline), and where there
    are none the UNet is an image model. `motion_version`: 1, 2 or 3, where the motion file does not
    tell. `vae`: a VAE file or folder in place of the model's own. `motion=False` leaves the motion
    modules out of memory: an image model. Parts are built on "meta" and filled from memory-mapped
    files, so peak memory is about the weights. A checkpoint file holds no tokenizer: the folder
    `tokenizer/` beside it is read. Raises UserError.
    """
    path = Path(path)
    if motion_module is None:
        motion_module = _own_motion(path)
        if motion_module is None and motion_version is not None and path.exists():
            raise UserError(f"--motion-version {motion_version}: {path} has no motion module; give "
                            f"one with --motion-module, or leave --motion-version out")
    elif not Path(motion_module).exists():
        raise UserError(f"{motion_module}: no such file or folder")
    modules = (None if motion_module is None else
               read_motion_module(motion_module, motion_version))
    if not motion:
        modules = None      # read all the same: a wrong file is refused early
    if path.is_dir():
        text_part, vae_part, unet_part = _folder_parts(path, modules)
    elif path.is_file():
        text_part, vae_part, unet_part = _checkpoint_parts(path, modules, needs_vae=vae is None)
    else:
        raise UserError(f"{path}: no such model folder or checkpoint file")
    if vae is not None:
        vae_part = _other_vae(Path(vae), vae_part.module)
    _check_together(path, text_part.module, vae_part.module, unet_part.module, modules)

    for part in (text_part, vae_part, unet_part):
        fill(part.module, part.tensors, part.public, part.file, device, dtype, keys.is_image)
        part.module.eval()
    if modules is not None:
        fill(unet_part.module, modules.tensors, modules.public, modules.file, device, dtype,
             keys.is_motion)
    config = text_part.module.config
    tokenizer = read_tokenizer(_tokenizer_folder(path), config.length, config.vocabulary)
    return Model(path.stem if path.is_file() else path.resolve().name, tokenizer,
                 text_part.module, vae_part.module, unet_part.module, torch.device(device), dtype)


@dataclass
class Part:
    """One module of a model, built on "meta", and what fills it."""

    module: nn.Module
    tensors: dict[str, Tensor | Stored]
    public: Callable[[str], str]        # our name of a parameter -> its name in the file
    file: str


@dataclass
class MotionFile:
    """The motion modules of a file: their architecture, and what fills them once they are built."""

    config: MotionConfig
    tensors: dict[str, Tensor | Stored]
    public: Callable[[str], str]        # as in Part
    file: str
    groups: int | None      # of its norms, where a config.json says so: they must be the UNet's


def read_motion_module(path: str | Path, version: int | None = None) -> MotionFile:
    """Read a motion module, in AnimateDiff's own layout or in diffusers'; v1, v2 or v3.

    A mid block means version 2, other positions than for 24 frames version 3. A file that has
    neither is version 1, as AnimateDiff's train.py writes it, unless `version` says otherwise; with
    a mid block alone it is made for 32 frames (AnimateLCM). Training checkpoints are taken too:
    `module.` is stripped and the image UNet in them ignored. Raises UserError.
    """
    path, heads, length, groups = Path(path), ANIMATEDIFF_V3.heads, None, None
    if path.is_dir():
        path = _part_folder(path, _own_motion(path), "motion module")
    if (config_file := _config_of(path)) is not None:
        config, file = read_json(config_file), str(config_file)
        check_fixed(config, MOTION_FIXED, file)
        heads = whole(config, "motion_num_attention_heads", file, MOST_PARTS, default=heads)
        if config.get("motion_max_seq_length") is not None:
            length = whole(config, "motion_max_seq_length", file, MOST_FRAMES)
        if config.get("motion_norm_num_groups") is not None:
            groups = whole(config, "motion_norm_num_groups", file, MOST_PARTS)
    if path.is_dir():
        path = _weight_file(path, WEIGHTS)
    every = {key.removeprefix("module."): value for key, value in read_weights(path).items()}
    conv_in = every.get("conv_in.weight")
    if (conv_in is not None and (*conv_in.shape, 0, 0)[1] != SD15_UNET.latent_channels
            or any(key.startswith("img_encoder.") for key in every)):
        raise UserError(f"{path}: a motion module that is shown an image too (PIA's, for one), "
                        f"which is not built here; give one that AnimateDiff published")
    tensors = {key: value for key, value in every.items() if keys.is_motion(key)}
    if not tensors or any("lora" in key for key in tensors):
        refuse_other(path, every, "no motion module in it")
        raise UserError(f"{path}: no motion module in it (no key contains motion_modules)")
    original = any(".temporal_transformer." in key for key in tensors)
    length = _positions(path, tensors) or length
    known = motion_config(path, any(key.startswith("mid_block.") for key in tensors), length,
                          version)
    return MotionFile(MotionConfig(known.version, length or known.max_frames, heads), tensors,
                      keys.original_motion if original else keys.diffusers_unet, str(path), groups)


def _positions(path: Path, tensors: dict[str, Tensor | Stored]) -> int | None:
    """How many frames the tables of positions are for, if any. UserError if not sinusoids."""
    lengths = set()
    for key, table in tensors.items():
        if not key.endswith(".pe"):
            continue
        if len(table.shape) != 3 or not (table.shape[0] == 1 and 0 < table.shape[1] <= MOST_FRAMES
                                         and 0 < table.shape[2] <= MOST_WIDE):
            raise UserError(f"{path}: {key} has the shape {tuple(table.shape)}, and is no table of "
                            f"positions; fetch the file again")
        lengths.add(table.shape[1])
        if isinstance(table, Tensor) and table.is_meta:     # of a test: shapes alone
            continue
        stored = floating(table, "cpu", torch.float32, key, path)
        right = positional_encoding(stored.shape[1], stored.shape[2])
        if right.shape != stored.shape[1:] or (stored[0] - right).abs().max() > 0.02:
            raise UserError(f"{path}: its table of positions ({key}) is not the sinusoid that is "
                            f"computed here; give another motion module")
    if len(lengths) > 1:
        raise UserError(f"{path}: its tables of positions are for {sorted(lengths)} frames, and "
                        f"should be of one length; fetch the file again")
    return max(lengths, default=None)


def _config_of(path: Path) -> Path | None:
    """The config.json of a part: in its folder, or beside diffusers' file taken from there."""
    if path.is_dir():
        return path / "config.json"
    beside = path.with_name("config.json")
    return beside if path.name.startswith(Path(WEIGHTS).stem) and beside.is_file() else None


def _part_folder(path: Path, inner: Path | None, what: str) -> Path:
    """The folder of a part: `path`, or in a model folder the one inside. Raises UserError."""
    for folder in filter(None, (path, inner)):
        if (folder / "config.json").is_file():
            return folder
    raise UserError(f"{path}: no config.json in it, so no folder of a {what}; name the file in it")


def _own_motion(path: Path) -> Path | None:
    """Where a model folder has motion modules of its own."""
    unet = path / "unet" / "config.json"
    if unet.is_file() and read_json(unet).get("_class_name") == "UNetMotionModel":
        return path / "unet"
    return path / "motion_adapter" if (path / "motion_adapter").is_dir() else None


def _check_together(path: Path, text: TextEncoder, vae: VAE, unet: UNet,
                    motion: MotionFile | None) -> None:
    """Raise UserError for parts of different models."""
    if motion is not None and motion.groups not in (None, unet.config.groups):
        raise UserError(f"{motion.file}: its norms have {motion.groups} groups, those of {path} "
                        f"{unet.config.groups}: parts of two models; give another motion module")
    if text.config.width != unet.config.text_width:
        raise UserError(f"{path}: its UNet reads text of width {unet.config.text_width}, its text "
                        f"encoder writes {text.config.width}: parts of two models; fetch it again")
    if vae.config.latent_channels != unet.config.latent_channels:
        raise UserError(f"{path}: its UNet has {unet.config.latent_channels} latent channels, its "
                        f"VAE {vae.config.latent_channels}: parts of two models; fetch it again")


def _folder_parts(path: Path, motion: MotionFile | None) -> tuple[Part, Part, Part]:
    """Text encoder, VAE and UNet of a model folder."""
    configs = {part: path / part / "config.json" for part in ("text_encoder", "vae", "unet")}
    if (schedule := path / "scheduler" / "scheduler_config.json").is_file():
        check_schedule(read_json(schedule), str(schedule))
    for part, file in configs.items():
        if not file.is_file():
            lora = next(path.glob("*lora*.safetensors"), None)
            if lora is not None:
                raise UserError(f"{path}: this is a LoRA ({lora.name}), not a model folder; give "
                                f"it to --lora")
            raise UserError(f"{path}: no {part}/config.json in it; a model folder has tokenizer/, "
                            f"text_encoder/, vae/ and unet/, as on Hugging Face")
    with torch.device("meta"):
        unet = UNet(unet_config(read_json(configs["unet"]), motion and motion.config,
                                str(configs["unet"])))
        text_encoder = TextEncoder(text_config(read_json(configs["text_encoder"]),
                                               str(configs["text_encoder"])))
        vae = VAE(vae_config(read_json(configs["vae"]), str(configs["vae"])))
    text_file = _weight_file(path / "text_encoder", "model.safetensors")
    vae_file, unet_file = (_weight_file(path / part, WEIGHTS) for part in ("vae", "unet"))
    text = {keys.full_text_key(key): value for key, value in read_weights(text_file).items()}
    image = {k: v for k, v in read_weights(unet_file).items() if keys.is_image(k)}
    return (Part(text_encoder, text, keys.public_text, str(text_file)),
            Part(vae, _modern(read_weights(vae_file)), keys.diffusers_vae, str(vae_file)),
            Part(unet, image, keys.diffusers_unet, str(unet_file)))


def _modern(tensors: dict[str, Tensor | Stored]) -> dict[str, Tensor | Stored]:
    """A VAE's tensors in diffusers' layout, its attention under the present names."""
    return {keys.modern_vae_key(key): value for key, value in tensors.items()}


def _weight_file(folder: Path, name: str) -> Path:
    """The weights in a part's folder: safetensors, fp32 before fp16; then pickle."""
    stem = name.removesuffix(".safetensors")
    pickled = {"model": "pytorch_model.bin"}.get(stem, f"{stem}.bin")
    for candidate in (name, f"{stem}.fp16.safetensors", pickled, f"{pickled[:-4]}.fp16.bin"):
        if (folder / candidate).is_file():
            return folder / candidate
    if next(folder.glob("*.index*.json"), None):
        raise UserError(f"{folder}: its weights are in several files, which are not read here; "
                        f"save them as one {name}")
    raise UserError(f"{folder}: no weights here; put {name} there")


def _checkpoint_parts(path: Path, motion: MotionFile | None,
                      needs_vae: bool) -> tuple[Part, Part, Part]:
    """Text encoder, VAE and UNet of a single-file checkpoint of Stable Diffusion 1.5."""
    tensors = read_weights(path)
    first = next(iter(tensors.values()), None)
    refuse_unlike(path, tensors, first.file.metadata() if isinstance(first, Stored) else {})
    tensors = {keys.full_text_key(key): value for key, value in tensors.items()}
    image = {k: v for k, v in tensors.items() if k.startswith("model.diffusion_model.")}
    vae_tensors = {k: v for k, v in tensors.items() if k.startswith("first_stage_model.")}
    if not vae_tensors and needs_vae:
        raise UserError(f"{path}: no VAE in it; give one to --vae (of Stable Diffusion 1.5)")
    text = {k: v for k, v in tensors.items() if k.startswith("cond_stage_model.")}
    others = [k for k in tensors.keys() - image.keys() - vae_tensors.keys() - text.keys()
              if not keys.is_dropped(k)]
    if others:
        left_out = listed("tensors left out, which no part of the model has", sorted(others))
        warnings.warn(f"{path}: {left_out}", stacklevel=2)
    if not text:
        raise UserError(f"{path}: no text encoder in it; fetch the whole checkpoint, or give a "
                        f"model folder to --model")
    with torch.device("meta"):
        unet = UNet(replace(SD15_UNET, motion=motion and motion.config))
        return (Part(TextEncoder(SD15_TEXT), text, keys.original_text, str(path)),
                Part(VAE(SD15_VAE), vae_tensors, keys.original_vae, str(path)),
                Part(unet, image, keys.original_unet, str(path)))


def _other_vae(path: Path, own: VAE) -> Part:
    """A VAE from elsewhere, in the place of the model's `own`.

    A folder, or a file in diffusers' layout or in the original one, where the names may begin with
    `first_stage_model.` and what else the file holds is left aside (a whole checkpoint will do).
    """
    config = own.config
    if path.is_dir():
        path = _part_folder(path, path / "vae", "VAE")
    if (config_file := _config_of(path)) is not None:
        config = vae_config(read_json(config_file), str(config_file))
    file = _weight_file(path, WEIGHTS) if path.is_dir() else path
    if (config.scale, config.latent_channels) != (own.config.scale, own.config.latent_channels):
        raise UserError(f"{path}: a VAE for other latents ({config.latent_channels} channels, "
                        f"scale {config.scale}) than the model's ({own.config.latent_channels}, "
                        f"{own.config.scale})")
    tensors, prefix, public = read_weights(file), "first_stage_model.", keys.original_vae
    if any(key.startswith("encoder.down_blocks.") for key in tensors):
        tensors, public = _modern(tensors), keys.diffusers_vae
    elif any(key.startswith(prefix) for key in tensors):
        tensors = {k: v for k, v in tensors.items() if k.startswith(prefix)}
    elif any(key.startswith("encoder.down.") for key in tensors):
        tensors = {prefix + k: v for k, v in tensors.items() if not keys.is_dropped(k)}
    else:
        refuse_other(file, tensors, "no VAE in it", accepted="a VAE")
        raise UserError(f"{file}: no VAE in it (no key begins with encoder.down)")
    with torch.device("meta"):
        return Part(VAE(config), tensors, public, str(file))


def _tokenizer_folder(path: Path) -> Path:
    if path.is_dir():
        return path / "tokenizer"
    folder = path.parent / "tokenizer"
    if not folder.is_dir():
        raise UserError(f"{path}: a checkpoint file holds no tokenizer; put vocab.json and "
                        f"merges.txt of Stable Diffusion 1.5 into {folder}")
    return folder
