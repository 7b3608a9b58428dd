"""Tiny real pipelines of many families, each with a scheduler configured as published models of it have it.

Random weights of a few thousand parameters, embeddings instead of text encoders wherever a pipeline takes them,
and latents out, so that a pipeline runs in a fraction of a second. `ZOO` holds them by name.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.guiders import ClassifierFreeGuidance
from diffusers.pipelines.ltx2 import LTX2TextConnectors
from diffusers.pipelines.stable_audio import StableAudioProjectionModel
from pipelines import SD_CONFIG, flux_inputs, pixart_inputs, sd3_inputs, text_config, tokenizer, unet, vae
from torch import Tensor
from transformers import (
    CLIPImageProcessor,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

Inputs = Callable[[], dict[str, Any]]


@dataclass(frozen=True)
class Entry:
    """A pipeline, what to call it with, and why its own scheduler does not end on clean data ("": it does)."""

    name: str
    build: Callable[[], Any]
    inputs: Inputs
    steps: int
    own_misses: str = ""

    def sample(self, pipe: Any) -> Tensor:
        """What `pipe` gives for the inputs, from the same seed every time."""
        inputs = {"output_type": "latent", "num_inference_steps": self.steps, **self.inputs()}
        result = pipe(**inputs, generator=torch.Generator().manual_seed(0))[0]
        return torch.as_tensor(result)


ZOO: dict[str, Entry] = {}


def entry(
    inputs: Inputs, *, steps: int = 4, own_misses: str = ""
) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Put the decorated builder into the zoo under its name."""

    def register(build: Callable[[], Any]) -> Callable[[], Any]:
        @functools.wraps(build)
        def seeded() -> Any:
            torch.manual_seed(0)
            return build()

        ZOO[build.__name__] = Entry(build.__name__, seeded, inputs, steps, own_misses)
        return seeded

    return register


# --- parts -----------------------------------------------------------------------------------------------


def assemble(kind: type, scheduler: Any, **parts: Any) -> Any:
    """A pipeline of class `kind` from `parts`; the required ones that are not given are None."""
    required = [p.name for p in inspect.signature(kind).parameters.values() if p.default is p.empty]
    pipe = kind(**{**dict.fromkeys(required), "scheduler": scheduler, **parts})
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drawn(**shapes: tuple[int, ...]) -> dict[str, Tensor]:
    """Seeded normal tensors of the given shapes."""
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def picture(*shape: int) -> Tensor:
    """A picture with values in [0, 1], by default (1, 3, 16, 16)."""
    return torch.rand(shape or (1, 3, 16, 16), generator=torch.Generator().manual_seed(1))


def masks(*suffixes: str, length: int, dtype: torch.dtype = torch.int64) -> dict[str, Tensor]:
    """Attention masks of a prompt and a negative one, all ones."""
    names = [f"{start}prompt_attention_mask{suffix}" for start in ("", "negative_") for suffix in suffixes]
    return {name: torch.ones(1, length, dtype=dtype) for name in names}


def controlnet(network: diffusers.UNet2DConditionModel) -> diffusers.ControlNetModel:
    """For `network`, with conditions as large as its pictures."""
    return diffusers.ControlNetModel.from_unet(network, conditioning_embedding_out_channels=(8, 16))


ONES = torch.ones(1, 5, dtype=torch.int64)
SQUARE = {"height": 16, "width": 16}  # 8 x 8 latents with `vae()`
WIDE = {"height": 64, "width": 64}  # 8 x 8 without an autoencoder, where a factor of 8 is assumed
BIG = {"height": 128, "width": 128}  # 4 x 4, where one of 32 is
EVERYWHERE = torch.ones(1, 1, 16, 16)  # a mask that keeps nothing, as what is kept need not be the clean sample


def text_inputs(**extra: Any) -> dict[str, Any]:
    """A prompt and a negative prompt for `unet()`."""
    return {**drawn(prompt_embeds=(1, 5, 16), negative_prompt_embeds=(1, 5, 16)), **extra}


def xl_inputs(**extra: Any) -> dict[str, Any]:
    """As `text_inputs`, with Stable Diffusion XL's pooled embeddings."""
    return text_inputs(**drawn(pooled_prompt_embeds=(1, 16), negative_pooled_prompt_embeds=(1, 16)), **extra)


# --- Stable Diffusion ------------------------------------------------------------------------------------

SD_SAFETY = {"requires_safety_checker": False}
NOT_CLEAN = "set_alpha_to_one is False: it ends at the first training timestep, with a little noise"


def sd_scheduler(name: str, **config: Any) -> Any:
    """Scheduler `name` of diffusers with Stable Diffusion's betas."""
    return getattr(diffusers, name).from_config({**SD_CONFIG, **config})


def pndm() -> Any:
    """Stable Diffusion 1's."""
    return sd_scheduler("PNDMScheduler", skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1)


@entry(lambda: text_inputs(**SQUARE), own_misses=NOT_CLEAN)
def stable_diffusion() -> Any:
    return assemble(diffusers.StableDiffusionPipeline, pndm(), vae=vae(), unet=unet(), **SD_SAFETY)


@entry(lambda: text_inputs(**SQUARE), own_misses=NOT_CLEAN)
def stable_diffusion_2() -> Any:
    own = sd_scheduler("DDIMScheduler", prediction_type="v_prediction", set_alpha_to_one=False, steps_offset=1)
    return assemble(diffusers.StableDiffusionPipeline, own, vae=vae(), unet=unet(), **SD_SAFETY)


@entry(lambda: text_inputs(image=picture(), strength=0.5), steps=8)
def stable_diffusion_turbo_img2img() -> Any:
    own = sd_scheduler("EulerDiscreteScheduler", timestep_spacing="trailing")
    return assemble(diffusers.StableDiffusionImg2ImgPipeline, own, vae=vae(), unet=unet(), **SD_SAFETY)


