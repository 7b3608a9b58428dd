"""LLaDA in fewer forwards: an early-commit rule beside one token a forward.

python examples/llada.py --prompt "What is 17 * 3?" --length 128 --block 32 --factor 0.3

Prints both texts and the forwards that each took. Dream and other masked language models work as well.
"""

from __future__ import annotations

import torch
import typer

import fastsample


def main(
    model: str = "GSAI-ML/LLaDA-8B-Instruct",
    prompt: str = "What is 17 * 3?",
    length: int = 128,
    block: int = 32,
    factor: float = 0.3,
) -> None:
    """Write an answer by Fast-dLLM's factor rule, and one token a forward."""
    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    pipe = fastsample.MaskedDiffusionPipeline.from_pretrained(model, trust_remote_code=True, dtype=dtype).to(device)
    for rule in (fastsample.Factor(factor), fastsample.LowConfidence()):
        out = pipe(prompt, gen_length=length, block_length=block, rule=rule)
        print(f"{rule}: {out.ledger.forward_calls} forwards, {out.ledger.tokens_per_forward:.1f} tokens each")
        print(out.texts[0])


if __name__ == "__main__":
    typer.run(main)
