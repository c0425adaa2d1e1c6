"""Whole files for the fuzzer to spoil, one of each kind that is read, and who reads them."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import av
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from customttt.draws import Draws
from customttt.files import keys
from customttt.files.export import TARGETS, export, read_pairs
from customttt.files.load import load_model
from customttt.files.lora_files import load_lora, save_lora
from customttt.files.random_model import random_model
from customttt.files.save import position_tables, save_model
from customttt.lion import Lion
from customttt.lora import add_lora, merge_lora
from customttt.media.clips import write_frames
from customttt.media.find import caption_beside
from customttt.media.images import read_image
from customttt.media.videos import read_video
from customttt.model.clip import TextEncoder
from customttt.model.config import TextConfig, UNetConfig, VAEConfig
from customttt.model.unet import UNet
from customttt.model.vae import VAE
from customttt.run import checkpoint, data, loop

CASES = Path(__file__).resolve().parents[1] / "cases"
IMAGES = ("png", "jpg", "webp", "gif", "tif", "bmp", "avif", "tga", "jp2", "ppm", "ico",
          "icns", "qoi", "pcx", "sgi")
CODECS = {"mp4": ("libx264", "yuv420p"), "webm": ("libvpx-vp9", "yuv420p"),
          "avi": ("mpeg4", "yuv420p"), "mkv": ("ffv1", "bgra"), "mov": ("png", "rgba"),
          "mpg": ("mpeg2video", "yuv420p"), "ts": ("libx264", "yuv420p10le")}


@dataclass(frozen=True)
class Seed:
    """A file that is whole, the folder that it is read with, and how it is read."""

    path: Path              # of the file to be spoilt
    given: Path             # what the reader is given: the file, or a folder above it
    read: Callable[[Path], object]
    weight: float = 1.0     # how often it is drawn


@cache
def small_model():
    """The nine layers at widths of 8 and 16: a few hundred kB."""
    model = random_model()
    motion = replace(model.unet.config.motion, heads=8)
    torch.manual_seed(0)
    text = TextConfig(len(model.tokenizer.vocabulary), 16, 1, 2, 16, 77)
    model.text_encoder = TextEncoder(text).eval()
    model.vae = VAE(VAEConfig((8, 8, 8, 8), 1, 4, 4, 0.18215)).eval()
    model.unet = UNet(UNetConfig((8, 8, 16, 16), 4, 16, 2, 4, motion)).eval()
    return model


def use_small_sd15() -> None:
    """Single files are Stable Diffusion 1.5: here that is the small model."""
    from customttt.files import load
    model = small_model()
    load.SD15_UNET, load.SD15_VAE = model.unet.config, model.vae.config
    load.SD15_TEXT = model.text_encoder.config


@torch.no_grad()
def use(model) -> None:
    """What is loaded must also draw."""
    text = model.encode_text(["a bear"])
    motion = model.unet.config.motion is not None
    model.unet(torch.zeros(1, 4, 1, 8, 8), torch.tensor([5]), text, motion=motion)
    model.vae.decode(torch.zeros(1, 4, 4, 4))


def use_model(path: Path) -> None:
    use(load_model(path))


def use_motion(path: Path) -> None:
    load_model(path.parent / "whole", path)


def use_vae(path: Path) -> None:
    load_model(path.parent / "whole", vae=path)


def use_lora(path: Path) -> None:
    model = small_model()
    names = [n for n, _ in model.unet.named_modules()]
    try:
        load_lora(model.unet, path, text_encoder=model.text_encoder)
        merge_lora(model.unet)
        merge_lora(model.text_encoder)
    finally:
        if [n for n, _ in model.unet.named_modules()] != names:
            small_model.cache_clear()
    if path.suffix == ".safetensors" and next(iter(load_file(path)), "").startswith("layers."):
        read_pairs(path)


def use_run(folder: Path) -> None:
    """What --resume and --stage ttt read of a run's folder."""
    run = a_run(folder)
    checkpoint.check_folder(folder, "spatial", resume=True)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    checkpoint.State(run, scaler, Draws(0), torch.device("cpu")).load()
    data.kept_row(folder / "adapter.safetensors")


