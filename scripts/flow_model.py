"""The parts of the bundled flow-matching model: two CLIP encoders, a stub T5, a joint transformer, their pipeline.

In training and quick checks one zero token stands for the 256 that the pipeline appends to the text: see
`WeightedLastToken`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from diffusers.models.attention_processor import Attention
from scene_training import LENGTH
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from fastsample.demo.scenes import sample_scenes

TEXT_WIDTH, TEXT_LAYERS = 64, 2
ZEROS = 256
"""Zero tokens that the pipeline appends to the text in place of T5's: its default `max_sequence_length`."""
SHIFT = 1.5
"""Of the noise levels, in training and in the pipeline's scheduler."""


class TextEncoders(nn.Module):
    """The pipeline's two CLIP encoders, and one zero token for all those of a stub T5.

    Ids [n, 16] to the context [n, 17, 2 TEXT_WIDTH], of the last but one hidden layer, and the pooled text
    [n, 2 TEXT_WIDTH].
    """

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        config = CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            num_hidden_layers=TEXT_LAYERS,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            projection_dim=TEXT_WIDTH,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
        self.encoders = nn.ModuleList(CLIPTextModelWithProjection(config) for _ in range(2))

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        outputs = [encoder(ids, output_hidden_states=True) for encoder in self.encoders]
        words = torch.cat([output.hidden_states[-2] for output in outputs], -1)
        return nn.functional.pad(words, (0, 0, 0, 1)), torch.cat([output.text_embeds for output in outputs], -1)


class WeightedLastToken:
    """Joint attention in which the last text token counts as `counts` equal ones, int or float [n].

    Equal tokens stay equal through a joint block, so that one with log(count) added to its logits stands for all of
    them: 81 tokens in place of 336. The softmax is written out: the fused one with a bias is slower on a CPU.
    """

    def __init__(self) -> None:
        self.counts = torch.ones(1)

    def __call__(
        self, attention: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor, attention_mask: None
    ) -> tuple[Tensor, Tensor]:
        image, text = hidden_states, encoder_hidden_states

        def heads(x: Tensor) -> Tensor:
            return x.unflatten(2, (attention.heads, -1)).transpose(1, 2)

        query = attention.norm_q(heads(attention.to_q(image)))
        text_query = attention.norm_added_q(heads(attention.add_q_proj(text)))
        key = attention.norm_k(heads(attention.to_k(image)))
        text_key = attention.norm_added_k(heads(attention.add_k_proj(text)))
        query, key = torch.cat([query, text_query], 2), torch.cat([key, text_key], 2)
        value = torch.cat([heads(attention.to_v(image)), heads(attention.add_v_proj(text))], 2)
        logits = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        others = logits.new_zeros(len(self.counts), key.shape[2] - 1)
        bias = torch.cat([others, self.counts.log()[:, None].to(logits)], 1)
        mixed = ((logits + bias[:, None, None]).softmax(-1).to(value) @ value).transpose(1, 2).flatten(2)
        image, text = mixed.split([image.shape[1], text.shape[1]], 1)
        return attention.to_out[0](image), text if attention.context_pre_only else attention.to_add_out(text)


def make_transformer() -> SD3Transformer2DModel:
    """Every block starts as the identity and the output at zero, which diffusers leaves to the loaded weights."""
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=4,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=2 * TEXT_WIDTH,
        caption_projection_dim=128,
        pooled_projection_dim=2 * TEXT_WIDTH,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    )
    modulations = [transformer.norm_out.linear, transformer.proj_out]
    for block in transformer.transformer_blocks:
        modulations += [block.norm1.linear, block.norm1_context.linear]
    for layer in modulations:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return transformer


def assemble(
    vae: AutoencoderKL, tokenizer: PreTrainedTokenizerFast, text: TextEncoders, transformer: SD3Transformer2DModel
) -> StableDiffusion3Pipeline:
    """The pipeline of these weights with attention as diffusers has it.

    text_encoder_3 is a T5 of one layer whose output is zero, which is what the pipeline puts in place of a missing
    one: plain `from_pretrained` does not load a folder without.
    """
    plain = make_transformer()
    plain.load_state_dict(transformer.state_dict())
    sizes = dict(d_model=2 * TEXT_WIDTH, d_kv=8, d_ff=8, num_layers=1, num_heads=1)
    stub = T5EncoderModel(T5Config(vocab_size=len(tokenizer), pad_token_id=1, **sizes))
    nn.init.zeros_(stub.encoder.final_layer_norm.weight)
    vae.register_to_config(shift_factor=0.0)  # this pipeline adds it
    first, second = text.encoders
    return StableDiffusion3Pipeline(
        transformer=plain.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        vae=vae,
        text_encoder=first.eval(),
        tokenizer=tokenizer,
        text_encoder_2=second.eval(),
        tokenizer_2=tokenizer,
        text_encoder_3=stub.eval(),
        tokenizer_3=tokenizer,
    )


class QuickPipeline(StableDiffusion3Pipeline):
    """The same images at a quarter of the cost: one zero token stands for all of them."""

    @classmethod
    def of(cls, pipe: StableDiffusion3Pipeline) -> QuickPipeline:
        quick = cls(**pipe.components)
        quick.transformer = make_transformer().eval().to(pipe.device)
        quick.transformer.load_state_dict(pipe.transformer.state_dict())
        attention = WeightedLastToken()
        attention.counts = torch.full((1,), float(ZEROS), device=pipe.device)
        quick.transformer.set_attn_processor(attention)
        quick.set_progress_bar_config(disable=True)
        return quick

    def encode_prompt(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        words, no_words, pooled, no_pooled = super().encode_prompt(*args, **kwargs)
        no_words = None if no_words is None else no_words[:, : LENGTH + 1]  # without guidance there are none
        return words[:, : LENGTH + 1], no_words, pooled, no_pooled


def print_shifts(pipe: StableDiffusion3Pipeline, shifts: tuple[float, ...], count: int, seed: int) -> None:
    """Of each shift, Euler's RMS error by steps, to 400 steps from the same noise; the equation is one for all."""
    prompts = [scene.caption for scene in sample_scenes(count, seed, held_out=True)]
    quick = QuickPipeline.of(pipe)

    def images(shift: float, steps: int) -> Tensor:
        quick.scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
        generator = torch.Generator().manual_seed(seed)
        settings = dict(guidance_scale=3.0, generator=generator, output_type="pt")
        return quick(prompts, num_inference_steps=steps, **settings).images

    exact = images(1.0, 400)
    for shift in shifts:
        errors = {steps: float((images(shift, steps) - exact).square().mean().sqrt()) for steps in (5, 8, 10, 20, 50)}
        print(f"shift {shift} " + " ".join(f"{steps}: {error:.4f}" for steps, error in errors.items()), flush=True)
