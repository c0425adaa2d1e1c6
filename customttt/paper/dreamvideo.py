"""DreamVideo (Wei et al. 2023), as VGen's code has it, on this base model: a learned word, an
identity adapter, a motion adapter.

  dreamvideo-word        textual inversion: "a *", the vector of * is trained
  dreamvideo-identity    adapters beside the cross-attentions; images, the word frozen
  dreamvideo-motion      adapters beside both attentions and the feed-forward of each motion module;
                         a video; conditioned on the CLIP embedding of a random frame

Trainable parameters at Stable Diffusion 1.5's size, with AnimateDiff v3 and CLIP ViT-B/32: 768 +
12,409,120 + 83,997,600. The paper prints 85M. On its own base, ModelScope's model with CLIP
ViT-H/14, VGen's code makes 1,024 + 12,409,120 + 77,966,496: motion modules are narrower there, the
condition is wider. Left out here: VGen's offset noise, masks of the subject and ten steps of
warm-up, which no other system here has. Its optimizer is AdamW, as there.
Axes: n images or clips, f frames, h w latent rows and columns, d width.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from .. import recipes
from ..diffusion import add_noise
from ..draws import Draws
from ..errors import UserError
from ..files.lora_files import find_lora
from ..files.reading import read_tensors, write_tensors
from ..losses import noise_loss, spatial_loss
from ..media.clips import to_images
from ..model.clip import TextEncoder
from ..model.model import Model
from ..model.unet import UNet
from ..recipes import Recipe, Setting
from ..run.data import (OUTPUT, add_data_flags, check_lora_apart, fingerprint, read_clips,
                        read_images)
from ..run.options import require_motion
from ..run.stage import Job, Stage
from ..sampling import decode_frames, sample_video
from ..stages import Backward, spatial_step
from .adapters import LearnedWord, adapter_parameters, appearance, put_identity, put_motion
from .clip import clip_fingerprint, load_clip

WORD = "*"      # the placeholder, in prompts
OF_LORA = {"spatial_layers", "temporal_layers", "rank", "dropout", "debiased"}  # no such settings


# ---------------------------------------------------------------------------------- the word

def put_word(model: Model, vector: Tensor | None = None, start: str = "") -> LearnedWord:
    """Let WORD mean this vector in the text encoder; to begin with, the first token of `start`."""
    encoder, ids = model.text_encoder, model.tokenizer.encode(WORD)
    if vector is None:
        vector = encoder.token_embedding.weight[model.tokenizer.encode(start)[0]]
    encoder.token_embedding = LearnedWord(encoder.token_embedding, ids[0], vector)
    return encoder.token_embedding.to(model.device)


def word_step(unet: UNet, z: Tensor, encode: Callable[[], Tensor], settings: dict, draw: Draws,
              backward: Backward) -> None:
    """Gal et al. (2022), equation 2: the word that makes the images likely. z (n 4 1 h w)."""
    z = z[draw.some(len(z), settings["batch_size"])]
    c = encode().expand(len(z), -1, -1)
    backward(spatial_loss(unet, z, c, draw.noise_like(z), draw.timesteps(z)))


def prepare_word(model: Model, settings: dict, args: Namespace) -> Job:
    job = read_images(model, settings, args)
    if not job.prompt.split():
        raise UserError("--prompt: has no words; its last one is where the learned word begins")
    # "a teddy bear": bear. The UNet keeps it: the text encoder is freed before training.
    model.unet.word = put_word(model, start=job.prompt.split()[-1])
    encoder: TextEncoder = model.text_encoder
    ids = model.tokenizer([f"a {WORD}"]).to(model.device)
    return Job((job.inputs[0], lambda: encoder(ids)), f"a {WORD}", job.metadata)


class Adapted(Stage):
    """Trains adapters: `trained` says which."""

    optimizer_class = AdamW

    def parameters(self, model: Model) -> dict[str, nn.Parameter]:
        return adapter_parameters(model.unet, *self.trained)

    def save(self, model: Model, path: Path, metadata: dict) -> None:
        write_tensors({name: p.detach().cpu().contiguous()
                       for name, p in self.parameters(model).items()}, path, metadata)


class Word(Adapted):
    """Trains one vector of the text encoder. Its contact sheet has the prompt as it began."""

    def parameters(self, model: Model) -> dict[str, nn.Parameter]:
        return {"word": model.unet.word.vector}


# ---------------------------------------------------------------------------------- the adapters


def add_identity_flags(parser: ArgumentParser) -> None:
    add_data_flags(parser)
    parser.add_argument("--word", type=Path, default=OUTPUT / "dreamvideo-word", metavar="FILE",
                        help="what --stage dreamvideo-word wrote (default: %(default)s)")


def prepare_identity(model: Model, settings: dict, args: Namespace) -> Job:
    """Images, and the prompt "a *" with the learned word in it."""
    check_lora_apart(args.output, word_file(args.word), "the word")
    job = read_images(model, settings, args)
    put_word(model, read_word(args.word, model))
    put_identity(model.unet)
    z = job.inputs[0]
    c = model.encode_text([f"a {WORD}"]).expand(len(z), -1, -1)
    return Job((z, c), f"a {WORD}", job.metadata | {
        "word_sha256": fingerprint([word_file(args.word)])})


def word_file(path: Path) -> Path:
    return find_lora(path, "--word", "run --stage dreamvideo-word first")


def read_word(path: Path, model: Model) -> Tensor:
    file = word_file(path)
    tensors, (_, width) = read_tensors(file), model.text_encoder.token_embedding.weight.shape
    if tensors.keys() != {"word"} or tensors["word"].shape != (width,):
        raise UserError(f"--word {file}: not what --stage dreamvideo-word trains on this model")
    return tensors["word"]


def add_motion_flags(parser: ArgumentParser) -> None:
    add_data_flags(parser)
    parser.add_argument("--clip", type=Path, metavar="M", help="CLIP whose image embeddings guide "
                        "the motion (default: clip/ in the model's folder)")


def prepare_motion(model: Model, settings: dict, args: Namespace) -> Job:
    """A video, and the CLIP embedding of each of its frames: here a unit vector, of the frame as
    the VAE gives it back."""
    require_motion(model)
    job = read_clips(model, settings, args)
    z, c = job.inputs
    judge = args.clip or Path(args.model) / "clip"
    embedder = load_clip(judge, model.device)
    a = torch.stack([embedder.embed_images(to_images(decode_frames(model, each[None])))
                     for each in z])                                         # (n f d_a)
    put_motion(model.unet, a.shape[2])
    return Job((z, c, a, model.encode_text([""])), job.prompt,
               job.metadata | {"clip_sha256": clip_fingerprint(Path(judge))})


def motion_step(unet: UNet, z: Tensor, c: Tensor, a: Tensor, empty: Tensor, settings: dict,
                draw: Draws, backward: Backward) -> None:
    """The noise in a clip, guided by a random frame of it, so that the adapters need not learn its
    appearance; text and guidance are dropped half of the time. a (n f d_a)."""
    one = draw.some(len(z), 1)
    z, c, a = z[one], c[one], a[one]
    eps, t = draw.noise_like(z), draw.timesteps(z, settings["least_timestep"])
    text = empty if draw.chance(settings["drop_text"]) else c
    guide = a[:, draw.frame(z)] * (0 if draw.chance(settings["drop_guide"]) else 1)
    with appearance(unet, guide):
        backward(noise_loss(unet(add_noise(z, eps, t), t, text), eps))


def load_dreamvideo(model: Model, word: Path, identity: Path, motion: Path) -> None:
    """What the three stages trained, all on the model."""
    put_word(model, read_word(word, model))
    put_identity(model.unet)
    tensors = {kind: read_tensors(find_lora(path, kind)) for kind, path in (
        ("identity", identity), ("motion", motion))}
    put_motion(model.unet, next((tensor.shape[1] for name, tensor in tensors["motion"].items()
                                 if name.endswith("condition_linear.weight")), 1))
    for kind, path in (("identity", identity), ("motion", motion)):
        parameters = adapter_parameters(model.unet, kind)
        if shapes(parameters) != shapes(tensors[kind]):
            raise UserError(f"{path}: not what --stage dreamvideo-{kind} trains on this model")
        for name, parameter in parameters.items():
            parameter.data.copy_(tensors[kind][name])


def shapes(tensors: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def sample_dreamvideo(model: Model, prompt: str, a: Tensor, guidance: float,
                      **arguments) -> Tensor:
    """uint8 (f H W 3) for a prompt with * in it, guided by an image of the subject, a (1 d_a); the
    half of the batch without prompt has zeros for it, as in VGen."""
    both = a if guidance == 1 else torch.cat([torch.zeros_like(a), a])
    with appearance(model.unet, both):
        return sample_video(model, prompt, guidance=guidance, **arguments)


def recipe(base: Recipe, rate: float, steps: int, tiny_rate: float,
           more: dict[str, Setting]) -> Recipe:
    """A stage's recipe without LoRA; with VGen's numbers."""
    own = {"learning_rate": Setting(rate, "VGen", "of AdamW"),
           "steps": Setting(steps, "VGen", "training steps"),
           "betas": Setting((0.9, 0.999), "VGen: PyTorch's", "of AdamW", zero=True, below=1),
           "weight_decay": Setting(0.0, "VGen", "of AdamW", zero=True)}
    return Recipe({k: v for k, v in base.full.items() if k not in OF_LORA} | own | more,
                  {k: v for k, v in base.tiny.items() if k not in OF_LORA and k not in own} | {
                      "learning_rate": Setting(tiny_rate, "tiny: learns in the steps below"),
                      "steps": Setting(250, "tiny: minutes on a CPU")})


FOUR = {"batch_size": Setting(4, "VGen", "images a step")}
DROPPED = {"drop_text": Setting(0.5, "VGen: p_zero", "chance of no prompt", zero=True, below=1),
           "drop_guide": Setting(0.5, "VGen: p_image_zero", "chance of no frame", zero=True,
                                 below=1)}
DREAMVIDEO = (
    Word("dreamvideo-word", "dreamvideo-word", recipe(recipes.SPATIAL, 1e-4, 3000, 1e-3, FOUR),
         add_data_flags, prepare_word, word_step, trained=(), rows=((),), motion=False),
    Adapted("dreamvideo-identity", "dreamvideo-identity",
            recipe(recipes.SPATIAL, 1e-5, 1000, 3e-3, FOUR), add_identity_flags, prepare_identity,
            spatial_step, trained=("identity",), rows=((),), motion=False),
    Adapted("dreamvideo-motion", "dreamvideo-motion",
            recipe(recipes.TEMPORAL, 1e-5, 3000, 1e-3, DROPPED), add_motion_flags, prepare_motion,
            motion_step, trained=("motion",), rows=((),)))
