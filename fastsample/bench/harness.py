"""Masked diffusion language models in lm-evaluation-harness: its three kinds of request, answered.

    model = harness_model("GSAI-ML/LLaDA-8B-Instruct", rule="threshold", trust_remote_code=True)
    results = lm_eval.simple_evaluate(model, tasks=["gsm8k"])

Needs the extra: pip install 'fastsample[lm-eval]'. :class:`HarnessModel` itself does not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastsample.decoding import decode_masked
from fastsample.decoding.denoiser import Denoiser
from fastsample.decoding.pipeline import MaskedDiffusionPipeline
from fastsample.decoding.prompts import tokens_of
from fastsample.names.rules import Method, parse_method


@dataclass
class HarnessModel:
    """Answers requests (objects with `args`) by a pipeline, each independently of the others in its batch.

    `method` writes texts of `gen_length` tokens, or of a request's `max_gen_toks`, in whole blocks, up to its stops.
    Likelihoods are Monte Carlo estimates of a lower bound, over `draws` maskings (LLaDA, arXiv:2502.09992, eq. 6),
    the same for all continuations of one length. `forwards` counts what was evaluated.
    """

    pipe: MaskedDiffusionPipeline
    method: Method
    gen_length: int = 256
    batch: int = 8
    draws: int = 128
    seed: int = 0
    forwards: int = 0

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """For each (context, generation arguments) the text before the first stop; see :class:`Generation`."""
        found: dict[int, str] = {}
        for settings, places in _grouped(requests):
            for begin in range(0, len(places), self.batch):
                own = places[begin : begin + self.batch]
                texts = self._written([requests[place].args[0] for place in own], own, settings)
                found |= dict(zip(own, texts, strict=True))
        return [found[place] for place in range(len(requests))]

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """For each (context, continuation) the estimate, in nats, and whether greedy decoding writes it."""
        return [self._scored(*request.args) for request in requests]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """For each (text,) the estimate of the whole of it, in nats, without a context."""
        return [self._scored("", request.args[0])[0] for request in requests]

    def _written(self, contexts: Sequence[str], places: Sequence[int], settings: Generation) -> list[str]:
        block = self.method.block or 1
        out: Any = self.pipe(
            contexts,
            use_chat_template=False,  # the harness has applied it
            gen_length=-(-(settings.length or self.gen_length) // block) * block,
            stop_strings=settings.until,
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
            repetition_penalty=settings.repetition_penalty,
            generator=[torch.Generator().manual_seed(self.seed + place) for place in places],
            **self.method.pipeline_settings,
        )
        self.forwards += out.ledger.forward_calls
        return out.texts

    def _scored(self, context: str, continuation: str) -> tuple[float, bool]:
        prompt, target = self._split(context, continuation)
        if not len(target):
            return 0.0, True
        return self._bound(prompt, target), self._is_greedy(prompt, target)

    def _split(self, context: str, continuation: str) -> tuple[Tensor, Tensor]:
        """Tokens of the context and of the continuation, split where the context ends, spaces with what follows.

        The context begins by a BOS where the tokenizer begins texts so; an empty one is the BOS of a tokenizer that
        has one.
        """
        tokenizer, head = self.pipe.tokenizer, context.rstrip()
        tail, begin = context[len(head) :] + continuation, tokenizer.bos_token_id
        if head:
            both, cut = tokens_of(tokenizer, head + tail), len(tokens_of(tokenizer, head))
        else:
            both = tokenizer(tail, add_special_tokens=False).input_ids
            if begin is not None and both[:1] != [begin]:
                both = [begin, *both]
            cut = int(begin is not None)
        whole = torch.tensor(both, dtype=torch.int64, device=self.pipe.device)
        return whole[:cut], whole[cut:]

    @torch.no_grad()
    def _bound(self, prompt: Tensor, target: Tensor) -> float:
        """The mean over maskings of L / k times the log-likelihood of the k of L tokens that are masked."""
        length, mask = len(target), self.pipe.config.mask_token_id
        generator = torch.Generator().manual_seed(self.seed)
        counts = 1 + (torch.arange(self.draws) * length) // self.draws  # stratified: every k as often
        places = torch.rand(self.draws, length, generator=generator).argsort(-1).argsort(-1)
        masked = (places < counts[:, None]).to(target.device)
        total = 0.0
        for hidden in masked.split(self.batch):
            rows = torch.cat([prompt, target]).expand(len(hidden), -1).clone()
            rows[:, len(prompt) :].masked_fill_(hidden, mask)
            attention = torch.ones_like(rows)
            read = Denoiser(self.pipe.model, self.pipe.adapter, attention, len(prompt), mask, 0.0)
            logits = (
                read(rows, 0, length).logits.float().index_fill(-1, torch.tensor(mask, device=rows.device), -math.inf)
            )
            self.forwards += 1
            own = logits.log_softmax(-1).gather(-1, target.expand(len(hidden), -1)[..., None])[..., 0]
            total += float((torch.where(hidden, own, 0).sum(-1) * length / hidden.sum(-1)).sum())
        return total / self.draws

    def _is_greedy(self, prompt: Tensor, target: Tensor) -> bool:
        """Whether decoding one token a forward, the most confident first, gives `target`."""
        if not len(prompt):
            return False
        sequences, ledger = decode_masked(
            self.pipe.model,
            prompt[None],
            rule=parse_method("low-confidence").rule,
            gen_length=len(target),
            mask_token_id=self.pipe.config.mask_token_id,
            adapter=self.pipe.adapter,
        )
        self.forwards += ledger.forward_calls
        return torch.equal(sequences[0, len(prompt) :], target)


def harness_model(
    model: str | MaskedDiffusionPipeline,
    *,
    rule: str = "low-confidence",
    device: str = "cpu",
    dtype: str = "bfloat16",
    trust_remote_code: bool = False,
    **options: Any,
) -> Any:
    """A model for `lm_eval.simple_evaluate`: that of a folder or hub id, or a pipeline's, decoded by `rule`.

    rule as for `fastsample decode`, such as "prophet+threshold:confidence=0.95,block=32"; `options` are those of
    :class:`HarnessModel` (gen_length, batch, draws, seed).
    Raises ImportError where lm-evaluation-harness is not installed, before anything is loaded.
    """
    try:
        from lm_eval.api.model import LM  # an extra
    except ImportError as error:
        raise ImportError(f"lm_eval cannot be imported ({error}): pip install 'fastsample[lm-eval]'") from None
    method = parse_method(rule)

    class FastsampleLM(HarnessModel, LM):  # type: ignore[misc]
        """:class:`HarnessModel`, as the class that the harness asks for."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            LM.__init__(self)
            HarnessModel.__init__(self, *args, **kwargs)

        @property
        def tokenizer_name(self) -> str:
            return str(self.pipe.tokenizer.name_or_path).replace("/", "__")

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            written: str = self.pipe.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
            return written

        def chat_template(self, chat_template: bool | str = False) -> str | None:
            return self.pipe.tokenizer.chat_template if chat_template else ""

    if isinstance(model, str):
        pipe = MaskedDiffusionPipeline.from_pretrained(
            model, dtype=getattr(torch, dtype), trust_remote_code=trust_remote_code
        )
        pipe.set_progress_bar_config(disable=True)
        return FastsampleLM(pipe.to(device), method, **options)
    return FastsampleLM(model, method, **options)


