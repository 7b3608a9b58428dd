"""Train the bundled flow-matching text-to-image model from a seed: two text encoders and a joint transformer.

    python scripts/train_flow.py train --out build/flow
    python scripts/train_flow.py evaluate --folder build/flow/folder

The VAE and the scenes are the first bundled model's. `train` writes OUT/checkpoint.pt every 250 steps, from which
the same command continues to the same weights, and the pipeline to OUT/folder. One thread makes about 200 images a
second of its own time, 300 with --compile. `evaluate` prints prompt fidelity over guidance scales, through the
pipeline at its defaults.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from diffusers.models.attention_processor import Attention
from safetensors.torch import load_file, save_file
from scene_training import (
    LENGTH,
    cosine,
    latents_of,
    make_tokenizer,
    millions,
    print_fidelity,
    tokens_of,
    training_images,
    write_pipeline,
)
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from fastsample.demo import bundled
from fastsample.demo.scenes import sample_scenes

TEXT_WIDTH, TEXT_LAYERS = 64, 2
ZEROS = 256
"""Zero tokens that the pipeline appends to the text in place of T5's: its default `max_sequence_length`."""
SHIFT = 1.5


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


def make_optimisers(
    text: TextEncoders, transformer: SD3Transformer2DModel, rate: float
) -> list[torch.optim.Optimizer]:
    """Muon (Jordan, 2024) on the matrices of attention and feed-forward layers, AdamW on all else."""
    matrices = {
        id(p): p
        for name, p in transformer.transformer_blocks.named_parameters()
        if p.ndim == 2 and (".attn." in name or ".ff" in name)
    }
    rest = [p for p in [*text.parameters(), *transformer.parameters()] if id(p) not in matrices]
    return [
        torch.optim.Muon(list(matrices.values()), lr=5 * rate, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.99), weight_decay=1e-4),
    ]


def sigmas_of(count: int, generator: torch.Generator) -> Tensor:
    """Noise levels of a batch: logit-normal moved by SHIFT for four rows in five, else uniform; stratified."""
    spread = ((torch.arange(count) + torch.rand(count, generator=generator)) / count).clamp(1e-4, 1 - 1e-4)
    shifted = torch.sigmoid(torch.special.ndtri(spread) + math.log(SHIFT))
    return torch.where(torch.rand(count, generator=generator) < 0.2, spread, shifted)


def counts_of(count: int, generator: torch.Generator) -> Tensor:
    """Zero tokens a row: the default for three in four, else 1 to 512, so that other lengths do little harm."""
    other = torch.exp(math.log(512) * torch.rand(count, generator=generator))
    return torch.where(torch.rand(count, generator=generator) < 0.25, other, float(ZEROS))


def data(out: Path, vae: AutoencoderKL, tokenizer: PreTrainedTokenizerFast, seed: int) -> dict[str, Tensor]:
    """Token ids and latent moments of 24,000 scenes; kept in OUT."""
    file = out / "latents.safetensors"
    if not file.exists():
        captions, images, _ = training_images(24000, seed + 4)
        mean, std = latents_of(vae, images)
        save_file({"tokens": tokens_of(tokenizer, captions), "mean": mean, "std": std}, file)
    return load_file(file)