@entry(lambda: text_inputs(ip_adapter_image_embeds=[torch.ones(2, 1, 16)], **SQUARE), own_misses=NOT_CLEAN)
def stable_diffusion_ip_adapter() -> Any:
    network = unet()
    network._load_ip_adapter_weights([ip_adapter_weights(network)])
    return assemble(diffusers.StableDiffusionPipeline, pndm(), vae=vae(), unet=network, **SD_SAFETY)


def ip_adapter_weights(network: diffusers.UNet2DConditionModel) -> dict[str, dict[str, Tensor]]:
    """An IP-Adapter of four tokens for `network`, read from image embeddings of 16 numbers."""
    width, tokens = network.config.cross_attention_dim, 4
    projection = diffusers.models.embeddings.ImageProjection(16, width, tokens).state_dict()
    image_proj = {key.replace("image_embeds", "proj"): value for key, value in projection.items()}
    layers: dict[str, Tensor] = {}
    for index, name in enumerate(network.attn_processors):
        if name.endswith("attn2.processor"):
            inner = network.get_submodule(name.removesuffix(".processor")).inner_dim
            layers |= {f"{index}.to_{part}_ip.weight": 0.1 * torch.randn(inner, width) for part in "kv"}
    return {"image_proj": image_proj, "ip_adapter": layers}


@entry(lambda: text_inputs(image=picture(), mask_image=EVERYWHERE, **SQUARE), own_misses=NOT_CLEAN)
def stable_diffusion_inpaint() -> Any:
    network = unet(in_channels=9)
    return assemble(diffusers.StableDiffusionInpaintPipeline, pndm(), vae=vae(), unet=network, **SD_SAFETY)


@entry(lambda: text_inputs(image=picture()))
def stable_diffusion_controlnet() -> Any:
    own, network = sd_scheduler("UniPCMultistepScheduler"), unet()
    parts = {"vae": vae(), "unet": network, "controlnet": controlnet(network), **SD_SAFETY}
    return assemble(diffusers.StableDiffusionControlNetPipeline, own, **parts)


@entry(lambda: text_inputs(image=picture(1, 3, 8, 8)), own_misses=NOT_CLEAN)
def stable_diffusion_upscale() -> Any:
    own = sd_scheduler(
        "DDIMScheduler", beta_start=1e-4, beta_end=0.02, prediction_type="v_prediction", set_alpha_to_one=False
    )
    parts = {"vae": vae(), "unet": unet(in_channels=7, num_class_embeds=1000)}
    noising = sd_scheduler("DDPMScheduler", beta_schedule="squaredcos_cap_v2")
    return assemble(diffusers.StableDiffusionUpscalePipeline, own, low_res_scheduler=noising, **parts)


@entry(lambda: text_inputs(image=picture()))
def stable_diffusion_instruct_pix2pix() -> Any:
    own = sd_scheduler("EulerAncestralDiscreteScheduler")
    parts = {"vae": vae(), "unet": unet(in_channels=8), **SD_SAFETY}
    return assemble(diffusers.StableDiffusionInstructPix2PixPipeline, own, **parts)


@entry(lambda: text_inputs(num_frames=2, **SQUARE))
def animate_diff() -> Any:
    own = sd_scheduler("DDIMScheduler", beta_schedule="linear", timestep_spacing="linspace", steps_offset=1)
    motion = diffusers.MotionAdapter(
        block_out_channels=(8, 16), motion_layers_per_block=1, motion_norm_num_groups=4, motion_num_attention_heads=2
    )
    return assemble(diffusers.AnimateDiffPipeline, own, vae=vae(), unet=unet(), motion_adapter=motion)


@entry(lambda: text_inputs(num_frames=2, **SQUARE), own_misses=NOT_CLEAN)
def text_to_video() -> Any:
    own = sd_scheduler("DDIMScheduler", set_alpha_to_one=False, steps_offset=1)
    network = diffusers.UNet3DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock3D", "CrossAttnDownBlock3D"),
        up_block_types=("CrossAttnUpBlock3D", "UpBlock3D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    return assemble(diffusers.TextToVideoSDPipeline, own, vae=vae(), unet=network)


@entry(lambda: {"image": picture(1, 3, 32, 32), "height": 32, "width": 32, "num_frames": 2})
def stable_video_diffusion() -> Any:
    own = sd_scheduler(
        "EulerDiscreteScheduler",
        prediction_type="v_prediction",
        sigma_min=0.002,
        sigma_max=700.0,
        timestep_type="continuous",
        timestep_spacing="leading",
        steps_offset=1,
        use_karras_sigmas=True,
    )
    network = diffusers.UNetSpatioTemporalConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlockSpatioTemporal", "CrossAttnDownBlockSpatioTemporal"),
        up_block_types=("CrossAttnUpBlockSpatioTemporal", "UpBlockSpatioTemporal"),
        cross_attention_dim=16,
        num_attention_heads=(2, 2),
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
    )
    coder = diffusers.AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2
    )
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        projection_dim=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
    )
    parts = {
        "image_encoder": CLIPVisionModelWithProjection(vision),
        "feature_extractor": CLIPImageProcessor(crop_size=32, size=32),
    }
    return assemble(diffusers.StableVideoDiffusionPipeline, own, vae=coder, unet=network, **parts)


# --- Stable Diffusion XL ---------------------------------------------------------------------------------


def xl_unet(**extra: Any) -> diffusers.UNet2DConditionModel:
    """Told of sizes and of the pooled embeddings; a refiner of one number less."""
    sizes = 5 if extra.pop("refiner", False) else 6
    return unet(
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=8 * sizes + 16,
        **extra,
    )


def xl_euler() -> Any:
    """Stable Diffusion XL's."""
    return sd_scheduler("EulerDiscreteScheduler", timestep_spacing="leading", steps_offset=1)


def xl_pipeline(kind: type, own: Any, network: Any, **parts: Any) -> Any:
    """One of the pipelines for Stable Diffusion XL."""
    return assemble(kind, own, vae=vae(), unet=network, **parts, add_watermarker=False)


@entry(lambda: xl_inputs(**SQUARE))
def stable_diffusion_xl() -> Any:
    return xl_pipeline(diffusers.StableDiffusionXLPipeline, xl_euler(), xl_unet())


