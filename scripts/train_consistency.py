"""Train the bundled causal language model on the sums, and its consistency model for Jacobi decoding, from a seed.

    python scripts/train_consistency.py teacher --device cuda --workers 4
    python scripts/train_consistency.py consistency --device cuda --workers 4
    python scripts/train_consistency.py evaluate --out fastsample/demo/causal

The second stage is that of CLLM (Kou et al. 2024, arXiv:2403.00835): the model meets the states of its own Jacobi
decoding and learns to write, from each, what it writes at their fixed point, while the text itself stays what it was.
Both stages go on from their checkpoint in OUT where there is one. `evaluate` counts the passes of both models.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from train_language import encode, make_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from fastsample.demo.language import sums

END = sums.VOCABULARY.index(sums.END)
PROMPT = sums.PROMPT_LENGTH
BLOCK = 32
"""Tokens that are guessed at once in training; shorter blocks gain too."""
SWEEPS = 8
"""States are of fewer sweeps than this; later ones differ little from the fixed point."""
STAGES = {"teacher": (2000, 2e-3), "consistency": (1000, 1e-3)}
"""Steps and largest rate; one cosine each, after a hundredth of warm-up."""
BATCH = 512
TEXT_WEIGHT = 10.0
"""The weight of the text's own loss beside that of consistency, as published."""


