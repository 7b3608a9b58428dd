"""Pipelines of the zoo with text encoders, tokenizers and decoders, so that they can be told a prompt, and saved.

Tiny and random, of the classes that published ones have wherever a pipeline looks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
import transformers
from pipelines import text_config, tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import CLIPTextModel, CLIPTextModelWithProjection, PreTrainedTokenizerFast
from zoo import SQUARE, WIDE, ZOO, ltx_vae, wan_vae

WIDTH = 16
CHAT = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
UMT5 = transformers.UMT5EncoderModel
SMALL = {"height": 32, "width": 32}


@dataclass(frozen=True)
class Told:
    """What completes a pipeline of the zoo, and the smallest call of it: size, frames, other arguments."""

    parts: Callable[[], dict[str, Any]]
    size: dict[str, int] = field(default_factory=lambda: dict(SQUARE))
    frames: int | None = None
    extra: tuple[tuple[str, Any], ...] = ()

    @property
    def options(self) -> list[str]:
        """The call as options of the command line."""
        given = [f"--{name}={value}" for name, value in self.size.items()]
        given += [] if self.frames is None else [f"--frames={self.frames}"]
        return given + [f"--call={name}={value}" for name, value in self.extra]


def build(name: str) -> Any:
    """The pipeline called `name` in the zoo, whole."""
    bare = ZOO[name].build()
    torch.manual_seed(1)
    flags = {key: False for key in ("requires_safety_checker",) if key in bare.config}
    pipe = type(bare)(**{**bare.components, **TOLD[name].parts()}, **flags)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


# --- parts -----------------------------------------------------------------------------------------------


def words(length: int = 8) -> PreTrainedTokenizerFast:
    """A word a token, then an end, `length` at most, with a chat template that says what is said."""
    made = tokenizer()
    made.backend_tokenizer.post_processor = TemplateProcessing(single="$A <pad>", special_tokens=[("<pad>", 0)])
    made.model_max_length, made.chat_template, made.padding_side = length, CHAT, "right"
    return made


def language(kind: Any, length: int = 64, **extra: Any) -> dict[str, Any]:
    """A language model of class `kind` and its tokenizer."""
    sizes = {
        "vocab_size": 8,
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
    }
    return {"text_encoder": kind(kind.config_class(**sizes, **extra)), "tokenizer": words(length)}


def halved(projection: int = WIDTH // 2) -> Any:
    """The config of a CLIP of half the width, of which two make up that of a network."""
    config = text_config(projection_dim=projection)
    config.hidden_size = config.intermediate_size = WIDTH // 2
    return config


def numbered(name: str, *parts: Any) -> dict[str, Any]:
    """name, name_2, .. for `parts`."""
    return {name if index == 1 else f"{name}_{index}": part for index, part in enumerate(parts, 1)}


def clip() -> dict[str, Any]:
    return {"text_encoder": CLIPTextModel(text_config()), "tokenizer": words()}


def t5(kind: Any = transformers.T5EncoderModel, length: int = 8, **others: Any) -> dict[str, Any]:
    sizes = {"d_model": WIDTH, "d_kv": 8, "d_ff": WIDTH, "num_layers": 1, "num_heads": 2, "vocab_size": 8}
    return {"text_encoder": kind(kind.config_class(**sizes)), "tokenizer": words(length), **others}


def flux() -> dict[str, Any]:
    return {
        **numbered("text_encoder", clip()["text_encoder"], t5()["text_encoder"]),
        **numbered("tokenizer", words(), words()),
    }


def xl() -> dict[str, Any]:
    encoders = CLIPTextModel(halved()), CLIPTextModelWithProjection(halved(WIDTH))
    return {**numbered("text_encoder", *encoders), **numbered("tokenizer", words(), words())}


def sd3() -> dict[str, Any]:
    encoders = [CLIPTextModelWithProjection(halved()) for _ in range(2)]
    return {
        **numbered("text_encoder", *encoders, t5()["text_encoder"]),
        **numbered("tokenizer", words(), words(), words()),
    }


def qwen() -> dict[str, Any]:
    """Qwen2.5-VL of one layer, and the autoencoder of Qwen-Image."""
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6}
    text = {"vocab_size": 8, "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 2, "rope_parameters": rope, "rope_scaling": rope}
    vision = {"depth": 1, "hidden_size": WIDTH, "num_heads": 2, "out_hidden_size": WIDTH, "intermediate_size": WIDTH}
    tokens = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    kind = transformers.Qwen2_5_VLForConditionalGeneration
    coder = diffusers.AutoencoderKLQwenImage(
        base_dim=4, z_dim=4, dim_mult=[1, 2, 2, 2], num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[2.0] * 4
    )
    config = kind.config_class(text_config=text, vision_config=vision, **dict.fromkeys(tokens, 1))
    return {"text_encoder": kind(config), "tokenizer": words(128), "vae": coder}


def dc_vae() -> Any:
    blocks = ("ResBlock", "EfficientViTBlock")
    return diffusers.AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=blocks,
        decoder_block_types=blocks,
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
    )


def cogvideox_vae() -> Any:
    return diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=4,
    )


def hunyuan_video() -> dict[str, Any]:
    model = language(transformers.LlamaModel, 512)
    config = text_config()
    config.max_position_embeddings = 77
    coder = diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4
    )
    return {
        **numbered("text_encoder", model["text_encoder"], CLIPTextModel(config)),
        **numbered("tokenizer", model["tokenizer"], words(77)),
        "vae": coder,
    }


def movq() -> Any:
    return diffusers.VQModel(
        block_out_channels=(32, 32),
        latent_channels=4,
        vq_embed_dim=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )


# --- pipelines -------------------------------------------------------------------------------------------

TOLD: dict[str, Told] = {
    "stable_diffusion": Told(clip),
    "stable_diffusion_2": Told(clip),
    "stable_diffusion_xl": Told(xl),
    "playground": Told(xl),
    "animate_diff": Told(clip, frames=2),
    "text_to_video": Told(clip, frames=2),
    "kandinsky_3": Told(lambda: t5(movq=movq()), size=WIDE),
    "deepfloyd_if": Told(t5, size={"height": 8, "width": 8}),
    "pixart_alpha": Told(t5),
    "pixart_sigma": Told(t5),
    "latte": Told(t5, frames=2),
    "stable_diffusion_3": Told(sd3),
    "flux": Told(flux),
    "flux_kontext": Told(flux, extra=(("max_area", 256), ("_auto_resize", False))),
    "chroma": Told(t5),
    "qwen_image": Told(qwen, size=WIDE),
    "sana": Told(lambda: {**language(transformers.Gemma2Model), "vae": dc_vae()}, size=SMALL),
    "aura_flow": Told(functools.partial(t5, UMT5)),
    "lumina_2": Told(functools.partial(language, transformers.Gemma2Model)),
    "z_image": Told(functools.partial(language, transformers.Qwen3Model)),
    "cogview_3": Told(t5),
    "cogview_4": Told(functools.partial(language, transformers.GlmModel)),
    "cogvideox": Told(lambda: t5(vae=cogvideox_vae()), size=WIDE, frames=5, extra=(("max_sequence_length", 5),)),
    "wan": Told(lambda: t5(UMT5, 512, vae=wan_vae()), frames=5),
    "wan_2_2": Told(lambda: t5(UMT5, 512, vae=wan_vae()), frames=5),
    "ltx": Told(lambda: t5(vae=ltx_vae()), size=SMALL, frames=9),
    "ltx_condition": Told(lambda: t5(vae=ltx_vae()), size=SMALL, frames=9),
    "hunyuan_video": Told(hunyuan_video, size=WIDE, frames=5),
    # what draws nothing from a prompt alone
    "stable_diffusion_turbo_img2img": Told(clip),
    "stable_diffusion_inpaint": Told(clip),
    "stable_diffusion_controlnet": Told(clip),
    "stable_diffusion_upscale": Told(clip),
    "stable_diffusion_xl_inpaint": Told(xl),
    "stable_diffusion_3_img2img": Told(sd3),
    "flux_img2img": Told(flux),
    "flux_fill": Told(flux),
    "flux_control": Told(flux),
    "wan_image_to_video": Told(lambda: t5(UMT5, 512), frames=5),
    "ltx_image_to_video": Told(t5, size=SMALL, frames=9),
    "stable_video_diffusion": Told(dict),
    "kandinsky_2_2": Told(dict),
    "dit": Told(dict),
    "shap_e": Told(dict),
    "stable_audio": Told(t5),
}
REFUSED = list(TOLD)[list(TOLD).index("stable_diffusion_turbo_img2img") :]
DRAWING = [name for name in TOLD if name not in REFUSED]
