"""Train the bundled masked diffusion language model from a seed, and write it as a folder of transformers.

    python scripts/train_language.py train --out build/language
    python scripts/train_language.py evaluate --model build/language/folder

Training continues from OUT/checkpoint.pt where there is one. One thread of a CPU makes about 5 steps a second.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import time
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from fastsample.demo.language import sums
from fastsample.demo.language.model import MaskedDiffusionConfig, MaskedDiffusionLM

END, MASK = sums.VOCABULARY.index("<|end|>"), sums.VOCABULARY.index("<|mask|>")


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character; `answer:` is one."""
    inner = Tokenizer(models.WordLevel({token: i for i, token in enumerate(sums.VOCABULARY)}, unk_token="<|end|>"))
    inner.decoder = decoders.Fuse()
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"answer:|."), behavior="isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token="<|end|>",
        pad_token="<|end|>",
        mask_token="<|mask|>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def encode(text: str) -> list[int]:
    """Token ids of a problem's text."""
    head, answer, digits = text.partition("answer:")
    tokens = [*head, *([answer] if answer else []), *digits]
    return [sums.VOCABULARY.index(token) for token in tokens]


def batch_of(problems: itertools.islice[sums.Sum]) -> Tensor:
    """Whole texts [B, prompt + response], filled with end tokens."""
    rows = [encode(problem.prompt + problem.response) for problem in problems]
    length = sums.PROMPT_LENGTH + sums.RESPONSE_LENGTH
    return torch.tensor([row + [END] * (length - len(row)) for row in rows])


def loss_of(model: MaskedDiffusionLM, tokens: Tensor, generator: torch.Generator) -> Tensor:
    """LLaDA's objective on the response: cross-entropy of masked tokens over the masking ratio (its eq. 5).

    One batch in four ends at a random place, as a block decoder's window does, which does not see later blocks.
    """
    if float(torch.rand((), generator=generator)) < 0.25:
        tokens = tokens[:, : int(torch.randint(sums.PROMPT_LENGTH + 4, tokens.shape[1] + 1, (), generator=generator))]
    response = torch.arange(tokens.shape[1]) >= sums.PROMPT_LENGTH
    # stratified ratios: less variance than independent ones
    spread = torch.rand((), generator=generator) + torch.arange(len(tokens)) / len(tokens)
    ratio = (spread % 1).clamp(min=0.02)[:, None]
    masked = (torch.rand(tokens.shape, generator=generator) < ratio) & response
    logits = model(tokens.masked_fill(masked, MASK)).logits
    losses = F.cross_entropy(logits[masked], tokens[masked], reduction="none")
    weights = (1 / ratio).expand(tokens.shape)[masked]
    return (losses * weights).sum() / (len(tokens) * int(response.sum()))


@torch.no_grad()
def valid_share(model: MaskedDiffusionLM, count: int) -> tuple[float, float]:
    """Of test problems decoded one token a step, most confident first: right answers, and whole texts all right."""
    problems = list(itertools.islice(sums.problems(1, test=True), count))
    expected = batch_of(iter(problems))  # type: ignore[arg-type]
    tokens = expected.clone()
    tokens[:, sums.PROMPT_LENGTH :] = MASK
    for _ in range(sums.RESPONSE_LENGTH):
        top = model(tokens).logits.softmax(-1).max(-1)
        confidence = top.values.masked_fill(tokens != MASK, -1)
        place = confidence.argmax(1)
        rows = torch.arange(len(tokens))
        tokens[rows, place] = top.indices[rows, place]
    answer = slice(sums.PROMPT_LENGTH + len(encode(problems[0].response)) - 4, None)
    right = (tokens[:, answer] == expected[:, answer]).all(1)
    return float(right.float().mean()), float((tokens == expected).all(1).float().mean())


def train(out: Path, steps: int, batch: int, rate: float, seed: int) -> None:
    """AdamW with warm-up and cosine decay; the shipped weights are the moving average."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = MaskedDiffusionLM(MaskedDiffusionConfig(vocab_size=len(sums.VOCABULARY), mask_token_id=MASK))
    average = copy.deepcopy(model).eval()
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    source, start = sums.problems(seed, test=False), 0
    checkpoint = out / "checkpoint.pt"
    out.mkdir(parents=True, exist_ok=True)
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        start = saved["step"]
        model.load_state_dict(saved["model"])
        average.load_state_dict(saved["average"])
        optimiser.load_state_dict(saved["optimiser"])
        generator.set_state(saved["generator"])
        next(itertools.islice(source, start * batch, start * batch), None)
    began = time.perf_counter()
    for step in range(start, steps):
        warm = min(1.0, (step + 1) / 200)
        for group in optimiser.param_groups:
            group["lr"] = rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        loss = loss_of(model, batch_of(itertools.islice(source, batch)), generator)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        decay = min(0.999, (step + 1) / (step + 10))
        with torch.no_grad():
            for mean, value in zip(average.parameters(), model.parameters(), strict=True):
                mean.lerp_(value, 1 - decay)
        if (step + 1) % 250 == 0 or step + 1 == steps:
            right, valid = valid_share(average, 32)
            rate_now = (step + 1 - start) / (time.perf_counter() - began)
            print(
                f"step {step + 1} loss {loss.item():.4f} answers {right:.3f} valid {valid:.3f} {rate_now:.2f}/s",
                flush=True,
            )
            state = {"step": step + 1, "model": model.state_dict(), "average": average.state_dict()}
            torch.save({**state, "optimiser": optimiser.state_dict(), "generator": generator.get_state()}, checkpoint)
            write(average, out / "folder", {"steps": step + 1, "batch": batch, "rate": rate, "seed": seed})


def write(model: MaskedDiffusionLM, folder: Path, how: dict[str, float]) -> None:
    """The model and its tokenizer as transformers writes them, and how it was trained."""
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    (folder / "training.json").write_text(json.dumps(how, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["train", "evaluate"])
    parser.add_argument("--out", type=Path, default=Path("build/language"))
    parser.add_argument("--model", type=Path, default=Path("build/language/folder"))
    parser.add_argument("--steps", type=int, default=3500)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.stage == "train":
        train(args.out, args.steps, args.batch, args.rate, args.seed)
    else:
        right, valid = valid_share(MaskedDiffusionLM.from_pretrained(args.model).eval(), 512)
        print(f"answers {right:.4f} valid {valid:.4f}")


if __name__ == "__main__":
    main()
