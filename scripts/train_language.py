"""Train the bundled masked diffusion language model from a seed, and write it as a folder of transformers.

    python scripts/train_language.py train --out build/language
    python scripts/train_language.py train --out build/soft --first 6 --model fastsample/demo/language --device cuda
    python scripts/train_language.py evaluate --model build/language/folder

Training continues from OUT/checkpoint.pt where there is one; the second command makes the last phase alone, from the
weights that are shipped, and so those of fastsample/demo/language/soft. One thread of a CPU makes 1 to 2 steps a
second.
"""

from __future__ import annotations

import argparse
import copy
import functools
import itertools
import json
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from fastsample.decoding.refinement import LatentRefinement
from fastsample.demo.language import sums
from fastsample.demo.language.model import MaskedDiffusionConfig, MaskedDiffusionLM

END, MASK = sums.VOCABULARY.index(sums.END), sums.VOCABULARY.index("<|mask|>")
COLUMN_LENGTH = 2 + 5 * sums.NUMBERS
"""Tokens of a column: the carry, then a sign, a digit, =, and two digits a number; the semicolon."""


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


def batch_of(problems: Iterator[sums.Sum], count: int) -> Tensor:
    """The next `count` whole texts, int64 [count, prompt + response], filled with end tokens."""
    rows = [encode(problem.prompt + problem.response) for problem in itertools.islice(problems, count)]
    length = sums.PROMPT_LENGTH + sums.RESPONSE_LENGTH
    return torch.tensor([row + [END] * (length - len(row)) for row in rows])


Predict = Callable[[Tensor, Tensor], Tensor]
"""Logits of tokens [B, L], of which those of a mask are hidden."""


def llada_loss(predict: Predict, tokens: Tensor, generator: torch.Generator) -> Tensor:
    """LLaDA's objective on the response: cross-entropy of masked tokens over the masking ratio (its eq. 5).

    One batch in four ends at a random place, as a block decoder's window does, which does not see later blocks.
    """
    if float(torch.rand((), generator=generator)) < 0.25:
        tokens = tokens[:, : int(torch.randint(sums.PROMPT_LENGTH + 4, tokens.shape[1] + 1, (), generator=generator))]
    response = in_response(tokens)
    # stratified ratios: less variance than independent ones
    spread = torch.rand((), generator=generator) + torch.arange(len(tokens)) / len(tokens)
    ratio = (spread % 1).clamp(min=0.02)[:, None].to(tokens.device)
    masked = (uniform(tokens, generator) < ratio) & response
    logits = predict(tokens, masked)
    losses = F.cross_entropy(logits[masked], tokens[masked], reduction="none")
    weights = (1 / ratio).expand(tokens.shape)[masked]
    return (losses * weights).sum() / (len(tokens) * int(response.sum()))


def in_response(tokens: Tensor) -> Tensor:
    """bool [L]: the positions of `tokens` [B, L] behind the prompt."""
    return torch.arange(tokens.shape[1], device=tokens.device) >= sums.PROMPT_LENGTH


def uniform(tokens: Tensor, generator: torch.Generator) -> Tensor:
    """Numbers from 0 to 1 for `tokens` [B, L], the same on every device."""
    return torch.rand(tokens.shape, generator=generator).to(tokens.device)


@torch.no_grad()
def valid_share(model: MaskedDiffusionLM, count: int) -> tuple[float, float]:
    """Of test problems decoded one token a step, most confident first: right answers, and whole texts all right."""
    problems = list(itertools.islice(sums.problems(1, test=True), count))
    expected = batch_of(iter(problems), count).to(model.device)
    tokens = expected.clone()
    tokens[:, sums.PROMPT_LENGTH :] = MASK
    for _ in range(sums.RESPONSE_LENGTH):
        top = model(tokens).logits.softmax(-1).max(-1)
        confidence = top.values.masked_fill(tokens != MASK, -1)
        place = confidence.argmax(1)
        rows = torch.arange(len(tokens), device=tokens.device)
        tokens[rows, place] = top.indices[rows, place]
    answer = slice(sums.PROMPT_LENGTH + len(encode(problems[0].response)) - 4, None)
    right = (tokens[:, answer] == expected[:, answer]).all(1)
    return float(right.float().mean()), float((tokens == expected).all(1).float().mean())


def bounded_problems(seed: int, bounds: tuple[int, ...]) -> Iterator[sums.Sum]:
    """Endless problems of the training split, the digits of each at most one of `bounds`."""
    draw = random.Random(seed)
    while True:
        bound = draw.choice(bounds)
        texts = ["".join(str(draw.randint(0, bound)) for _ in range(sums.DIGITS)) for _ in range(sums.NUMBERS)]
        problem = sums.Sum(tuple(map(int, texts)))
        if not problem.is_test:
            yield problem