@entry(lambda: xl_inputs(image=picture(), strength=0.5), steps=8)
def stable_diffusion_xl_img2img() -> Any:
    return xl_pipeline(diffusers.StableDiffusionXLImg2ImgPipeline, xl_euler(), xl_unet())


@entry(lambda: xl_inputs(image=picture(), mask_image=EVERYWHERE, **SQUARE), steps=5)
def stable_diffusion_xl_inpaint() -> Any:
    return xl_pipeline(diffusers.StableDiffusionXLInpaintPipeline, xl_euler(), xl_unet(in_channels=9))


@entry(lambda: xl_inputs(image=picture(), **SQUARE))
def stable_diffusion_xl_controlnet() -> Any:
    network = xl_unet()
    control = {"controlnet": controlnet(network)}
    return xl_pipeline(diffusers.StableDiffusionXLControlNetPipeline, xl_euler(), network, **control)


class BaseAndRefiner:
    """Stable Diffusion XL's two networks: the refiner goes on at `SPLIT` of the way, with the same scheduler."""

    SPLIT = 0.5

    def __init__(self) -> None:
        self.base = xl_pipeline(diffusers.StableDiffusionXLPipeline, xl_euler(), xl_unet())
        refiner = {"network": xl_unet(refiner=True), "requires_aesthetics_score": True}
        self.refiner = xl_pipeline(diffusers.StableDiffusionXLImg2ImgPipeline, xl_euler(), **refiner)

    @property
    def scheduler(self) -> Any:
        """The one of both."""
        return self.base.scheduler

    @scheduler.setter
    def scheduler(self, value: Any) -> None:
        self.base.scheduler = self.refiner.scheduler = value

    def __call__(self, height: int, width: int, **inputs: Any) -> Any:
        latents = self.base(**inputs, height=height, width=width, denoising_end=self.SPLIT)[0]
        return self.refiner(**inputs, image=latents, denoising_start=self.SPLIT)


@entry(lambda: xl_inputs(**SQUARE), steps=8)
def stable_diffusion_xl_refiner() -> Any:
    return BaseAndRefiner()


@entry(lambda: xl_inputs(**SQUARE))
def playground() -> Any:
    own = diffusers.EDMDPMSolverMultistepScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5)
    return xl_pipeline(diffusers.StableDiffusionXLPipeline, own, xl_unet())


@entry(lambda: {**drawn(image_embeds=(1, 16), negative_image_embeds=(1, 16)), **SQUARE})
def kandinsky_2_2() -> Any:
    own = sd_scheduler("DDIMScheduler", beta_schedule="linear")
    network = diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=8,
        addition_embed_type="image",
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        block_out_channels=(32, 32),
        layers_per_block=1,
        encoder_hid_dim=16,
        encoder_hid_dim_type="image_proj",
        cross_attention_dim=16,
        attention_head_dim=8,
        resnet_time_scale_shift="scale_shift",
    )
    movq = diffusers.VQModel(
        block_out_channels=(32, 32),
        latent_channels=4,
        vq_embed_dim=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    return assemble(diffusers.KandinskyV22Pipeline, own, unet=network, movq=movq)


@entry(lambda: text_inputs(attention_mask=ONES, negative_attention_mask=ONES, **WIDE))
def kandinsky_3() -> Any:
    own = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=True, steps_offset=1)
    network = diffusers.Kandinsky3UNet(
        in_channels=4,
        time_embedding_dim=4,
        groups=2,
        attention_head_dim=4,
        layers_per_block=3,
        block_out_channels=(32, 64),
        cross_attention_dim=4,
        encoder_hid_dim=16,
    )
    return assemble(diffusers.Kandinsky3Pipeline, own, unet=network)


@entry(lambda: text_inputs(output_type="pt", height=8, width=8))
def deepfloyd_if() -> Any:
    own = diffusers.DDPMScheduler(
        beta_schedule="squaredcos_cap_v2",
        thresholding=True,
        dynamic_thresholding_ratio=0.95,
        sample_max_value=1.5,
        variance_type="learned_range",
    )
    network = diffusers.UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(32, 32),
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        in_channels=3,
        out_channels=6,
        cross_attention_dim=32,
        encoder_hid_dim=16,
        attention_head_dim=8,
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
        cross_attention_norm="group_norm",
        resnet_time_scale_shift="scale_shift",
    )
    return assemble(diffusers.IFPipeline, own, unet=network, **SD_SAFETY)


@entry(lambda: {"prompt": "a red circle"})
def shap_e() -> Any:
    own = diffusers.HeunDiscreteScheduler(
        beta_schedule="exp",
        num_train_timesteps=1024,
        prediction_type="sample",
        use_karras_sigmas=True,
        clip_sample=True,
    )
    network = diffusers.PriorTransformer(
        num_attention_heads=2,
        attention_head_dim=8,
        embedding_dim=8,
        num_embeddings=4,
        embedding_proj_dim=16,
        time_embed_dim=16,
        num_layers=1,
        clip_embed_dim=16,
        additional_embeddings=0,
        time_embed_act_fn="gelu",
        norm_in_type="layer",
        encoder_hid_proj_type=None,
        added_emb_type=None,
    )
    encoder = CLIPTextModelWithProjection(text_config(projection_dim=16))
    parts = {"prior": network, "text_encoder": encoder, "tokenizer": tokenizer()}
    return assemble(diffusers.ShapEPipeline, own, **parts)


# --- diffusion transformers with discrete betas ----------------------------------------------------------


def dpm_solver() -> Any:
    """PixArt's."""
    return diffusers.DPMSolverMultistepScheduler(beta_schedule="linear")


def caption_transformer(kind: type, **extra: Any) -> Any:
    """PixArt's network or one alike."""
    return kind(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        sample_size=8,
        patch_size=2,
        caption_channels=16,
        cross_attention_dim=16,
        **extra,
    )


