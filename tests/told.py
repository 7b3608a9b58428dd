"""The zoo's text-to-image and text-to-video pipelines with text encoders, tokenizers and decoders: told a prompt.

Tiny, random, and saved and loaded as published ones are, so that the command line can be tried on them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
import transformers
from pipelines import text_config, tokenizer
from transformers import CLIPTextModel, CLIPTextModelWithProjection, PreTrainedTokenizerFast
from zoo import SQUARE, WIDE, ZOO, ltx_vae, wan_vae

Parts = Callable[[], dict[str, Any]]

WIDTH = 16
CHAT = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


@dataclass(frozen=True)
class Told:
    """What a pipeline of the zoo is completed by, and the smallest call of it: size, frames, other arguments."""

    parts: Parts
    size: dict[str, int] = field(default_factory=lambda: dict(SQUARE))
    frames: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def build(self, name: str) -> Any:
        """The pipeline called `name` in the zoo, whole."""
        bare = ZOO[name].build()
        torch.manual_seed(1)
        parts = {**bare.components, **self.parts()}
        pipe = type(bare)(**parts, **{key: False for key in ("requires_safety_checker",) if key in bare.config})
        pipe.set_progress_bar_config(disable=True)
        return pipe


# --- parts -----------------------------------------------------------------------------------------------


def words(length: int = 8) -> PreTrainedTokenizerFast:
    """A word a token, in prompts of at most `length`, with a chat template that says what is said."""
    made = tokenizer()
    made.model_max_length, made.chat_template, made.padding_side = length, CHAT, "right"
    return made


def small(config: type, **extra: Any) -> Any:
    """The config of a language model of one layer."""
    return config(
        **{
            "vocab_size": 8,
            "hidden_size": WIDTH,
            "intermediate_size": WIDTH,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "max_position_embeddings": 512,
            "pad_token_id": 0,
            "bos_token_id": 0,
            "eos_token_id": 0,
            **extra,
        }
    )


def clip(projected: bool = False) -> Any:
    """A CLIP text encoder."""
    if projected:
        return CLIPTextModelWithProjection(text_config(projection_dim=WIDTH))
    return CLIPTextModel(text_config())


def t5(kind: Any = transformers.T5EncoderModel, width: int = WIDTH) -> Any:
    """A T5 encoder, or one alike."""
    sizes = {"d_model": width, "d_kv": 8, "d_ff": WIDTH, "num_layers": 1, "num_heads": 2, "vocab_size": 8}
    return kind(kind.config_class(**sizes))


def clips() -> dict[str, Any]:
    return {"text_encoder": clip(), "tokenizer": words()}


def t5_alone() -> dict[str, Any]:
    return {"text_encoder": t5(), "tokenizer": words()}


def flux_parts() -> dict[str, Any]:
    return {**clips(), "text_encoder_2": t5(), "tokenizer_2": words()}


def xl_parts() -> dict[str, Any]:
    """Two encoders, whose widths add up to that of the network."""
    half = text_config(projection_dim=WIDTH)
    half.hidden_size = half.intermediate_size = WIDTH // 2
    return {
        "text_encoder": CLIPTextModel(half),
        "tokenizer": words(),
        "text_encoder_2": CLIPTextModelWithProjection(half),
        "tokenizer_2": words(),
    }


def sd3_parts() -> dict[str, Any]:
    config = text_config(projection_dim=WIDTH // 2, hidden_size=WIDTH // 2, intermediate_size=WIDTH)
    encoders = {f"text_encoder{n}": CLIPTextModelWithProjection(config) for n in ("", "_2")}
    names = ("tokenizer", "tokenizer_2", "tokenizer_3")
    return {**encoders, "text_encoder_3": t5(), **{name: words() for name in names}}


def qwen_parts() -> dict[str, Any]:
    sizes = {"hidden_size": WIDTH, "num_attention_heads": 2, "rope_parameters": None}
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6}
    text = {**small(dict), "rope_parameters": rope, "rope_scaling": rope}
    config = transformers.Qwen2_5_VLConfig(
        text_config=text,
        vision_config={
            "depth": 1,
            "hidden_size": WIDTH,
            "num_heads": 2,
            "out_hidden_size": WIDTH,
            "intermediate_size": WIDTH,
        },
        vision_start_token_id=1,
        vision_end_token_id=1,
        image_token_id=1,
        video_token_id=1,
    )
    del sizes
    return {
        "text_encoder": transformers.Qwen2_5_VLForConditionalGeneration(config),
        "tokenizer": words(128),
    }


def qwen_vae() -> Any:
    return diffusers.AutoencoderKLQwenImage(
        base_dim=4, z_dim=4, dim_mult=[1, 2, 2, 2], num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[2.0] * 4
    )


def gemma_parts(kind: Any, config: Any) -> dict[str, Any]:
    return {"text_encoder": kind(small(config)), "tokenizer": words(64)}


def dc_vae() -> Any:
    return diffusers.AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
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
        scaling_factor=0.41407,
    )


def hunyuan_vae() -> Any:
    return diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        mid_block_add_attention=True,
    )


def mochi_vae() -> Any:
    return diffusers.AutoencoderKLMochi(
        latent_channels=4,
        out_channels=3,
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
        latents_mean=(0.0,) * 4,
        latents_std=(1.0,) * 4,
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


def allegro_vae() -> Any:
    return diffusers.AutoencoderKLAllegro(
        down_block_types=("AllegroDownBlock3D",) * 4,
        up_block_types=("AllegroUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    )


TOLD: dict[str, Told] = {
    "stable_diffusion": Told(clips),
    "stable_diffusion_2": Told(clips),
    "stable_diffusion_xl": Told(xl_parts),
    "playground": Told(xl_parts),
    "animate_diff": Told(clips, frames=2),
    "text_to_video": Told(clips, frames=2),
    "pixart_alpha": Told(t5_alone),
    "pixart_sigma": Told(t5_alone),
    "latte": Told(t5_alone, frames=2),
    "stable_diffusion_3": Told(sd3_parts),
    "flux": Told(flux_parts),
    "chroma": Told(t5_alone),
    "qwen_image": Told(lambda: {**qwen_parts(), "vae": qwen_vae()}, size=WIDE),
    "aura_flow": Told(lambda: {"text_encoder": t5(transformers.UMT5EncoderModel), "tokenizer": words()}),
    "lumina": Told(lambda: {**gemma_parts(transformers.GemmaModel, transformers.GemmaConfig)}, size=SQUARE),
    "lumina_2": Told(lambda: {**gemma_parts(transformers.Gemma2Model, transformers.Gemma2Config)}, size=SQUARE),
    "sana": Told(lambda: {**gemma_parts(transformers.Gemma2Model, transformers.Gemma2Config), "vae": dc_vae()}),
    "cogview_3": Told(t5_alone),
    "cogview_4": Told(
        lambda: {"text_encoder": transformers.GlmModel(small(transformers.GlmConfig)), "tokenizer": words(64)}
    ),
    "z_image": Told(
        lambda: {
            "text_encoder": transformers.Qwen3Model(small(transformers.Qwen3Config, num_hidden_layers=2)),
            "tokenizer": words(64),
        }
    ),
    "deepfloyd_if": Told(t5_alone, size={"height": 8, "width": 8}),
    "wan": Told(
        lambda: {"text_encoder": t5(transformers.UMT5EncoderModel), "tokenizer": words(512), "vae": wan_vae()},
        frames=5,
    ),
    "wan_2_2": Told(
        lambda: {"text_encoder": t5(transformers.UMT5EncoderModel), "tokenizer": words(512), "vae": wan_vae()},
        frames=5,
    ),
    "skyreels": Told(
        lambda: {"text_encoder": t5(transformers.UMT5EncoderModel), "tokenizer": words(512), "vae": wan_vae()},
        frames=5,
    ),
    "ltx": Told(lambda: {**t5_alone(), "vae": ltx_vae()}, size={"height": 32, "width": 32}, frames=9),
    "ltx_condition": Told(lambda: {**t5_alone(), "vae": ltx_vae()}, size={"height": 32, "width": 32}, frames=9),
    "mochi": Told(lambda: {**t5_alone(), "vae": mochi_vae()}, size=WIDE, frames=7),
    "cogvideox": Told(lambda: {**t5_alone(), "vae": cogvideox_vae()}, size=WIDE, frames=5),
    "allegro": Told(lambda: {**t5_alone(), "vae": allegro_vae()}, size=WIDE, frames=5),
    "kandinsky_3": Told(
        lambda: {
            **t5_alone(),
            "movq": diffusers.VQModel(
                block_out_channels=(32, 32),
                latent_channels=4,
                vq_embed_dim=4,
                down_block_types=("DownEncoderBlock2D",) * 2,
                up_block_types=("UpDecoderBlock2D",) * 2,
            ),
        },
        size=WIDE,
    ),
}
