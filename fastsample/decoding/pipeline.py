"""`MaskedDiffusionPipeline`: prompts in, texts out, by a masked diffusion language model of transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoTokenizer

from fastsample.decoding.adapters import adapter_of, mask_token_of
from fastsample.decoding.commit import Checking, CommitRule, LowConfidence
from fastsample.decoding.decode import decode_masked
from fastsample.decoding.decoder import Decoder
from fastsample.decoding.ledger import DecodingLedger
from fastsample.decoding.prompts import Message, encode, encode_chats, texts_of
from fastsample.decoding.rows import Commit, Stream
from fastsample.decoding.settings import constrained
from fastsample.decoding.streaming import Deltas, Stops, Transcript
from fastsample.sampling.noise import Generators

StepCallback = Callable[[Any, int, int, dict[str, Tensor]], Any]


@dataclass
class MaskedDiffusionOutput(BaseOutput):  # type: ignore[misc]
    """`sequences` int64 [B, gen_length], the responses; `texts`, None where output_type is "seq"; what it took."""

    sequences: Tensor
    texts: list[str] | None
    ledger: DecodingLedger


class MaskedDiffusionPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Text from LLaDA, Dream, or another bidirectional masked language model of transformers.

        pipe = MaskedDiffusionPipeline.from_pretrained("GSAI-ML/LLaDA-8B-Instruct", trust_remote_code=True,
                                                       dtype=torch.bfloat16).to("cuda")
        pipe("What is 17 * 3?", gen_length=128, block_length=32, rule=fastsample.Threshold(0.9)).texts

    How the model is called (`adapter`) follows from its family, see :func:`adapter_of`; set it for others.
    `mask_token_id` is that of the model's config or of the tokenizer unless given.
    Raises ValueError for a causal model, or one without a mask token.
    """

    model_cpu_offload_seq = "model"
    _optional_components: ClassVar[list[str]] = ["tokenizer"]
    _callback_tensor_inputs: ClassVar[list[str]] = ["tokens"]

    def __init__(self, model: Any, tokenizer: Any = None, mask_token_id: int | None = None) -> None:
        super().__init__()
        self.register_modules(model=model, tokenizer=tokenizer)
        self.adapter = adapter_of(model)
        mask_token_id = mask_token_of(model, tokenizer) if mask_token_id is None else mask_token_id
        if mask_token_id is None:
            raise ValueError(
                "mask_token_id = None, and neither the model's config nor the tokenizer has one: give it"
            )
        self.register_to_config(mask_token_id=mask_token_id)
        self._interrupt = False

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *, trust_remote_code: bool = False, **kwargs: Any
    ) -> MaskedDiffusionPipeline:
        """The pipeline of a model of transformers, on the Hub or in a folder, or of a folder of `save_pretrained`.

        kwargs are those of diffusers' `from_pretrained` for a saved pipeline, of transformers' for a model, such as
        dtype, device_map, revision; `tokenizer` and `mask_token_id` replace the model's own. Code of the model's
        author (LLaDA, Dream) runs only with `trust_remote_code=True`.
        Raises ValueError for `output_loading_info`, which would return something else than a pipeline.
        """
        name = pretrained_model_name_or_path
        if kwargs.pop("output_loading_info", False):
            raise ValueError("output_loading_info = True: a pipeline is returned alone, leave it out")
        if (Path(name) / "model_index.json").exists():
            pipe: MaskedDiffusionPipeline = super().from_pretrained(
                name, trust_remote_code=trust_remote_code, **kwargs
            )
            return pipe
        own_parts = {key: kwargs.pop(key) for key in ("tokenizer", "mask_token_id") if key in kwargs}
        shared = {key: kwargs[key] for key in ("revision", "cache_dir", "local_files_only", "token") if key in kwargs}
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code, **shared)
        # LLaDA and Dream give their masked model as AutoModel; those of transformers have the head apart
        own = trust_remote_code and "AutoModel" in (getattr(config, "auto_map", None) or {})
        loader = AutoModel if own else AutoModelForMaskedLM
        model = loader.from_pretrained(name, config=config, trust_remote_code=trust_remote_code, **kwargs)
        if "tokenizer" not in own_parts:
            own_parts["tokenizer"] = AutoTokenizer.from_pretrained(
                name, trust_remote_code=trust_remote_code, **shared
            )
        return cls(model.eval(), **own_parts)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        messages: Sequence[Message] | Sequence[Sequence[Message]] | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        use_chat_template: bool = True,
        rule: CommitRule | None = None,
        gen_length: int = 128,
        block_length: int | None = None,
        num_inference_steps: int | None = None,
        eos_token_id: int | Sequence[int] | None = None,
        eos_early_stop: bool = True,
        generator: Generators = None,
        output_type: str = "text",
        return_dict: bool = True,
        stream: Stream | None = None,
        streamer: Any = None,
        stop_strings: str | Sequence[str] | None = None,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("tokens",),
        **options: Any,
    ) -> MaskedDiffusionOutput | tuple[Tensor, list[str] | None, DecodingLedger]:
        """Write a response of `gen_length` tokens to each prompt.

        prompt, messages (one chat or a list of them), or input_ids [B, P] with its attention_mask: exactly one.
        use_chat_template: prompts become user messages, where the tokenizer has a chat template.
        rule: :class:`LowConfidence` by default. num_inference_steps: `steps` of :func:`fastsample.decode_masked`,
            which says what the other arguments and `options` are (guidance_scale, temperature, cache, ..).
        eos_token_id: the tokenizer's by default; with `eos_early_stop` a row ends at it, and texts in any case.
        generator: one, or a list of one a row.
        streamer: a streamer of transformers (`TextStreamer`, `TextIteratorStreamer`, ..), for one prompt: it gets the
            prompt's tokens, then the response's as they become final, in their order. stream: a function of each
            forward's commits.
        stop_strings: a row ends where its text has one of them, and its text before it.
        callback_on_step_end: called as (pipe, step, 0, {"tokens": [B, P + gen_length]}) after each forward; it may
            set `pipe._interrupt = True` to end the run.

        Raises ValueError for wrong input, before any forward.
        """
        ids, mask = self._encode(prompt, messages, input_ids, attention_mask, use_chat_template)
        if output_type not in ("text", "seq"):
            raise ValueError(f'output_type = {output_type!r}: give "text" or "seq"')
        if output_type == "text" and self.tokenizer is None:
            raise ValueError('output_type = "text" needs a tokenizer: give the pipeline one, or output_type="seq"')
        unknown = sorted(set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs))
        if unknown:
            raise ValueError(f"callback_on_step_end_tensor_inputs = {unknown}: give {self._callback_tensor_inputs}")
        if eos_token_id is None:
            eos_token_id = getattr(self.tokenizer, "eos_token_id", None)
        ends = [eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id or [])
        strings = [stop_strings] if isinstance(stop_strings, str) else list(stop_strings or [])
        self._check_strings(strings, streamer, len(ids))
        self._interrupt = False
        ids, mask = ids.to(self._execution_device), mask.to(self._execution_device)
        block = gen_length if block_length is None else block_length
        rule = LowConfidence() if rule is None else rule
        stops = Stops(strings, self.tokenizer)
        given = constrained(
            options.get("constraints"), len(ids), max(gen_length, 0), self.config.mask_token_id
        ).tolist()
        transcript = Transcript(given, self.config.mask_token_id, ends, block if isinstance(rule, Checking) else 1)
        deltas = None if streamer is None else Deltas(streamer, stops, ids)

        def step_ended(decoder: Decoder) -> bool:
            if strings:
                lengths = {row: stops.length(transcript.final(row)) for row in decoder.active}
                decoder.finish({row: length for row, length in lengths.items() if length is not None})
            if deltas is not None:
                deltas.put(transcript.final(0))
            if callback_on_step_end is not None:
                tensors = {name: getattr(decoder, name) for name in callback_on_step_end_tensor_inputs}
                callback_on_step_end(self, decoder.forwards - 1, 0, tensors)
            return self._interrupt

        with self.progress_bar(total=len(ids) * gen_length) as bar:

            def committed(commits: list[Commit]) -> None:
                bar.update(transcript.take(commits))
                if stream is not None:
                    stream(commits)

            try:
                sequences, ledger = decode_masked(
                    self.model,
                    ids,
                    rule=rule,
                    gen_length=gen_length,
                    block_length=block_length,
                    steps=num_inference_steps,
                    mask_token_id=self.config.mask_token_id,
                    attention_mask=mask,
                    eos_token_id=ends if eos_early_stop else None,
                    generator=generator,
                    adapter=self.adapter,
                    stream=committed,
                    callback=step_ended,
                    **options,
                )
                if deltas is not None:
                    deltas.end(transcript.final(0), self.tokenizer)
                    deltas = None
            finally:
                if deltas is not None:  # who reads on another thread would wait for ever
                    deltas.close()
        self.maybe_free_model_hooks()
        responses = sequences[:, ids.shape[1] :]
        if strings:
            filler = options.get("pad_token_id")
            if filler is None:
                filler = ends[0] if ends else self.config.mask_token_id
            for row in range(len(responses)):
                responses[row, stops.length(transcript.final(row)) or gen_length :] = filler
        texts = None
        if output_type == "text":
            texts = [stops.cut(text) for text in texts_of(self.tokenizer, responses, ends)]
        return MaskedDiffusionOutput(responses, texts, ledger) if return_dict else (responses, texts, ledger)

    def _check_strings(self, strings: Sequence[str], streamer: Any, rows: int) -> None:
        if "" in strings:
            raise ValueError("stop_strings has an empty one: give strings of at least one character")
        for name, value in (("stop_strings", strings), ("streamer", streamer)):
            if value and self.tokenizer is None:
                raise ValueError(f"{name} needs a tokenizer: give the pipeline one")
        if streamer is not None and rows != 1:
            raise ValueError(f"streamer with {rows} prompts: it takes one text, give one prompt or `stream`")

    def _encode(
        self,
        prompt: str | Sequence[str] | None,
        messages: Sequence[Any] | None,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        chat: bool,
    ) -> tuple[Tensor, Tensor]:
        if sum(value is not None for value in (prompt, messages, input_ids)) != 1:
            raise ValueError("prompt, messages and input_ids: give exactly one of them")
        if input_ids is not None:
            return input_ids, torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if self.tokenizer is None:
            raise ValueError("tokenizer = None: give the pipeline one, or input_ids")
        if prompt is not None:
            return encode(self.tokenizer, [prompt] if isinstance(prompt, str) else prompt, chat=chat)
        assert messages is not None
        return encode_chats(self.tokenizer, [messages] if messages and isinstance(messages[0], dict) else messages)