@entry(pixart_inputs)
def pixart_alpha() -> Any:
    network = caption_transformer(diffusers.PixArtTransformer2DModel, use_additional_conditions=False)
    return assemble(diffusers.PixArtAlphaPipeline, dpm_solver(), vae=vae(), transformer=network)


@entry(pixart_inputs)
def pixart_sigma() -> Any:
    network = caption_transformer(diffusers.PixArtTransformer2DModel, use_additional_conditions=False)
    return assemble(diffusers.PixArtSigmaPipeline, dpm_solver(), vae=vae(), transformer=network)


@entry(lambda: text_inputs(negative_prompt=None, video_length=2, **SQUARE))
def latte() -> Any:
    own = diffusers.DDIMScheduler(beta_schedule="linear", clip_sample=False)
    network = caption_transformer(diffusers.LatteTransformer3DModel, norm_type="ada_norm_single", video_length=2)
    return assemble(diffusers.LattePipeline, own, vae=vae(), transformer=network)


@entry(lambda: {"class_labels": [1]})
def dit() -> Any:
    network = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        sample_size=8,
        patch_size=2,
    )
    own = diffusers.DDIMScheduler(clip_sample=False)
    return assemble(diffusers.DiTPipeline, own, vae=vae(), transformer=network)


@entry(
    lambda: {
        **drawn(prompt_embeds=(1, 5, 16), prompt_embeds_2=(1, 5, 16)),
        **drawn(negative_prompt_embeds=(1, 5, 16), negative_prompt_embeds_2=(1, 5, 16)),
        **masks("", "_2", length=5),
        "use_resolution_binning": False,
        **SQUARE,
    }
)
def hunyuan_dit() -> Any:
    own = diffusers.DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.03,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        steps_offset=1,
    )
    network = diffusers.HunyuanDiT2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        patch_size=2,
        hidden_size=16,
        sample_size=8,
        num_layers=2,
        cross_attention_dim=16,
        cross_attention_dim_t5=16,
        pooled_projection_dim=16,
        text_len=5,
        text_len_t5=5,
    )
    return assemble(diffusers.HunyuanDiTPipeline, own, vae=vae(), transformer=network, **SD_SAFETY)


# --- flow-matching images --------------------------------------------------------------------------------


def flow_euler(**config: Any) -> FlowMatchEulerDiscreteScheduler:
    """The scheduler of most flow-matching models."""
    return FlowMatchEulerDiscreteScheduler(**config)


def flux_scheduler() -> Any:
    """Flux's."""
    return flow_euler(shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15)


def flux_transformer(kind: type = diffusers.FluxTransformer2DModel, **extra: Any) -> Any:
    """Flux's network, or one alike."""
    pooled = {"pooled_projection_dim": 16} if kind is diffusers.FluxTransformer2DModel else {}
    config = {
        "patch_size": 1,
        "in_channels": 16,
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 16,
        "axes_dims_rope": (2, 2, 4),
    }
    return kind(**{**config, **pooled, **extra})


def sd3_transformer() -> diffusers.SD3Transformer2DModel:
    """Stable Diffusion 3's network."""
    return diffusers.SD3Transformer2DModel(
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


def shifted_vae() -> diffusers.AutoencoderKL:
    """`vae()` with latents that are also shifted."""
    coder = vae()
    coder.register_to_config(shift_factor=0.1)
    return coder


def image_to_image(inputs: dict[str, Any], **extra: Any) -> dict[str, Any]:
    """`inputs` with a picture and a strength of one half."""
    return {**inputs, "image": picture(), "strength": 0.5, **extra}


@entry(sd3_inputs)
def stable_diffusion_3() -> Any:
    return assemble(
        diffusers.StableDiffusion3Pipeline, flow_euler(shift=3.0), vae=shifted_vae(), transformer=sd3_transformer()
    )


@entry(lambda: image_to_image(sd3_inputs()), steps=8)
def stable_diffusion_3_img2img() -> Any:
    return assemble(
        diffusers.StableDiffusion3Img2ImgPipeline,
        flow_euler(shift=3.0),
        vae=shifted_vae(),
        transformer=sd3_transformer(),
    )


@entry(flux_inputs)
def flux() -> Any:
    return assemble(diffusers.FluxPipeline, flux_scheduler(), vae=shifted_vae(), transformer=flux_transformer())


@entry(lambda: image_to_image(flux_inputs()), steps=8)
def flux_img2img() -> Any:
    return assemble(
        diffusers.FluxImg2ImgPipeline, flux_scheduler(), vae=shifted_vae(), transformer=flux_transformer()
    )


@entry(lambda: image_to_image(flux_inputs(), mask_image=EVERYWHERE), steps=8)
def flux_inpaint() -> Any:
    return assemble(
        diffusers.FluxInpaintPipeline, flux_scheduler(), vae=shifted_vae(), transformer=flux_transformer()
    )


@entry(lambda: {**flux_inputs(), "image": picture(), "mask_image": EVERYWHERE})
def flux_fill() -> Any:
    network = flux_transformer(in_channels=16 + 16 + 4 * 2 * 2, out_channels=16, guidance_embeds=True)
    return assemble(diffusers.FluxFillPipeline, flux_scheduler(), vae=shifted_vae(), transformer=network)


@entry(lambda: {**flux_inputs(), "control_image": picture()})
def flux_control() -> Any:
    network = flux_transformer(in_channels=16 + 16, out_channels=16)
    return assemble(diffusers.FluxControlPipeline, flux_scheduler(), vae=shifted_vae(), transformer=network)


@entry(lambda: {**flux_inputs(), "image": picture(), "_auto_resize": False, "max_area": 256})
def flux_kontext() -> Any:
    return assemble(
        diffusers.FluxKontextPipeline, flux_scheduler(), vae=shifted_vae(), transformer=flux_transformer()
    )


@entry(lambda: text_inputs(**SQUARE))
def bria() -> Any:
    network = flux_transformer(diffusers.BriaTransformer2DModel, pooled_projection_dim=None, axes_dims_rope=(0, 4, 4))
    return assemble(diffusers.BriaPipeline, flux_scheduler(), vae=shifted_vae(), transformer=network)


@entry(lambda: {**drawn(prompt_embeds=(1, 5, 16)), **SQUARE, "text_encoder_out_layers": (1,)})
def flux_2() -> Any:
    network = flux_transformer(
        diffusers.Flux2Transformer2DModel, timestep_guidance_channels=16, axes_dims_rope=(2, 2, 2, 2)
    )
    coder = diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
    )
    return assemble(diffusers.Flux2Pipeline, flux_scheduler(), vae=coder, transformer=network)