def column_loss(predict: Predict, tokens: Tensor, generator: torch.Generator) -> Tensor:
    """Cross-entropy of the ones of two results of the first column, with nearly all the rest of it in sight."""
    tokens = tokens[:, : sums.PROMPT_LENGTH + COLUMN_LENGTH]
    ones = sums.PROMPT_LENGTH + torch.arange(5, COLUMN_LENGTH - 1, 5)  # 0+3=03+5=08+..
    asked = ones[torch.randint(len(ones), (len(tokens), 2), generator=generator)].to(tokens.device)
    masked = torch.zeros_like(tokens, dtype=torch.bool).scatter_(1, asked, True)
    more = (uniform(tokens, generator) < 0.05) & in_response(tokens)
    logits = predict(tokens, masked | more)
    return F.cross_entropy(logits[masked], tokens[masked])


def sparse_loss(predict: Predict, tokens: Tensor, generator: torch.Generator) -> Tensor:
    """Cross-entropy of 2 to 40 % of the response, all of one weight: steps of the sums with what they follow from."""
    ratio = 0.02 + 0.38 * torch.rand((len(tokens), 1), generator=generator).to(tokens.device)
    masked = (uniform(tokens, generator) < ratio) & in_response(tokens)
    logits = predict(tokens, masked)
    return F.cross_entropy(logits[masked], tokens[masked])


LOSSES = {"llada": llada_loss, "column": column_loss, "sparse": sparse_loss}


@dataclass(frozen=True)
class Phase:
    """A part of the training, with an optimiser of its own.

    bounds: each problem's digits are at most one of these. span: steps of the cosine by which `rate` falls; None
    keeps it. average: decay of the weights' moving average. losses: taken in turn, a step each.
    passes: probabilities of 0, 1, .. forwards before the one of the loss, whose predictions are mixed into the masks'
    embeddings as latent refinement does, by a `mixing` drawn between two (arXiv:2510.17206). earlier: in each of
    these forwards up to this share of the tokens in sight is hidden too, as where a decoder committed since.
    """

    steps: int
    batch: int
    rate: float
    warm_up: int
    bounds: tuple[int, ...]
    span: int | None
    average: float = 0.995
    losses: tuple[str, ...] = ("llada",)
    passes: tuple[float, ...] = (1.0,)
    mixing: tuple[float, float] = (0.0, 0.0)
    earlier: float = 0.0

    def rate_at(self, step: int) -> float:
        falling = 1.0 if self.span is None else 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / self.span))
        return self.rate * min(1.0, (step + 1) / self.warm_up) * falling


# From uniform digits alone all is learned within 1750 steps but the ones of a sum, which stay at chance. Where digits
# are small, adding 0 and 1 is learned at once, and the other sums after them.
PHASES = (
    Phase(1750, 32, 2e-3, 200, (9,), 3500, 0.999),
    Phase(300, 64, 1e-3, 20, (1, 1, 2, 2, 3, 4, 5, 7, 9), None, losses=("column",)),
    Phase(1400, 32, 1.5e-3, 30, (2, 3, 5, 9, 9, 9), 1400),
    Phase(1000, 32, 1e-3, 30, (4, 9, 9, 9), 1000, losses=("sparse", "llada")),
    Phase(1400, 32, 1e-3, 30, (9,), 1400, losses=("sparse", "llada")),
    Phase(900, 48, 7e-4, 30, (9,), 900, losses=("sparse", "llada")),
    Phase(
        1500, 64, 1.5e-4, 50, (9,), 1500, losses=("sparse", "llada"), passes=(0.35, 0.4, 0.25), mixing=(0.1, 0.5),
        earlier=0.5,
    ),
)  # fmt: skip


def predictions(
    model: MaskedDiffusionLM, phase: Phase, generator: torch.Generator, tokens: Tensor, masked: Tensor
) -> Tensor:
    """Logits of `tokens` where those of `masked` are hidden, after the soft passes that the phase draws."""
    if len(phase.passes) == 1:
        logits: Tensor = model(tokens.masked_fill(masked, MASK)).logits
        return logits
    count = int(torch.multinomial(torch.tensor(phase.passes), 1, generator=generator))
    low, high = phase.mixing
    refinement = LatentRefinement(low + (high - low) * float(torch.rand((), generator=generator)))
    embedding = model.embedding
    seen: Tensor | None = None

    def embedded(hidden: Tensor) -> Tensor:
        """Of the tokens, or of what the last forward says where they are hidden."""
        plain: Tensor = embedding(tokens.masked_fill(hidden, MASK))
        if seen is None:
            return plain
        mixed = refinement.embed(seen, embedding.weight, embedding.weight[MASK])
        return torch.where(hidden[..., None], mixed, plain)

    for _ in range(count):
        share = phase.earlier * torch.rand((len(tokens), 1), generator=generator).to(tokens.device)
        hidden = masked | ((uniform(tokens, generator) < share) & in_response(tokens))
        with torch.no_grad():
            seen = model(inputs_embeds=embedded(hidden)).logits
            seen[..., MASK] = -math.inf
    found: Tensor = model(inputs_embeds=embedded(masked)).logits
    return found


