"""The work of each row, as it is written with diffusers and peft: the same placement, the same
random weights, read from the same folder."""

import json

import torch
import torch.nn.functional as F
from diffusers import (AutoencoderKL, DDIMScheduler, MotionAdapter, UNet2DConditionModel,
                       UNetMotionModel)
from lion_pytorch import Lion
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from transformers import CLIPTextModel

from customttt import UNet
from customttt.files import keys
from customttt.files.configs import motion_config, unet_config
from customttt.lora import targets

WEIGHTS = "diffusion_pytorch_model.safetensors"
LAYERS = {"spatial": (2, 6), "temporal": (2, 5)}


def load(job):
    def once():
        unet = UNetMotionModel.from_unet2d(
            UNet2DConditionModel.from_pretrained(job.model / "unet", torch_dtype=job.dtype),
            MotionAdapter.from_pretrained(job.model / "motion_adapter", torch_dtype=job.dtype))
        vae = AutoencoderKL.from_pretrained(job.model / "vae", torch_dtype=job.dtype)
        text = CLIPTextModel.from_pretrained(job.model / "text_encoder", dtype=job.dtype)
        for part in (unet.to(job.device, job.dtype), vae.to(job.device), text.to(job.device)):
            for p in part.parameters():
                p.view(-1)[::1024].sum()
    return once


def opened(job, video: bool = True, image: bool = False) -> list:
    """The UNet of clips, that of images, or both: they share their weights."""
    tensors = load_file(job.model / "unet" / WEIGHTS)
    if video:
        tensors |= load_file(job.model / "motion_adapter" / WEIGHTS)
    tensors = {key: value.to(job.device, job.dtype) for key, value in tensors.items()}
    with torch.device("meta"):
        images = UNet2DConditionModel.from_config(job.model / "unet")
        built = [UNetMotionModel.from_unet2d(images, MotionAdapter.from_config(
            job.model / "motion_adapter"), load_weights=False)] * video + [images] * image
    for unet in built:
        own = unet.state_dict().keys()
        unet.load_state_dict({k: v for k, v in tensors.items() if k in own}, assign=True)
        unet.requires_grad_(False).eval()
    return built


def adapted(job, unet, name: str, *kinds: str, dropout: float = 0.1) -> list[torch.nn.Parameter]:
    """peft's LoRA of rank 32 on the modules that ours adapts; its parameters, fp32."""
    file = job.model / "motion_adapter" / "config.json"
    with torch.device("meta"):
        ours = UNet(unet_config(json.loads((job.model / "unet" / "config.json").read_text()),
                                motion_config(file, False, None, version=3), str(file)))
    modules = [keys.diffusers_unet(target + ".").removesuffix(".") for kind in kinds
               for target in targets(ours, kind, LAYERS[kind])]
    inject_adapter_in_model(LoraConfig(r=32, lora_alpha=32, lora_dropout=dropout,
                                       target_modules=modules), unet, adapter_name=name)
    named = [(key, p) for key, p in unet.named_parameters() if f".{name}." in key]
    for _, p in named:
        p.data = p.data.float()
    return [p for _, p in named]


def switched(unet, name: str) -> None:
    """Only the adapter of this name is on."""
    for module in unet.modules():
        if isinstance(module, LoraLayer):
            module.set_adapter([name])


def forward(job):
    [unet] = opened(job)
    return torch.no_grad()(lambda: video_noise(unet, job.clip(), job.timestep(), job.text()))


def video_noise(unet, x, t, text):
    """Its pipeline repeats the text for every frame."""
    return unet(x, t, text.repeat_interleave(x.shape[2], dim=0)).sample


def image_noise(unet, x, t, text):
    """Frames as images: (b 4 f h w) -> the same."""
    b, c, f, h, w = x.shape
    frames = x.transpose(1, 2).reshape(b * f, c, h, w)
    y = unet(frames, t.repeat_interleave(f), text.repeat_interleave(f, dim=0)).sample
    return y.view(b, f, c, h, w).transpose(1, 2)


def guided(noise, unet, x, t, text, empty):
    t = torch.full((2,), t, device=x.device)
    eps_empty, eps_text = noise(unet, torch.cat([x, x]), t, torch.cat([empty, text])).chunk(2)
    return eps_empty + 9.0 * (eps_text - eps_empty)