@entry(lambda: text_inputs(**masks("", length=5, dtype=torch.float32), **SQUARE))
def chroma() -> Any:
    network = flux_transformer(
        diffusers.ChromaTransformer2DModel,
        approximator_hidden_dim=16,
        approximator_layers=1,
        approximator_num_channels=16,
    )
    return assemble(
        diffusers.ChromaPipeline, flow_euler(use_beta_sigmas=True), vae=shifted_vae(), transformer=network
    )


@entry(lambda: {**text_inputs(prompt_embeds_mask=ONES), **WIDE, "true_cfg_scale": 1.0})
def qwen_image() -> Any:
    own = flow_euler(
        base_shift=0.5, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02, use_dynamic_shifting=True
    )
    network = diffusers.QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(2, 2, 4),
    )
    return assemble(diffusers.QwenImagePipeline, own, transformer=network)


FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}


@entry(lambda: text_inputs(negative_prompt=None, **masks("", length=5), use_resolution_binning=False, **BIG))
def sana() -> Any:
    network = diffusers.SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=4,
    )
    return assemble(diffusers.SanaPipeline, diffusers.DPMSolverMultistepScheduler(**FLOW), transformer=network)


@entry(lambda: text_inputs(negative_prompt=None, **masks("", length=5), use_resolution_binning=False, **SQUARE))
def prx() -> Any:
    network = diffusers.PRXTransformer2DModel(
        patch_size=2,
        in_channels=4,
        context_in_dim=16,
        hidden_size=16,
        mlp_ratio=2.0,
        num_heads=2,
        depth=1,
        axes_dim=[4, 4],
    )
    return assemble(diffusers.PRXPipeline, flow_euler(shift=3.0), vae=vae(), transformer=network)


@entry(
    lambda: text_inputs(negative_prompt=None, **masks("", length=5), use_resolution_binning=False, frames=5, **WIDE)
)
def sana_video() -> Any:
    network = diffusers.SanaVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=1,
        num_cross_attention_heads=2,
        cross_attention_head_dim=12,
        cross_attention_dim=24,
        caption_channels=16,
        sample_size=8,
        patch_size=(1, 2, 2),
        rope_max_seq_len=32,
    )
    own = diffusers.DPMSolverMultistepScheduler(**{**FLOW, "flow_shift": 8.0})
    return assemble(diffusers.SanaVideoPipeline, own, transformer=network)


@entry(lambda: text_inputs(**masks("", length=5), **SQUARE))
def aura_flow() -> Any:
    network = diffusers.AuraFlowTransformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=16,
        out_channels=4,
        pos_embed_max_size=64,
    )
    return assemble(diffusers.AuraFlowPipeline, flow_euler(shift=1.73), vae=shifted_vae(), transformer=network)


@entry(lambda: text_inputs(**masks("", length=5), **WIDE))
def lumina() -> Any:
    network = diffusers.LuminaNextDiT2DModel(
        sample_size=4,
        patch_size=2,
        in_channels=4,
        hidden_size=16,
        num_layers=1,
        num_attention_heads=2,
        num_kv_heads=2,
        multiple_of=16,
        cross_attention_dim=16,
    )
    return assemble(diffusers.LuminaPipeline, flow_euler(), vae=shifted_vae(), transformer=network)


@entry(lambda: text_inputs(**masks("", length=5), **WIDE))
def lumina_2() -> Any:
    network = diffusers.Lumina2Transformer2DModel(
        sample_size=4,
        patch_size=2,
        in_channels=4,
        hidden_size=16,
        num_layers=1,
        num_attention_heads=2,
        num_kv_heads=2,
        multiple_of=16,
        ffn_dim_multiplier=None,
        axes_dim_rope=(4, 2, 2),
        cap_feat_dim=16,
    )
    return assemble(diffusers.Lumina2Pipeline, flow_euler(shift=6.0), vae=shifted_vae(), transformer=network)


@entry(lambda: {name: [embeds[0]] for name, embeds in text_inputs().items()} | SQUARE)
def z_image() -> Any:
    network = diffusers.ZImageTransformer2DModel(
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        in_channels=4,
        dim=16,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[4, 2, 2],
        axes_lens=[64, 32, 32],
    )
    for token in (network.x_pad_token, network.cap_pad_token):
        torch.nn.init.ones_(token)  # they are made without values
    return assemble(diffusers.ZImagePipeline, flow_euler(shift=3.0), vae=shifted_vae(), transformer=network)


@entry(
    lambda: {
        **drawn(prompt_embeds_t5=(1, 5, 16), negative_prompt_embeds_t5=(1, 5, 16)),
        **drawn(prompt_embeds_llama3=(2, 1, 5, 16), negative_prompt_embeds_llama3=(2, 1, 5, 16)),
        **drawn(pooled_prompt_embeds=(1, 16), negative_pooled_prompt_embeds=(1, 16)),
        **SQUARE,
    }
)
def hidream() -> Any:
    network = diffusers.HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=[16, 16],
        text_emb_dim=16,
        num_routed_experts=2,
        num_activated_experts=1,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(16, 16),
        llama_layers=(0, 1),
    )
    own = diffusers.UniPCMultistepScheduler(**FLOW)
    pipe = assemble(diffusers.HiDreamImagePipeline, own, vae=vae(), transformer=network)
    pipe.default_sample_size = 8  # it scales what it makes to this area
    return pipe