@dataclass(frozen=True)
class Generation:
    """The generation arguments of a request, read as lm-evaluation-harness reads them.

    until: one string or several. length: max_gen_toks, max_new_tokens, max_tokens or max_completion_tokens, the first
    of these that is there. Without `do_sample` a temperature above 0 samples; with do_sample false the temperature is
    0, with true and none given 1.
    """

    until: tuple[str, ...] = ()
    length: int | None = None
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float = 1.0

    @classmethod
    def read(cls, arguments: Mapping[str, Any]) -> Generation:
        """From a request's arguments; ValueError for one that is not known, before any forward."""
        given = dict(arguments)
        until = given.pop("until", None) or ()
        lengths = [given.pop(name, None) for name in LENGTHS]
        sample, heat = given.pop("do_sample", None), given.pop("temperature", None)
        if sample is None:
            sample = float(heat or 0.0) > 0
        found = cls(
            until=tuple(filter(None, (until,) if isinstance(until, str) else until)),
            length=next((int(length) for length in lengths if length is not None), None),
            temperature=(1.0 if heat is None else float(heat)) if sample else 0.0,
            top_p=given.pop("top_p", None),
            top_k=given.pop("top_k", None) or None,  # 0 is none in transformers
            repetition_penalty=float(given.pop("repetition_penalty", 1.0)),
        )
        unknown = {name: value for name, value in given.items() if (name, value) != ("num_beams", 1)}
        if unknown:
            known = ", ".join(("until", *LENGTHS, "do_sample", "temperature", "top_p", "top_k", "repetition_penalty"))
            raise ValueError(f"generation arguments {unknown}: give some of {known}")
        return found if found.temperature else replace(found, top_p=None, top_k=None)


LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names of the most tokens to write, the first that is given counts."""


def _grouped(requests: Sequence[Any]) -> Iterator[tuple[Generation, list[int]]]:
    """Groups of requests with the same settings: the settings, and the requests' places, longest contexts first.

    So a batch that does not fit into memory fails at once.
    """
    groups: dict[Generation, list[int]] = {}
    for place, request in enumerate(requests):
        groups.setdefault(Generation.read(request.args[1]), []).append(place)
    for settings, places in groups.items():
        yield settings, sorted(places, key=lambda place: -len(requests[place].args[0]))