def a_run(folder: Path) -> loop.Run:
    unet = UNet(small_model().unet.config)
    add_lora(unet, "spatial", (2,), rank=2)
    parameters = {n: p for n, p in unet.named_parameters() if ".loras." in n}
    optimizer = Lion(parameters.values(), 1e-4)
    return loop.Run(folder, unet, parameters, optimizer, None,
                    lambda path, told: save_lora(unet, path, told), None,
                    {"steps": 4, "learning_rate": 1e-4, "betas": (0.9, 0.99)},
                    {"kind": "spatial"}, "fp32", 0, "none", 1, 0)


def make(folder: Path) -> list[Seed]:
    """Write them all below the folder."""
    torch.manual_seed(0)
    return [*_images(folder), *_videos(folder), *_models(folder), *_loras(folder), *_runs(folder)]


def _images(folder: Path) -> list[Seed]:
    image = Image.effect_noise((48, 40), 80).convert("RGB")
    icc = Image.open(CASES / "adobergb.jpg").info["icc_profile"]
    seeds = []
    for ending in IMAGES:
        path = folder / "images" / f"a.{ending}"
        path.parent.mkdir(exist_ok=True)
        image.save(path, **({"icc_profile": icc} if ending in ("png", "jpg", "tif") else {}))
        seeds.append(Seed(path, path, lambda p: read_image(p, 32)))
    exif = Image.Exif()
    exif[274], exif[306] = 6, "2026:01:01 00:00:00"
    for name, each, options in (("grey.png", image.convert("I;16"), {}),
                                ("palette.png", image.quantize(16), {"transparency": 3}),
                                ("turned.jpg", image, {"exif": exif}),
                                ("float.tif", image.convert("F"), {})):
        each.save(folder / "images" / name, **options)
        seeds.append(Seed(folder / "images" / name, folder / "images" / name,
                          lambda p: read_image(p, 32)))
    (folder / "images" / "bear.txt").write_text("a bear on the grass, 雪")
    return [*seeds, Seed(folder / "images" / "bear.txt", folder / "images" / "bear.txt",
                         lambda p: caption_beside(p.with_suffix(".png")))]


def _videos(folder: Path) -> list[Seed]:
    clip = torch.randint(255, (6, 32, 48, 3), dtype=torch.uint8)
    place, paths = folder / "videos", []
    place.mkdir()
    for ending, (codec, form) in CODECS.items():
        paths.append(place / f"a.{ending}")
        with av.open(str(paths[-1]), "w") as container:
            stream = container.add_stream(codec, rate=12)
            stream.width, stream.height, stream.pix_fmt = 48, 32, form
            for frame in clip:
                picture = av.VideoFrame(48, 32, "rgb24")
                for k, plane in enumerate(picture.planes):
                    rows = frame.new_zeros(32, plane.line_size)
                    rows[:, :144] = frame.view(32, 144)
                    plane.update(bytes(rows.flatten().tolist()))
                container.mux(stream.encode(picture.reformat(format=form)))
            container.mux(stream.encode())
    for ending in ("gif", "webp", "mp4"):
        paths.append(place / f"ours.{ending}")
        write_frames(clip, paths[-1], 12)
    pictures = [Image.frombytes("RGB", (48, 32), bytes(frame.flatten().tolist())) for frame in clip]
    for ending in ("png", "avif"):
        paths.append(place / f"moving.{ending}")
        pictures[0].save(paths[-1], save_all=True, append_images=pictures[1:], duration=83)
    for path in CASES.iterdir():
        if path.suffix in (".mp4", ".mov", ".webm", ".webp") and path.stem != "hdr_hlg":
            paths.append(Path(shutil.copy(path, place)))
    return [Seed(path, path, lambda p: read_video(p, 4, 8, 32)) for path in paths]