@entry(lambda: text_inputs(**SQUARE))
def cogview_4() -> Any:
    own = flow_euler(base_shift=0.25, max_shift=0.75, use_dynamic_shifting=True, time_shift_type="linear")
    network = diffusers.CogView4Transformer2DModel(
        patch_size=2,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        out_channels=4,
        text_embed_dim=16,
        time_embed_dim=16,
        condition_dim=4,
    )
    return assemble(diffusers.CogView4Pipeline, own, vae=vae(), transformer=network)


# --- CogVideoX and CogView3: discrete betas with a shifted signal-to-noise ratio ---------------------------


def cog_ddim(snr_shift_scale: float) -> Any:
    """The scheduler of CogVideoX and CogView3."""
    return diffusers.CogVideoXDDIMScheduler(
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        snr_shift_scale=snr_shift_scale,
        timestep_spacing="trailing",
        clip_sample=False,
    )


@entry(lambda: text_inputs(**SQUARE))
def cogview_3() -> Any:
    network = diffusers.CogView3PlusTransformer2DModel(
        patch_size=2,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        out_channels=4,
        text_embed_dim=16,
        time_embed_dim=16,
        condition_dim=4,
        pos_embed_max_size=8,
        sample_size=8,
    )
    return assemble(diffusers.CogView3PlusPipeline, cog_ddim(4.0), vae=vae(), transformer=network)


def cogvideox_transformer(in_channels: int, sample_size: int) -> diffusers.CogVideoXTransformer3DModel:
    """CogVideoX's network, for two latent frames."""
    return diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=in_channels,
        out_channels=4,
        time_embed_dim=4,
        text_embed_dim=16,
        num_layers=1,
        sample_width=sample_size,
        sample_height=sample_size,
        sample_frames=5,
        patch_size=2,
        max_text_seq_length=5,
    )


@entry(lambda: text_inputs(num_frames=5, **WIDE))
def cogvideox() -> Any:
    network = cogvideox_transformer(in_channels=4, sample_size=8)
    return assemble(diffusers.CogVideoXPipeline, cog_ddim(3.0), transformer=network)


@entry(lambda: text_inputs(image=picture(), num_frames=5, **SQUARE))
def cogvideox_image_to_video() -> Any:
    coder = diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 3,
        up_block_types=("CogVideoXUpBlock3D",) * 3,
        block_out_channels=(8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=4,
    )
    network = cogvideox_transformer(in_channels=8, sample_size=4)
    return assemble(diffusers.CogVideoXImageToVideoPipeline, cog_ddim(1.0), vae=coder, transformer=network)


# --- flow-matching videos --------------------------------------------------------------------------------


def wan_transformer(**extra: Any) -> diffusers.WanTransformer3DModel:
    """Wan's network."""
    return diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=16,
        num_layers=1,
        rope_max_seq_len=32,
        **extra,
    )


def wan_vae() -> diffusers.AutoencoderKLWan:
    """Wan's autoencoder."""
    return diffusers.AutoencoderKLWan(
        base_dim=3, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4
    )


@entry(lambda: text_inputs(num_frames=5, **WIDE))
def wan() -> Any:
    own = diffusers.UniPCMultistepScheduler(**FLOW)
    return assemble(diffusers.WanPipeline, own, transformer=wan_transformer(in_channels=4))


@entry(lambda: text_inputs(num_frames=5, **WIDE))
def wan_2_2() -> Any:
    networks = [wan_transformer(in_channels=4) for _ in range(2)]
    parts = {"transformer": networks[0], "transformer_2": networks[1], "boundary_ratio": 0.875}
    return assemble(diffusers.WanPipeline, diffusers.UniPCMultistepScheduler(**FLOW), **parts)


@entry(lambda: text_inputs(image=picture(), num_frames=5, **SQUARE))
def wan_image_to_video() -> Any:
    parts = {"vae": wan_vae(), "transformer": wan_transformer(in_channels=4 + 4 + 4)}
    return assemble(diffusers.WanImageToVideoPipeline, diffusers.UniPCMultistepScheduler(**FLOW), **parts)


def ltx_scheduler() -> Any:
    """LTX-Video's."""
    return flow_euler(
        base_shift=0.95,
        max_shift=2.05,
        base_image_seq_len=1024,
        shift_terminal=0.1,
        use_dynamic_shifting=True,
    )


LTX_SHIFT = {
    "base_shift": 0.95,
    "max_shift": 2.05,
    "base_image_seq_len": 1024,
    "shift_terminal": 0.1,
    "use_dynamic_shifting": True,
}


def ltx_pipeline(kind: type, own: Any, **parts: Any) -> Any:
    """One of the pipelines for LTX-Video."""
    network = diffusers.LTXVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=1,
        caption_channels=16,
    )
    return assemble(kind, own, transformer=network, **parts)


def ltx_vae() -> diffusers.AutoencoderKLLTXVideo:
    """LTX-Video's, with frames a quarter as wide."""
    coder = diffusers.AutoencoderKLLTXVideo(
        latent_channels=4,
        block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        spatio_temporal_scaling=(True, True),
        decoder_spatio_temporal_scaling=(True, True),
        decoder_inject_noise=(False,) * 3,
        upsample_residual=(False,) * 2,
        upsample_factor=(1, 1),
        down_block_types=("LTXVideoDownBlock3D",) * 2,
        patch_size=1,
    )
    coder.use_framewise_encoding = False
    return coder


@entry(lambda: text_inputs(**masks("", length=5), num_frames=9, **BIG))
def ltx() -> Any:
    return ltx_pipeline(diffusers.LTXPipeline, flow_euler(**LTX_SHIFT))


@entry(lambda: text_inputs(**masks("", length=5), num_frames=9, height=32, width=32))
def ltx_condition() -> Any:
    return ltx_pipeline(diffusers.LTXConditionPipeline, flow_euler(), vae=ltx_vae())


@entry(lambda: text_inputs(**masks("", length=5), image=picture(1, 3, 32, 32), num_frames=9, height=32, width=32))
def ltx_image_to_video() -> Any:
    return ltx_pipeline(diffusers.LTXImageToVideoPipeline, flow_euler(**LTX_SHIFT), vae=ltx_vae())


