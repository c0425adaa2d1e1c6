"""What our parameters are called in public weight files: pure functions from name to name.

`diffusers_*` is the Hugging Face layout (a model folder), `original_*` the one of the first
releases (`model.diffusion_model.*` and AnimateDiff's own motion files). The loader fills every
parameter of ours from exactly one public key; what is left over of a part must be in DROPPED.
"""

import re

SPATIAL_LAYERS = (0, 1, 2, 4, 6, 7, 8)      # 3 and 5 have no spatial transformer

# Left out by name: regular expression of public keys, reason.
DROPPED = {
    r".*position_ids": "a constant 0, 1, 2, ...",
    r".*pos_(encoder|embed)\.pe": "sinusoids, recomputed for any clip length",
    r"betas|.*alphas_cumprod.*|posterior_.*": "Stable Diffusion's noise schedule; AnimateDiff's is "
        "used (diffusion.py)",
    r"(first_stage_model\.)?model_ema\..*": "a second, averaged copy of the UNet, or of the VAE",
    r"cond_stage_model\.(logit_scale|transformer\.text_projection\.weight)": "of CLIP's scores; "
        "ComfyUI saves them along",
    r"first_stage_model\.loss\..*|embedding_manager\..*": "of the training of VAE and prompt words",
}


def replace(name: str, table: dict[str, str]) -> str:
    for ours, public in table.items():
        name = name.replace(ours, public)
    return name


def is_motion(name: str) -> bool:
    return ".motion_modules." in name


def is_image(name: str) -> bool:
    return not is_motion(name)


def is_dropped(key: str) -> bool:
    return any(re.fullmatch(pattern, key) for pattern in DROPPED)


BLOCK = {".block.": ".transformer_blocks.0.", ".to_out.": ".to_out.0.",
         ".ff.value_gate.": ".ff.net.0.proj.", ".ff.out.": ".ff.net.2."}


def diffusers_unet(name: str) -> str:
    """`layers.6.spatial_transformers.0.block.attn1.to_q.weight` ->
    `up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight`; motion modules likewise."""
    if (at := re.match(r"layers\.(\d)\.", name)) is not None:
        i = int(at[1])
        block = f"down_blocks.{i}." if i < 4 else "mid_block." if i == 4 else f"up_blocks.{i - 5}."
        name = block + name[at.end():]
    return replace(name, {".spatial_transformers.": ".attentions.", **BLOCK,
                          ".downsample.": ".downsamplers.0.", ".upsample.": ".upsamplers.0.",
                          "norm_out.": "conv_norm_out."})


def original_motion(name: str) -> str:
    """AnimateDiff's own names of the motion modules, from ours."""
    name = re.sub(r"\.motion_modules\.(\d)\.", r".motion_modules.\1.temporal_transformer.",
                  diffusers_unet(name))
    return replace(name, {
        ".transformer_blocks.0.norm1.": ".transformer_blocks.0.norms.0.",
        ".transformer_blocks.0.norm2.": ".transformer_blocks.0.norms.1.",
        ".transformer_blocks.0.norm3.": ".transformer_blocks.0.ff_norm.",
        ".attn1.": ".attention_blocks.0.", ".attn2.": ".attention_blocks.1."})


RESNET = {".norm1.": ".in_layers.0.", ".conv1.": ".in_layers.2.",
          ".time_emb_proj.": ".emb_layers.1.", ".norm2.": ".out_layers.0.",
          ".conv2.": ".out_layers.3.", ".conv_shortcut.": ".skip_connection."}


def original_unet(name: str) -> str:
    """The image UNet's names in a single-file checkpoint, from ours.

    `input_blocks` are conv_in, then three entries a layer: two resnets and a downsampler.
    `output_blocks` are three resnets a layer. A transformer and the upsampler stand in the entry of
    their resnet.
    """
    ends = {"conv_in.": "input_blocks.0.0.", "norm_out.": "out.0.", "conv_out.": "out.2.",
            "time_embedding.linear_1.": "time_embed.0.",
            "time_embedding.linear_2.": "time_embed.2."}
    for ours, public in ends.items():
        if name.startswith(ours):
            return "model.diffusion_model." + name.replace(ours, public)
    i, part, rest = re.fullmatch(r"layers\.(\d)\.(\w+)\.(.+)", name).groups()
    i = int(i)
    j = int(rest[0]) if part in ("resnets", "spatial_transformers") else 0
    inner = rest[2:] if part in ("resnets", "spatial_transformers") else rest
    if part == "downsample":
        place = f"input_blocks.{3 * (i + 1)}.0"
    elif part == "upsample":        # last in its layer's third entry: after the transformer, if any
        place = f"output_blocks.{3 * (i - 5) + 2}.{2 if i in SPATIAL_LAYERS else 1}"
    elif i == 4:
        place = f"middle_block.{1 if part == 'spatial_transformers' else 2 * j}"
    else:
        entry = f"input_blocks.{3 * i + j + 1}" if i < 4 else f"output_blocks.{3 * (i - 5) + j}"
        place = f"{entry}.{1 if part == 'spatial_transformers' else 0}"
    table = {"resnets": RESNET, "downsample": {".conv.": ".op."}}.get(part, BLOCK)
    return "model.diffusion_model." + place + replace("." + inner, table)


