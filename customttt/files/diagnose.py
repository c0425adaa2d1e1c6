"""What a weight file is, by its keys and shapes: said before any list of keys."""

import re
from collections.abc import Mapping
from pathlib import Path

from ..errors import UserError

OTHER_MODEL = "this code runs Stable Diffusion 1.5 and its fine-tunes; give one of those to --model"
CHECKPOINT = "a Stable Diffusion 1.5 checkpoint"
NOISE = "this code is for models that predict noise (epsilon); give one of those to --model"
# The first that fits: a pattern of a key, the tensor's second size (None: any), what the file is,
# and what to do with it.
KINDS = [
    (r"(^|\.)(double_blocks|single_transformer_blocks|joint_blocks)\.", None,
     "a FLUX or Stable Diffusion 3 model or its LoRA", OTHER_MODEL),
    (r"^(conditioner\.embedders\.1\.|model\.diffusion_model\.label_emb\.|add_embedding\.)", None,
     "a Stable Diffusion XL model", OTHER_MODEL),
    (r"^lora_te[12]_|^text_encoder_2\.|transformer_blocks[._][1-9][._].*lora", None,
     "a LoRA for Stable Diffusion XL", "give one for Stable Diffusion 1.5 to --lora"),
    (r"^cond_stage_model\.model\.transformer\.resblocks\.", None, "a Stable Diffusion 2 model",
     OTHER_MODEL),
    (r"attn2\.to_k\.weight$", 1024, "a Stable Diffusion 2 model", OTHER_MODEL),
    (r"attn2\.to_k\.weight$", 2048, "a Stable Diffusion XL model", OTHER_MODEL),
    (r"(^|\.)(input_blocks\.0\.0|conv_in)\.weight$", 9, "a model for inpainting", OTHER_MODEL),
    (r"(^|\.)(input_blocks\.0\.0|conv_in)\.weight$", 8, "a model that edits images", OTHER_MODEL),
    (r"^(control_model|controlnet|input_hint_block)|controlnet_", None, "a ControlNet",
     "this code uses none"),
    (r"motion_modules\..*lora", None, "a motion LoRA", "give it to --lora"),
    (r"lora_(up|down|A|B)\b|\.lora\.|_lora\.|\.processor\.|hada_|lokr_", None, "a LoRA",
     "give it to --lora"),
    (r"\.motion_modules\.", None, "a motion module", "give it to --motion-module"),
    (r"^(emb_params$|string_to_param|string_to_token|<.*>$|clip_[lg]$)", None,
     "an embedding (textual inversion)", "this code uses none"),
    (r"^model\.diffusion_model\.", None, CHECKPOINT, "give it to --model"),
    (r"^(down_blocks|up_blocks|time_embedding)\.", None, "a UNet in diffusers' layout",
     "give the model folder that it belongs to to --model"),
    (r"^(first_stage_model\.|encoder\.|decoder\.)", None, "a VAE", "give it to --vae"),
    (r"text_model\.|^vision_model\.", None, "a CLIP model",
     "give the model folder that it belongs to to --model"),
]


def kind_of(tensors: Mapping) -> tuple[str, str] | None:
    """(what it is, what to do with it) of a file's tensors; None: not known."""
    for pattern, size, what, advice in KINDS:
        for key, tensor in tensors.items():
            if re.search(pattern, key) and (size is None or (*tensor.shape, 0, 0)[1] == size):
                return what, advice
    return None


def refuse_other(path, tensors: Mapping, wanted: str, accepted: str = "") -> None:
    """Raise UserError if the file is of a known kind other than the one accepted."""
    kind = kind_of(tensors)
    if kind is not None and kind[0] != accepted:
        raise UserError(f"{path}: this is {kind[0]}, {wanted}; {kind[1]}")


def refuse_v_prediction(path, keys: Mapping, metadata: Mapping[str, str]) -> None:
    """Raise UserError for a checkpoint that says that it predicts v: noise is predicted here."""
    told = {key: str(value).lower() for key, value in metadata.items()}
    says = [key for key in ("v_pred", "ztsnr") if key in keys]
    says += [key for key in ("modelspec.predict_key", "modelspec.prediction_type",
                             "prediction_type", "ss_v_parameterization", "ss_v_pred")
             if told.get(key) in ("v", "v_prediction", "v-prediction", "true")]
    if says:
        raise UserError(f"{path}: the model predicts v, by its entry {says[0]}, and {NOISE}")


def refuse_unlike(path: Path, tensors: Mapping, metadata: Mapping[str, str]) -> None:
    """Raise UserError for a file that is no Stable Diffusion 1.5 checkpoint that predicts noise."""
    refuse_other(path, tensors, "not a Stable Diffusion 1.5 checkpoint", accepted=CHECKPOINT)
    if not any(key.startswith("model.diffusion_model.") for key in tensors):
        raise UserError(f"{path}: not a Stable Diffusion checkpoint (no model.diffusion_model.* in "
                        f"it); a motion module goes into --motion-module, a LoRA into --lora")
    refuse_v_prediction(path, tensors, metadata)
    settings = path.with_suffix(".yaml")        # as the first releases keep them beside the file
    if settings.is_file() and re.search(rb"parameterization:\s*[\"']?v\b", settings.read_bytes()):
        raise UserError(f"{settings}: the model predicts v, and {NOISE}")