@entry(
    lambda: {
        **drawn(prompt_embeds=(1, 8, 48), negative_prompt_embeds=(1, 8, 48)),
        **masks("", length=8),
        "stg_scale": 0.0,
        "audio_stg_scale": 0.0,
        "spatio_temporal_guidance_blocks": None,
        "num_frames": 5,
        "height": 32,
        "width": 32,
    }
)
def ltx_2() -> Any:
    network = diffusers.LTX2VideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        audio_in_channels=4,
        audio_out_channels=4,
        audio_num_attention_heads=2,
        audio_attention_head_dim=4,
        audio_cross_attention_dim=8,
        num_layers=1,
        caption_channels=16,
        rope_double_precision=False,
        rope_type="split",
    )
    connectors = LTX2TextConnectors(
        caption_channels=16,
        text_proj_in_factor=3,
        video_connector_num_attention_heads=2,
        video_connector_attention_head_dim=8,
        video_connector_num_layers=1,
        video_connector_num_learnable_registers=None,
        audio_connector_num_attention_heads=2,
        audio_connector_attention_head_dim=8,
        audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=None,
        rope_double_precision=False,
        causal_temporal_positioning=False,
        rope_type="split",
    )
    coder = diffusers.AutoencoderKLLTX2Video(
        latent_channels=4,
        block_out_channels=(8,),
        decoder_block_out_channels=(8,),
        layers_per_block=(1,),
        decoder_layers_per_block=(1, 1),
        spatio_temporal_scaling=(True,),
        decoder_spatio_temporal_scaling=(True,),
        decoder_inject_noise=(False, False),
        downsample_type=("spatial",),
        upsample_residual=(False,),
        upsample_factor=(1,),
        patch_size=1,
    )
    sound = diffusers.AutoencoderKLLTX2Audio(
        base_channels=4, ch_mult=(1,), num_res_blocks=1, resolution=32, latent_channels=2, mel_bins=8
    )
    parts = {"transformer": network, "connectors": connectors, "vae": coder, "audio_vae": sound}
    return assemble(diffusers.LTX2Pipeline, flow_euler(**LTX_SHIFT), **parts)


@entry(
    lambda: {
        **drawn(prompt_embeds=(1, 5, 16), pooled_prompt_embeds=(1, 16)),
        "prompt_attention_mask": ONES,
        "num_frames": 5,
        **WIDE,
    }
)
def hunyuan_video() -> Any:
    network = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=1,
        guidance_embeds=True,
        text_embed_dim=16,
        pooled_projection_dim=16,
        rope_axes_dim=(2, 2, 4),
    )
    return assemble(diffusers.HunyuanVideoPipeline, flow_euler(shift=7.0), transformer=network)


@entry(lambda: text_inputs(**masks("", length=5), num_frames=7, **WIDE))
def mochi() -> Any:
    network = diffusers.MochiTransformer3DModel(
        patch_size=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=4,
        text_embed_dim=16,
        time_embed_dim=4,
        max_sequence_length=5,
    )
    torch.nn.init.zeros_(network.pos_frequencies)  # it is made without values
    return assemble(diffusers.MochiPipeline, flow_euler(invert_sigmas=True), transformer=network)


@entry(lambda: text_inputs(**masks("", length=5), num_frames=5, **SQUARE))
def easy_animate() -> Any:
    network = diffusers.EasyAnimateTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=4,
        text_embed_dim=16,
        num_layers=1,
        sample_width=8,
        sample_height=8,
        patch_size=2,
    )
    coder = diffusers.AutoencoderKLMagvit(
        block_out_channels=(8, 8),
        down_block_types=("SpatialDownBlock3D", "SpatialTemporalDownBlock3D"),
        up_block_types=("SpatialUpBlock3D", "SpatialTemporalUpBlock3D"),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=4,
    )
    return assemble(diffusers.EasyAnimatePipeline, flow_euler(shift=5.0), vae=coder, transformer=network)


@entry(
    lambda: {
        **drawn(prompt_embeds_qwen=(1, 5, 16), prompt_embeds_clip=(1, 16)),
        **drawn(negative_prompt_embeds_qwen=(1, 5, 16), negative_prompt_embeds_clip=(1, 16)),
        "prompt_cu_seqlens": torch.tensor([0, 5]),
        "negative_prompt_cu_seqlens": torch.tensor([0, 5]),
        "num_frames": 5,
        **WIDE,
    }
)
def kandinsky_5() -> Any:
    network = diffusers.Kandinsky5Transformer3DModel(
        in_visual_dim=4,
        in_text_dim=16,
        in_text_dim2=16,
        time_dim=16,
        out_visual_dim=4,
        patch_size=(1, 2, 2),
        model_dim=16,
        ff_dim=16,
        num_text_blocks=1,
        num_visual_blocks=1,
        axes_dims=(2, 2, 4),
    )
    return assemble(diffusers.Kandinsky5T2VPipeline, flow_euler(shift=5.0), transformer=network)


@entry(lambda: text_inputs(negative_prompt=None, **masks("", length=5), num_frames=5, **WIDE))
def allegro() -> Any:
    own = diffusers.EulerAncestralDiscreteScheduler(beta_schedule="linear")
    network = diffusers.AllegroTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        cross_attention_dim=24,
        sample_width=8,
        sample_height=8,
        sample_frames=2,
        caption_channels=16,
    )
    return assemble(diffusers.AllegroPipeline, own, transformer=network)


def skyreels_transformer() -> diffusers.SkyReelsV2Transformer3DModel:
    """SkyReels V2's network."""
    return diffusers.SkyReelsV2Transformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=16,
        num_layers=1,
        rope_max_seq_len=32,
    )


@entry(lambda: text_inputs(num_frames=5, **WIDE))
def skyreels() -> Any:
    own = diffusers.UniPCMultistepScheduler(**{**FLOW, "flow_shift": 8.0})
    return assemble(diffusers.SkyReelsV2Pipeline, own, transformer=skyreels_transformer())