def train(out: Path, seed: int, device: str, first: int, start: Path | None) -> None:
    """AdamW by the phases from `first` on, each from the last one's moving average; the last of these is written.

    `start` is a folder of the weights to begin with; None draws them.
    """
    torch.manual_seed(seed)
    if start is None:
        model = MaskedDiffusionLM(MaskedDiffusionConfig(vocab_size=len(sums.VOCABULARY), mask_token_id=MASK))
    else:
        model = MaskedDiffusionLM.from_pretrained(start).train()
    model = model.to(device)
    checkpoint = out / "checkpoint.pt"
    out.mkdir(parents=True, exist_ok=True)
    saved = torch.load(checkpoint, weights_only=True, map_location="cpu") if checkpoint.exists() else None
    for index, phase in enumerate(PHASES):
        if index < first or (saved is not None and index < saved["phase"]):
            continue
        resumed = saved if saved is not None and index == saved["phase"] else None
        model = train_phase(model, index, phase, out, seed, resumed)


def train_phase(
    model: MaskedDiffusionLM, index: int, phase: Phase, out: Path, seed: int, saved: dict[str, Any] | None
) -> MaskedDiffusionLM:
    """One phase, from its start or from a checkpoint of it; the moving average of the weights."""
    generator = torch.Generator().manual_seed(seed + index)
    average, checkpoint = copy.deepcopy(model).eval(), out / "checkpoint.pt"
    optimiser = torch.optim.AdamW(model.parameters(), lr=phase.rate, betas=(0.9, 0.98), weight_decay=0.01)
    source, start = bounded_problems(seed + index, phase.bounds), 0
    if saved is not None:
        start = saved["step"]
        model.load_state_dict(saved["model"])
        average.load_state_dict(saved["average"])
        optimiser.load_state_dict(saved["optimiser"])
        generator.set_state(saved["generator"])
        next(itertools.islice(source, start * phase.batch, start * phase.batch), None)
    began = time.perf_counter()
    for step in range(start, phase.steps):
        for group in optimiser.param_groups:
            group["lr"] = phase.rate_at(step)
        loss_of = LOSSES[phase.losses[step % len(phase.losses)]]
        tokens = batch_of(source, phase.batch).to(model.device)
        loss = loss_of(functools.partial(predictions, model, phase, generator), tokens, generator)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        decay = min(phase.average, (step + 1) / (step + 10))
        with torch.no_grad():
            for mean, value in zip(average.parameters(), model.parameters(), strict=True):
                mean.lerp_(value, 1 - decay)
        if (step + 1) % 250 == 0 or step + 1 == phase.steps:
            right, valid = valid_share(average, 32)
            speed = (step + 1 - start) / (time.perf_counter() - began)
            shares = f"answers {right:.3f} valid {valid:.3f}"
            print(f"phase {index} step {step + 1} loss {loss.item():.4f} {shares} {speed:.2f}/s", flush=True)
            state = {"phase": index, "step": step + 1, "model": model.state_dict(), "average": average.state_dict()}
            torch.save({**state, "optimiser": optimiser.state_dict(), "generator": generator.get_state()}, checkpoint)
            write(average, out / "folder", seed)
    return average.train()


def write(model: MaskedDiffusionLM, folder: Path, seed: int) -> None:
    """The model and its tokenizer as transformers writes them, and how it was trained."""
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    how = {"seed": seed, "phases": [asdict(phase) for phase in PHASES]}
    (folder / "training.json").write_text(json.dumps(how, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["train", "evaluate"])
    parser.add_argument("--out", type=Path, default=Path("build/language"))
    parser.add_argument("--model", type=Path, help="a folder of weights: to evaluate, or to start from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--first", type=int, default=0, help="the phase to start with; from 1 on with --model")
    args = parser.parse_args()
    if args.stage == "train":
        if not 0 <= args.first < len(PHASES) or (args.first > 0) != (args.model is not None):
            parser.error("--first = 1 to 6 needs the weights of the phases before it: give --model too")
        train(args.out, args.seed, args.device, args.first, args.model)
    else:
        folder = args.model or args.out / "folder"
        right, valid = valid_share(MaskedDiffusionLM.from_pretrained(folder).eval().to(args.device), 512)
        print(f"answers {right:.4f} valid {valid:.4f}")


if __name__ == "__main__":
    main()