def _models(folder: Path) -> list[Seed]:
    model, whole = small_model(), folder / "models" / "whole"
    save_model(model, whole, torch.float32)
    seeds = [Seed(path, whole, use_model, 3 if path.suffix == ".json" else 2)
             for path in sorted(whole.rglob("*")) if path.is_file()]
    single = {keys.original_unet(n): p for n, p in model.unet.named_parameters()
              if not keys.is_motion(n)}
    single |= {keys.original_vae(n): p for n, p in model.vae.named_parameters()}
    single |= {keys.original_text(n): p for n, p in model.text_encoder.named_parameters()}
    motion = {keys.original_motion(n): p for n, p in model.unet.named_parameters()
              if keys.is_motion(n)}
    inner = ".temporal_transformer.transformer_blocks"
    tables = {key.replace(".transformer_blocks", inner).replace(
        "pos_embed", f"attention_blocks.{k}.pos_encoder"): value.clone()
        for key, value in position_tables(model.unet).items() for k in (0, 1)}
    shutil.copytree(whole / "tokenizer", folder / "models" / "tokenizer")
    for name, tensors, read in (("sd", single, use_model), ("mm", motion | tables, use_motion),
                                ("mm_bare", motion, use_motion)):
        for ending in (".safetensors", ".ckpt"):
            path = save(tensors, folder / "models" / f"{name}{ending}")
            seeds.append(Seed(path, path, read, 4))
    vae = save({keys.diffusers_vae(n): p for n, p in model.vae.named_parameters()},
               folder / "models" / "vae.safetensors")
    adapter = shutil.copytree(whole / "motion_adapter", folder / "models" / "adapter")
    return [*seeds, Seed(vae, vae, use_vae, 2),
            Seed(adapter / "config.json", adapter, use_motion, 4)]


def save(tensors: dict, path: Path) -> Path:
    tensors = {key: value.detach().clone().contiguous() for key, value in tensors.items()}
    if path.suffix == ".safetensors":
        save_file(tensors, path, {"format": "pt", "modelspec.title": "a"})
    else:
        torch.save({"epoch": 1, "state_dict": tensors}, path)
    return path


def _loras(folder: Path) -> list[Seed]:
    unet, place = UNet(small_model().unet.config), folder / "loras"
    for kind, layers in (("spatial", (2, 6)), ("temporal", (2, 5))):
        add_lora(unet, kind, layers, rank=2)
    save_lora(unet, place / "ours.safetensors", {"kind": "joined", "prompt": "a bear", "rank": 2})
    save_lora(unet, place / "spatial.safetensors", {"kind": "spatial"}, names=("spatial",))
    paths = [place / "ours.safetensors"]
    for target in TARGETS:
        name = "spatial.safetensors" if target == "kohya" else "ours.safetensors"
        paths += export(place / name, target)
    peft = place / "peft"
    peft.mkdir()
    tensors = load_file(next(p for p in paths if ".diffusers" in p.name))
    save_file({"base_model.model." + key.removeprefix("unet."): value
               for key, value in tensors.items()}, peft / "adapter_model.safetensors")
    (peft / "adapter_config.json").write_text(json.dumps({
        "peft_type": "LORA", "r": 2, "lora_alpha": 4, "use_rslora": False,
        "target_modules": ["to_q"], "alpha_pattern": {"to_k": 8}, "rank_pattern": {}}))
    return [*(Seed(path, path, use_lora, 3) for path in paths),
            *(Seed(path, peft, lambda p: use_lora(p / "adapter_model.safetensors"), 4)
              for path in peft.iterdir())]


def _runs(folder: Path) -> list[Seed]:
    place = folder / "run"
    run = a_run(place)
    checkpoint.start_afresh(place)
    (place / "log.jsonl").write_text('{"step": 1, "loss": 1.0}\n' * 2)
    sum(p.sum() for p in run.parameters.values()).backward()
    run.optimizer.step()
    state = checkpoint.State(run, torch.amp.GradScaler("cpu", enabled=False), Draws(0),
                             torch.device("cpu"))
    state.step = 2
    state.save()
    write_frames(torch.randint(255, (2, 32, 32, 3), dtype=torch.uint8), place / "data.png")
    return [Seed(place / name, place, use_run, weight) for name, weight in
            (("checkpoint.pt", 12), ("log.jsonl", 1), ("data.png", 2))]