def train(out: Path, seed: int, steps: int, batch: int, rate: float, compiled: bool) -> None:
    """Velocity noise - x_0 at x = (1 - sigma) x_0 + sigma noise; one caption in ten empty; a moving average kept."""
    torch.manual_seed(seed + 30)
    out.mkdir(parents=True, exist_ok=True)
    vae = bundled.load_pipeline().vae
    tokenizer = make_tokenizer()
    known = data(out, vae, tokenizer, seed)
    empty = tokens_of(tokenizer, [""])[0]
    text, transformer = TextEncoders(len(tokenizer)), make_transformer()
    print(f"transformer {millions(transformer)}, text encoders {millions(text)}", flush=True)
    attention = WeightedLastToken()
    transformer.set_attn_processor(attention)
    both = nn.ModuleList([text, transformer])
    average = copy.deepcopy(both).eval()
    optimisers = make_optimisers(text, transformer, rate)
    rates = [group["lr"] for optimiser in optimisers for group in optimiser.param_groups]
    generator = torch.Generator().manual_seed(seed + 31)
    checkpoint, first = out / "checkpoint.pt", 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        both.load_state_dict(saved["model"])
        average.load_state_dict(saved["average"])
        for optimiser, state in zip(optimisers, saved["optimisers"], strict=True):
            optimiser.load_state_dict(state)
        generator.set_state(saved["generator"])
        first = saved["step"]
    predict = torch.compile(transformer) if compiled else transformer
    began, losses = time.perf_counter(), 0.0
    for step in range(first, steps):
        for optimiser, full in zip(optimisers, rates, strict=True):
            optimiser.param_groups[0]["lr"] = full * cosine(step, steps)
        pick = torch.randint(len(known["mean"]), (batch,), generator=generator)
        moments = known["mean"][pick], known["std"][pick]
        x, noise = (torch.randn(batch, 4, 8, 8, generator=generator) for _ in range(2))
        x = moments[0] + moments[1] * x
        dropped = torch.rand(batch, 1, generator=generator) < 0.1
        context, pooled = text(torch.where(dropped, empty, known["tokens"][pick]))
        sigma, attention.counts = sigmas_of(batch, generator), counts_of(batch, generator)
        level = sigma[:, None, None, None]
        with torch.autocast("cpu", torch.bfloat16):
            output = predict((1 - level) * x + level * noise, context, pooled, 1000 * sigma).sample
        loss = ((output.float() - (noise - x)) ** 2).mean()
        both.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
        with torch.no_grad():
            decay = min(0.998, (step + 1) / (step + 20))
            torch._foreach_lerp_(list(average.parameters()), list(both.parameters()), 1 - decay)
        losses += loss.item()
        if (step + 1) % 50 == 0:
            speed = (step + 1 - first) / (time.perf_counter() - began)
            print(f"step {step + 1} loss {losses / 50:.4f} {speed:.2f} steps/s", flush=True)
            losses = 0.0
        if (step + 1) % 250 == 0 or step + 1 == steps:
            state = {"model": both.state_dict(), "average": average.state_dict(), "step": step + 1}
            state |= {"optimisers": [own.state_dict() for own in optimisers], "generator": generator.get_state()}
            torch.save(state, checkpoint.with_suffix(".part"))
            checkpoint.with_suffix(".part").replace(checkpoint)
            pipe = assemble(vae, tokenizer, *average)
            write_pipeline(pipe, out / "folder", ("transformer", "vae"))
            if (step + 1) % 500 == 0 or step + 1 == steps:
                print(f"step {step + 1} {quick_fidelity(pipe, average[0])}", flush=True)


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


@torch.no_grad()
def quick_fidelity(pipe: StableDiffusion3Pipeline, text: TextEncoders, count: int = 64) -> str:
    """Prompt fidelity on held-out scenes at guidance 3, 20 steps, one zero token standing for all of them."""
    attention = WeightedLastToken()
    attention.counts = torch.full((1,), float(ZEROS))
    pipe.transformer.set_attn_processor(attention)
    pipe.set_progress_bar_config(disable=True)
    prompts = [scene.caption for scene in sample_scenes(count, 1, held_out=True)]
    words, pooled = text(tokens_of(pipe.tokenizer, prompts))
    no_words, no_pooled = text(tokens_of(pipe.tokenizer, [""] * count))
    images = pipe(
        prompt_embeds=words,
        pooled_prompt_embeds=pooled,
        negative_prompt_embeds=no_words,
        negative_pooled_prompt_embeds=no_pooled,
        num_inference_steps=20,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).images
    return " ".join(f"{name} {value:.3f}" for name, value in bundled.prompt_fidelity(images, prompts).items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("train", "evaluate"))
    parser.add_argument("--out", type=Path, default=Path("build/flow"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--compile", action="store_true", help="train: compile the transformer, minutes once")
    parser.add_argument("--folder", type=Path, help="evaluate: the pipeline; default: the bundled one")
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 2.0, 3.0, 5.0, 7.0])
    parser.add_argument("--count", type=int, default=128, help="evaluate: prompts of each kind")
    parser.add_argument("--inference-steps", type=int, default=50)
    parser.add_argument("--picture", type=Path, help="evaluate: where to write a grid of images")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.stage == "train":
        train(
            arguments.out,
            arguments.seed,
            arguments.steps,
            arguments.batch,
            arguments.rate,
            compiled=arguments.compile,
        )
        return
    pipe = StableDiffusion3Pipeline.from_pretrained(arguments.folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    print_fidelity(
        pipe,
        tuple(arguments.guidance),
        arguments.count,
        arguments.seed + 1000,
        arguments.inference_steps,
        arguments.picture,
    )


if __name__ == "__main__":
    main()