@entry(
    lambda: {
        **drawn(prompt_embeds=(1, 5, 16), prompt_embeds_2=(1, 5, 16)),
        "prompt_embeds_mask": ONES,
        "prompt_embeds_mask_2": ONES,
        "num_frames": 5,
        **SQUARE,
    }
)
def hunyuan_video_15() -> Any:
    network = diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_refiner_layers=1,
        patch_size=1,
        patch_size_t=1,
        text_embed_dim=16,
        text_embed_2_dim=16,
        image_embed_dim=16,
        rope_axes_dim=(2, 2, 4),
        target_size=16,
        task_type="t2v",
    )
    coder = diffusers.AutoencoderKLHunyuanVideo15(
        latent_channels=4,
        block_out_channels=(16, 16),
        layers_per_block=1,
        spatial_compression_ratio=4,
        temporal_compression_ratio=2,
        downsample_match_channel=False,
        upsample_match_channel=False,
    )
    parts = {"vae": coder, "transformer": network, "guider": ClassifierFreeGuidance(guidance_scale=1.0)}
    return assemble(diffusers.HunyuanVideo15Pipeline, flow_euler(shift=7.0), **parts)


# --- EDM -------------------------------------------------------------------------------------------------


class Harmless(torch.nn.Module):
    """The safety checker without which Cosmos does not run."""

    device, dtype = torch.device("cpu"), torch.float32

    def check_text_safety(self, *_: object) -> bool:
        return True

    def check_video_safety(self, video: Any) -> Any:
        return video


def cosmos_transformer(in_channels: int = 4) -> diffusers.CosmosTransformer3DModel:
    """The network of Cosmos."""
    return diffusers.CosmosTransformer3DModel(
        in_channels=in_channels,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        text_embed_dim=16,
        adaln_lora_dim=4,
        max_size=(4, 32, 32),
        concat_padding_mask=False,
        extra_pos_embed_type=None,
    )


def cosmos_pipeline(kind: type, own: Any, **parts: Any) -> Any:
    """One of the pipelines for Cosmos."""
    return assemble(kind, own, safety_checker=Harmless(), **parts)


def edm_euler() -> Any:
    """Cosmos 1's."""
    return diffusers.EDMEulerScheduler(sigma_data=0.5, final_sigmas_type="sigma_min")


@entry(lambda: text_inputs(num_frames=9, guidance_scale=3.0, **WIDE))
def cosmos() -> Any:
    return cosmos_pipeline(diffusers.CosmosTextToWorldPipeline, edm_euler(), transformer=cosmos_transformer())


@entry(lambda: text_inputs(image=picture(1, 3, 32, 32), num_frames=9, guidance_scale=3.0, height=32, width=32))
def cosmos_video_to_world() -> Any:
    coder = diffusers.AutoencoderKLCosmos(
        latent_channels=4,
        encoder_block_out_channels=(8, 8, 8),
        decode_block_out_channels=(8, 8, 8),
        num_layers=1,
        patch_size=2,
        attention_resolutions=(),
        spatial_compression_ratio=4,
        temporal_compression_ratio=4,
    )
    parts = {"vae": coder, "transformer": cosmos_transformer(in_channels=5)}
    return cosmos_pipeline(diffusers.CosmosVideoToWorldPipeline, edm_euler(), **parts)


@entry(lambda: text_inputs(guidance_scale=3.0, **WIDE))
def cosmos_2() -> Any:
    own = flow_euler(use_karras_sigmas=True)
    return cosmos_pipeline(diffusers.Cosmos2TextToImagePipeline, own, transformer=cosmos_transformer())


@entry(lambda: text_inputs(num_frames=5, guidance_scale=3.0, **SQUARE))
def cosmos_2_5() -> Any:
    own = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        use_karras_sigmas=True,
        sigma_min=0.01,
        sigma_max=200.0,
    )
    parts = {"vae": wan_vae(), "transformer": cosmos_transformer(in_channels=5)}
    return cosmos_pipeline(diffusers.Cosmos2_5_PredictBasePipeline, own, **parts)


class WhiteInterval:
    """torchsde's Brownian motion, with increments that do not know of each other, where the package is missing."""

    def __init__(self, size: Any, **_: Any) -> None:
        self._size, self._generator = size, torch.Generator().manual_seed(0)

    def __call__(self, start: Any, end: Any) -> Tensor:
        return torch.randn(self._size, generator=self._generator) * abs(float(end) - float(start)) ** 0.5


@functools.cache
def cosine_dpm_solver() -> type:
    """Stable Audio's scheduler class, which cannot be imported without torchsde."""
    stub = types.ModuleType("torchsde")
    stub.BrownianInterval = WhiteInterval  # type: ignore[attr-defined]
    missing = {} if importlib.util.find_spec("torchsde") else {"torchsde": stub}
    with mock.patch.dict(sys.modules, missing):
        module = importlib.import_module("diffusers.schedulers.scheduling_cosine_dpmsolver_multistep")
    return module.CosineDPMSolverMultistepScheduler


@entry(
    lambda: {
        **drawn(prompt_embeds=(1, 5, 8), negative_prompt_embeds=(1, 5, 8)),
        "attention_mask": ONES,
        "negative_attention_mask": ONES,
    }
)
def stable_audio() -> Any:
    network = diffusers.StableAudioDiTModel(
        sample_size=8,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        num_key_value_attention_heads=1,
        out_channels=4,
        cross_attention_dim=8,
        time_proj_dim=8,
        global_states_input_dim=16,
        cross_attention_input_dim=8,
    )
    coder = diffusers.AutoencoderOobleck(
        encoder_hidden_size=4,
        downsampling_ratios=[1, 2],
        decoder_channels=4,
        decoder_input_channels=4,
        channel_multiples=[1, 2],
        sampling_rate=4,
    )
    lengths = StableAudioProjectionModel(text_encoder_dim=8, conditioning_dim=8, min_value=0, max_value=32)
    parts = {"vae": coder, "projection_model": lengths, "transformer": network}
    return assemble(diffusers.StableAudioPipeline, cosine_dpm_solver()(), **parts)