def diffusers_vae(name: str) -> str:
    """`encoder.levels.0.resnets.0.conv1.bias` -> `encoder.down_blocks.0.resnets.0.conv1.bias`."""
    name = name.replace("encoder.levels.", "encoder.down_blocks.") \
               .replace("decoder.levels.", "decoder.up_blocks.")
    return replace(name, {
        ".middle.resnet_1.": ".mid_block.resnets.0.", ".middle.resnet_2.": ".mid_block.resnets.1.",
        ".middle.norm.": ".mid_block.attentions.0.group_norm.",
        ".middle.attention.": ".mid_block.attentions.0.", ".to_out.": ".to_out.0.",
        ".downsample.": ".downsamplers.0.", ".upsample.": ".upsamplers.0.",
        ".norm_out.": ".conv_norm_out."})


def modern_vae_key(key: str) -> str:
    """The attention names that SD 1.5's own VAE file still has -> the present ones."""
    return replace(key, {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.",
                         ".proj_attn.": ".to_out.0."})


def original_vae(name: str) -> str:
    """The VAE's names in a single-file checkpoint, from ours; the decoder counts backwards."""
    if (at := re.match(r"(encoder|decoder)\.levels\.(\d)\.", name)) is not None:
        k = int(at[2]) if at[1] == "encoder" else 3 - int(at[2])
        inner = replace(name[at.end() - 1:], {
            ".resnets.": ".block.", ".conv_shortcut.": ".nin_shortcut."})
        name = f"{at[1]}.{'down' if at[1] == 'encoder' else 'up'}.{k}{inner}"
    return "first_stage_model." + replace(name, {
        ".middle.resnet_1.": ".mid.block_1.", ".middle.resnet_2.": ".mid.block_2.",
        ".middle.norm.": ".mid.attn_1.norm.", ".middle.attention.to_q.": ".mid.attn_1.q.",
        ".middle.attention.to_k.": ".mid.attn_1.k.", ".middle.attention.to_v.": ".mid.attn_1.v.",
        ".middle.attention.to_out.": ".mid.attn_1.proj_out."})


def clip_layer(name: str) -> str:
    """One transformer layer of either tower, in Hugging Face's names."""
    return replace(name, {
        ".norm1.": ".layer_norm1.", ".norm2.": ".layer_norm2.", ".fc1.": ".mlp.fc1.",
        ".fc2.": ".mlp.fc2.", ".attention.to_q.": ".self_attn.q_proj.",
        ".attention.to_k.": ".self_attn.k_proj.", ".attention.to_v.": ".self_attn.v_proj.",
        ".attention.to_out.": ".self_attn.out_proj."})


def public_text(name: str) -> str:
    """`layers.0.fc1.weight` -> `text_model.encoder.layers.0.mlp.fc1.weight`."""
    if name.startswith("layers."):
        return "text_model.encoder." + clip_layer(name)
    return "text_model." + replace(name, {
        "token_embedding.": "embeddings.token_embedding.",
        "position_embedding.": "embeddings.position_embedding.",
        "final_norm.": "final_layer_norm."})


def full_text_key(key: str) -> str:
    """transformers 5 and some checkpoints leave `text_model.` out; a stranger's key stays."""
    return re.sub(r"^(cond_stage_model\.transformer\.)?(?=(embeddings|encoder|final_layer_norm)\.)",
                  r"\1text_model.", key)


def original_text(name: str) -> str:
    return "cond_stage_model.transformer." + public_text(name)


def public_clip(name: str) -> str:
    """Both towers, as in openai/clip-vit-*-patch*/model.safetensors."""
    if name.startswith("text_model."):
        return public_text(name.removeprefix("text_model."))
    if name.startswith("vision_model.layers."):
        return "vision_model.encoder." + clip_layer(name.removeprefix("vision_model."))
    return replace(name, {
        "vision_model.class_embedding": "vision_model.embeddings.class_embedding",
        "vision_model.patch_embedding.": "vision_model.embeddings.patch_embedding.",
        "vision_model.position_embedding.": "vision_model.embeddings.position_embedding.",
        "vision_model.pre_norm.": "vision_model.pre_layrnorm.",      # spelled so in the files
        "vision_model.post_norm.": "vision_model.post_layernorm."})