def scheduler():
    return DDIMScheduler(beta_schedule="linear", beta_start=0.00085, beta_end=0.012,
                         steps_offset=1, clip_sample=False)


def denoise(job):
    [unet], text, empty = opened(job), job.text(), job.text()
    return torch.no_grad()(lambda: guided(video_noise, unet, job.clip(), 500, text, empty))


@torch.no_grad()
def sampled(noise, unet, x, text, empty):
    steps = scheduler()
    steps.set_timesteps(5)
    for t in steps.timesteps.tolist():
        eps = guided(noise, unet, x.to(text.dtype), t, text, empty)
        x = steps.step(eps.float(), t, x).prev_sample
    return x


def reference(job):
    [unet], text, empty = opened(job), job.text(), job.text()
    adapted(job, unet, "temporal", "temporal")
    return lambda: sampled(video_noise, unet.eval(), job.clip().float(), text, empty)


def decode(job):
    vae = AutoencoderKL.from_pretrained(job.model / "vae", torch_dtype=job.dtype).to(job.device)
    frames = job.clip()[0].transpose(0, 1)
    return torch.no_grad()(lambda: [vae.decode(z / vae.config.scaling_factor).sample
                                    for z in frames.split(1)])


def training(job, parameters, step):
    """One step, with Lion and mixed precision; `step(backward)`."""
    optimizer = Lion(parameters, lr=1e-5, betas=(0.9, 0.99), weight_decay=0.1)
    scaler = torch.amp.GradScaler(job.device.type, enabled=job.precision == "fp16")

    def once():
        optimizer.zero_grad()
        with torch.autocast(job.device.type, job.dtype, enabled=job.precision != "fp32"):
            step(lambda loss: scaler.scale(loss).backward())
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    return once


def noised(z):
    eps, t = torch.randn_like(z), torch.randint(1000, (1,), device=z.device)
    return scheduler().add_noise(z, eps, t), eps, t


def spatial(job):
    [unet] = opened(job, video=False, image=True)
    parameters, text, z = adapted(job, unet, "spatial", "spatial"), job.text(), job.clip()[:, :, :1]
    unet.train()

    def step(backward):
        x, eps, t = noised(z.float())
        backward(F.mse_loss(image_noise(unet, x, t, text).float(), eps))
    return training(job, parameters, step)


def temporal(job):
    [unet] = opened(job)
    parameters, text, z = adapted(job, unet, "temporal", "temporal"), job.text(), job.clip()
    unet.train()

    def debiased(eps, k):
        return 2 ** 0.5 * eps - eps[:, :, k:k + 1]

    def step(backward):
        x, eps, t = noised(z.float())
        predicted, k = video_noise(unet, x, t, text).float(), torch.randint(z.shape[2], ()).item()
        backward(F.mse_loss(predicted, eps)
                 + F.mse_loss(debiased(predicted, k), debiased(eps, k)))
    return training(job, parameters, step)


def ttt(job):
    """The teachers and the student as adapters; diffusers takes no motion modules out, so the
    appearance teacher is a UNet of images that shares the weights."""
    video, image = opened(job, image=True)
    adapted(job, image, "spatial_teacher", "spatial", dropout=0.0)
    adapted(job, video, "temporal_teacher", "temporal", dropout=0.0)
    parameters = adapted(job, video, "student", "spatial", "temporal")
    target, appearance, motion, empty = (job.text() for _ in range(4))

    def step(backward):
        switched(video, "temporal_teacher")
        noise = torch.randn(2, *job.shape, device=job.device)
        z_s = sampled(image_noise, image, noise[0], appearance, empty)
        z_t = sampled(video_noise, video.eval(), noise[1], motion, empty)
        switched(video, "student")
        video.train()
        for z in (z_s, z_t):
            x, eps, t = noised(z)
            backward(F.mse_loss(video_noise(video, x, t, target).float(), eps))
    return training(job, parameters, step)


ROWS = {each.__name__: each for each in
        (load, forward, denoise, spatial, temporal, reference, ttt, decode)}