class Problems(IterableDataset[Tensor]):
    """Endless training texts, each int64 [prompt + response], the response filled with end tokens."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __iter__(self) -> Iterator[Tensor]:
        worker = get_worker_info()
        share = worker.id if worker else 0
        for problem in sums.problems(self.seed * 1000 + share, test=False):
            yield tokens_of(problem)


def tokens_of(problem: sums.Sum) -> Tensor:
    """The whole text of a problem."""
    tokens = encode(problem.prompt + problem.response)
    return torch.tensor(tokens + [END] * (PROMPT + sums.RESPONSE_LENGTH - len(tokens)))


def make_model(seed: int) -> LlamaForCausalLM:
    """An untrained model of 0.44 million parameters."""
    torch.manual_seed(seed)
    tokens = {"bos_token_id": None, "eos_token_id": END, "pad_token_id": END}
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(sums.VOCABULARY), hidden_size=96, intermediate_size=256, num_hidden_layers=4,
            num_attention_heads=4, max_position_embeddings=128, tie_word_embeddings=True, **tokens,
        )
    )  # fmt: skip


def text_loss(model: LlamaForCausalLM, tokens: Tensor) -> Tensor:
    """Cross-entropy of the response, to its first end token."""
    logits = model(tokens[:, :-1]).logits[:, PROMPT - 1 :]
    target = tokens[:, PROMPT:]
    target = target.masked_fill((target == END).cumsum(1) > 1, -100)
    return F.cross_entropy(logits.flatten(0, 1).float(), target.flatten(), ignore_index=-100)


@torch.no_grad()
def jacobi_states(
    model: LlamaForCausalLM, text: Tensor, begin: int, end: int, sweeps: int | None = None
) -> list[Tensor]:
    """The guesses [B, end - begin] of the tokens `begin` to `end` after `sweeps` of them, or at the fixed point.

    Every row by itself, from copies of the prompt's last token, as :func:`fastsample.jacobi_decode` starts.
    """
    guess = text[:, PROMPT - 1 : PROMPT].expand(-1, end - begin).clone()
    states = [guess]
    for _ in range(end - begin if sweeps is None else sweeps):
        logits = model(torch.cat([text[:, :begin], guess[:, :-1]], 1)).logits[:, begin - 1 :]
        guess = logits.argmax(-1)
        states.append(guess)
        if torch.equal(guess, states[-2]):
            break
    return states


def consistency_loss(model: LlamaForCausalLM, tokens: Tensor, generator: torch.Generator) -> Tensor:
    """What the model writes at a random sweep's state of a random block, against what it writes at the fixed point.

    The fixed point is the text itself, which the teacher writes; the states are those of the model as it is now.
    """
    starts = range(PROMPT, tokens.shape[1], BLOCK)
    begin = starts[int(torch.randint(len(starts), (), generator=generator))]
    final = tokens[:, begin : begin + BLOCK]
    end = begin + final.shape[1]
    sweeps = int(torch.randint(SWEEPS, (), generator=generator))
    state = jacobi_states(model.eval(), tokens, begin, end, sweeps)[-1]
    with torch.no_grad():
        goal = model(tokens[:, : end - 1]).logits[:, begin - 1 :].float().softmax(-1)
    logits = model.train()(torch.cat([tokens[:, :begin], state[:, :-1]], 1)).logits[:, begin - 1 :].float()
    open_ = (state != final).cumsum(1) > 0
    loss = -(goal * logits.log_softmax(-1)).sum(-1)
    return (loss * open_).sum() / open_.sum().clamp(min=1)


def train(stage: str, out: Path, seed: int, device: str, steps: int, batch: int, workers: int) -> None:
    """One stage, from its checkpoint where there is one; writes OUT/teacher or OUT/consistency."""
    rate = STAGES[stage][1]
    out.mkdir(parents=True, exist_ok=True)
    model = make_model(seed)
    if stage == "consistency":
        model = LlamaForCausalLM.from_pretrained(out / "teacher", dtype=torch.float32)
    model, checkpoint = model.to(device).train(), out / f"{stage}.pt"
    average, generator = copy.deepcopy(model).eval(), torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    start = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        start = saved["step"]
        model.load_state_dict(saved["model"])
        average.load_state_dict(saved["average"])
        optimiser.load_state_dict(saved["optimiser"])
        generator.set_state(saved["generator"])
    texts = iter(
        DataLoader(Problems(seed + start), batch, num_workers=workers, prefetch_factor=8 if workers else None)
    )
    began = time.perf_counter()
    for step in range(start, steps):
        warm = steps // 100
        scale = (step + 1) / warm if step < warm else 0.5 + 0.5 * math.cos(math.pi * (step - warm) / (steps - warm))
        for group in optimiser.param_groups:
            group["lr"] = rate * scale
        tokens = next(texts).to(device)
        loss = text_loss(model, tokens)
        if stage == "consistency":
            loss = TEXT_WEIGHT * loss + consistency_loss(model, tokens, generator)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        with torch.no_grad():
            for mean, value in zip(average.parameters(), model.parameters(), strict=True):
                mean.lerp_(value, 1 - min(0.995, (step + 1) / (step + 10)))
        if (step + 1) % 500 == 0 or step + 1 == steps:
            speed = (step + 1 - start) / (time.perf_counter() - began)
            print(f"{stage} step {step + 1} loss {loss.item():.4f} {speed:.1f}/s {report(average, 64)}", flush=True)
            state = {"step": step + 1, "model": model.state_dict(), "average": average.state_dict()}
            torch.save({**state, "optimiser": optimiser.state_dict(), "generator": generator.get_state()}, checkpoint)
            write(average, out / stage, {"stage": stage, "seed": seed, "steps": steps, "batch": batch})


def write(model: LlamaForCausalLM, folder: Path, how: dict[str, object]) -> None:
    """The model in float16 and its tokenizer as transformers writes them, and how it was trained."""
    copy.deepcopy(model).half().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    (folder / "training.json").write_text(json.dumps(how, indent=2) + "\n")


@torch.no_grad()
def report(model: LlamaForCausalLM, count: int, block: int = BLOCK) -> dict[str, float]:
    """On test problems: right answers, wholly right texts, and passes a text of Jacobi decoding, each row alone."""
    problems = [problem for problem, _ in zip(sums.problems(1, test=True), range(count), strict=False)]
    text = torch.stack([tokens_of(problem) for problem in problems]).to(model.device)[:, :PROMPT]
    passes = torch.zeros(count, device=model.device)
    for begin in range(PROMPT, PROMPT + sums.RESPONSE_LENGTH, block):
        end = min(begin + block, PROMPT + sums.RESPONSE_LENGTH)
        states = torch.stack(jacobi_states(model, text, begin, end))
        over = (text[:, PROMPT:] == END).any(1)
        passes += torch.where(over, 0, passes_of(states))
        text = torch.cat([text, states[-1]], 1)
    words = ["".join(sums.VOCABULARY[token] for token in row) for row in text[:, PROMPT:].tolist()]
    judged = [problem.judge(word) for problem, word in zip(problems, words, strict=True)]
    answers, valid = (sum(column) / count for column in zip(*judged, strict=True))
    return {"answers": answers, "valid": valid, "passes": round(passes.mean().item(), 2)}


def passes_of(states: Tensor) -> Tensor:
    """The sweeps after which each row's block is final, of guesses [sweeps + 1, B, n].

    A sweep settles the leading tokens that it left as they were, and the one after them.
    """
    found = torch.zeros_like(states[0, :, 0])
    settled = torch.zeros_like(found)
    for old, new in itertools.pairwise(states):
        found += settled < states.shape[2]
        same = (old == new) | (torch.arange(states.shape[2], device=states.device) < settled[:, None])
        settled = (same.cumprod(1).sum(1) + 1).clamp(max=states.shape[2])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=[*STAGES, "evaluate"])
    parser.add_argument("--out", type=Path, default=Path("build/causal"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, help="of the stage; a run of fewer is a trial")
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument(
        "--workers", type=int, default=0, help="processes that write the texts; they change the draws"
    )
    parser.add_argument("--count", type=int, default=512, help="test problems of evaluate")
    args = parser.parse_args()
    if args.stage != "evaluate":
        steps = args.steps or STAGES[args.stage][0]
        train(args.stage, args.out, args.seed, args.device, steps, args.batch, args.workers)
        return
    for stage in STAGES:
        model = LlamaForCausalLM.from_pretrained(args.out / stage, dtype=torch.float32).to(args.device).eval()
        for block in (8, 16, 32, 96):
            print(stage, "block", block, report(model, args.count, block), flush=True)


if __name__ == "__main__":
    main()
