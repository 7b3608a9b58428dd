"""Tiny pipelines built from their own classes: random weights, no downloads."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, PreTrainedTokenizerFast

SD_CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}


def vae(**extra: object) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=[8, 8],
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
        **extra,
    )


def unet(**extra: object) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
        **extra,
    )


def tokenizer() -> PreTrainedTokenizerFast:
    words = {word: i for i, word in enumerate(["<pad>", "<unk>", "a", "small", "red", "circle"])}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, model_max_length=8, pad_token="<pad>", unk_token="<unk>", eos_token="<pad>"
    )


def text_config(**extra: object) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=6,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=8,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        **extra,
    )


def stable_diffusion(kind: type = StableDiffusionPipeline) -> StableDiffusionPipeline:
    torch.manual_seed(0)
    return quiet(
        kind(
            vae=vae(),
            text_encoder=CLIPTextModel(text_config()),
            tokenizer=tokenizer(),
            unet=unet(),
            scheduler=DDIMScheduler(**SD_CONFIG),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    )


def stable_diffusion_img2img() -> StableDiffusionImg2ImgPipeline:
    return stable_diffusion(StableDiffusionImg2ImgPipeline)


def stable_diffusion_xl() -> StableDiffusionXLPipeline:
    torch.manual_seed(0)
    addition = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 8 * 6 + 16,
    }
    second = CLIPTextModelWithProjection(text_config(projection_dim=16))
    return quiet(
        StableDiffusionXLPipeline(
            vae=vae(),
            text_encoder=None,
            text_encoder_2=second,
            tokenizer=None,
            tokenizer_2=tokenizer(),
            unet=unet(**addition),
            scheduler=DDIMScheduler(**SD_CONFIG),
            force_zeros_for_empty_prompt=False,
            add_watermarker=False,
        )
    )


def pixart() -> PixArtAlphaPipeline:
    torch.manual_seed(0)
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        sample_size=8,
        patch_size=2,
        caption_channels=16,
        cross_attention_dim=16,
        use_additional_conditions=False,
    )
    return quiet(
        PixArtAlphaPipeline(
            tokenizer=None,
            text_encoder=None,
            vae=vae(),
            transformer=transformer,
            scheduler=DDIMScheduler(**SD_CONFIG),
        )
    )


def pixart_inputs(batch: int = 1) -> dict[str, object]:
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(batch, 5)
    embeds = torch.randn(2, batch, 5, 16, generator=generator)
    return {
        "prompt_embeds": embeds[0],
        "prompt_attention_mask": mask,
        "negative_prompt": None,
        "negative_prompt_embeds": embeds[1],
        "negative_prompt_attention_mask": mask,
        "use_resolution_binning": False,
        "height": 16,
        "width": 16,
    }


def flux(dynamic: bool = True):  # type: ignore[no-untyped-def]
    from diffusers import FluxPipeline, FluxTransformer2DModel

    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(2, 2, 4),
        guidance_embeds=False,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=dynamic)
    return quiet(
        FluxPipeline(
            scheduler=scheduler,
            vae=vae(),
            text_encoder=None,
            tokenizer=None,
            text_encoder_2=None,
            tokenizer_2=None,
            transformer=transformer,
        )
    )


def flux_inputs() -> dict[str, object]:
    generator = torch.Generator().manual_seed(0)
    return {
        "prompt_embeds": torch.randn(1, 5, 16, generator=generator),
        "pooled_prompt_embeds": torch.randn(1, 16, generator=generator),
        "height": 16,
        "width": 16,
    }


def sd3():  # type: ignore[no-untyped-def]
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=16,
        out_channels=4,
    )
    return quiet(
        StableDiffusion3Pipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=vae(),
            transformer=transformer,
            text_encoder=None,
            tokenizer=None,
            text_encoder_2=None,
            tokenizer_2=None,
            text_encoder_3=None,
            tokenizer_3=None,
        )
    )


def sd3_inputs() -> dict[str, object]:
    generator = torch.Generator().manual_seed(0)
    embeds, pooled = torch.randn(2, 1, 5, 16, generator=generator), torch.randn(2, 1, 16, generator=generator)
    return {
        "prompt_embeds": embeds[0],
        "negative_prompt_embeds": embeds[1],
        "pooled_prompt_embeds": pooled[0],
        "negative_pooled_prompt_embeds": pooled[1],
        "height": 16,
        "width": 16,
    }


def bundled_folder() -> Path:
    return Path(__file__).parents[1] / "fastsample" / "demo" / "text_to_image"


def quiet(pipe):  # type: ignore[no-untyped-def]
    pipe.set_progress_bar_config(disable=True)
    return pipe
