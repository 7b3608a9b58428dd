"""Commit rules in diffusers' text pipelines: stock's text where nothing fires, fewer forwards where it does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers import BlockRefinementScheduler, DiffusionGemmaPipeline, LLaDA2Pipeline
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion, DiffusionGemmaTextConfig

import fastsample
from fastsample.decoding import schedulers
from fastsample.decoding.block_refinement import CommitScheduler
from fastsample.demo.language.loading import load_language_model
from fastsample.demo.language.model import MaskedDiffusionConfig, MaskedDiffusionLM

NEVER = (float("inf"),) * 3
CLASSES = [cls for cls in vars(schedulers).values() if isinstance(cls, type) and issubclass(cls, CommitScheduler)]
CLASSES.remove(CommitScheduler)
MASK, END = 15, 14


@pytest.fixture(scope="module")
def tiny() -> MaskedDiffusionLM:
    torch.manual_seed(3)
    config = MaskedDiffusionConfig(hidden_size=32, num_hidden_layers=2, intermediate_size=64)
    model = MaskedDiffusionLM(config).eval()
    for name, weights in model.named_parameters():
        if weights.ndim == 2:  # wide enough for logits that depend on the context, and thresholds that matter
            weights.data.normal_(std=0.3 if "blocks" in name or "head" in name else 1.0)
    model.head.bias.data[MASK] = -100  # as a trained model, which never predicts the mask
    return model


@contextmanager
def forwards_of(model: torch.nn.Module) -> Iterator[list[int]]:
    """The batch size of every forward in the block."""
    calls: list[int] = []
    handle = model.register_forward_hook(lambda module, args, output: calls.append(1))
    try:
        yield calls
    finally:
        handle.remove()


def sequences(model: MaskedDiffusionLM, scheduler: Any, prompts: torch.Tensor, **kwargs: Any) -> tuple[Any, int]:
    """Generated ids without stopping at end tokens, and how many forwards they took."""
    pipe = LLaDA2Pipeline(model=model, scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    settings = {"gen_length": 24, "block_length": 8, "num_inference_steps": 8, "mask_token_id": MASK}
    settings |= {"eos_early_stop": False, "output_type": "seq", "threshold": 2.0, "editing_threshold": None}
    with forwards_of(model) as calls:
        found = pipe(input_ids=prompts, **{**settings, **kwargs}).sequences
    return found, len(calls)


def prompts_of(rows: int) -> torch.Tensor:
    return torch.randint(0, 12, (rows, 8), generator=torch.Generator().manual_seed(rows))


SETTINGS = {
    "one token a step": {},
    "several tokens a step": {"num_inference_steps": 3},
    "threshold": {"threshold": 0.6},
    "a prompt that ends inside a block": {"block_length": 12},
    "editing": {"threshold": 0.5, "editing_threshold": 0.4, "max_post_steps": 5},
    "sampled": {"temperature": 0.8},  # where blocks end early, stock's forward behind each takes draws of its own
    "nucleus": {"temperature": 0.8, "top_p": 0.8, "top_k": 6},
    "greedy by name": {"temperature": 0.8, "sampling_method": "greedy"},
    "end tokens": {"eos_early_stop": True, "eos_token_id": 7},
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(
    "scheduler", [schedulers.ThresholdScheduler(), schedulers.ProphetScheduler(thresholds=NEVER)]
)
def test_stocks_text_where_nothing_fires(tiny: MaskedDiffusionLM, scheduler: Any, name: str) -> None:
    for rows in (1, 5):
        runs = []
        for own in (BlockRefinementScheduler(), scheduler):
            generator = torch.Generator().manual_seed(9)
            runs.append(sequences(tiny, own, prompts_of(rows), generator=generator, **SETTINGS[name]))
        (want, most), (got, count) = runs
        assert count <= most
        if SETTINGS[name].get("eos_early_stop"):
            until_end = (want == 7).cumsum(-1) - (want == 7).long() > 0  # behind the first, where texts are cut
            want, got = want.masked_fill(until_end, -1), got.masked_fill(until_end, -1)
        assert torch.equal(want, got)


def test_a_block_ends_with_the_forward_that_decides_it(tiny: MaskedDiffusionLM) -> None:
    """Above every threshold, one forward a block is enough; stock makes a second one that changes nothing."""
    stock, most = sequences(tiny, BlockRefinementScheduler(), prompts_of(1), threshold=0.0)
    ours, count = sequences(tiny, schedulers.ThresholdScheduler(), prompts_of(1), threshold=0.0)
    assert torch.equal(stock, ours)
    assert (count, most) == (3, 6)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("steps", [8, 3])
def test_every_rule_decides_everything_within_the_steps(tiny: MaskedDiffusionLM, cls: Any, steps: int) -> None:
    found, count = sequences(tiny, cls(), prompts_of(4), num_inference_steps=steps)
    assert bool((found != MASK).all())
    assert count <= 3 * steps


@pytest.mark.parametrize("cls", CLASSES)
def test_rows_do_not_see_their_batch(tiny: MaskedDiffusionLM, cls: Any) -> None:
    prompts = prompts_of(6)
    together, _ = sequences(tiny, cls(), prompts, threshold=0.6)
    alone = [sequences(tiny, cls(), row[None], threshold=0.6)[0] for row in prompts]
    assert torch.equal(together, torch.cat(alone))


def test_prophet_commits_each_row_at_its_own_time(tiny: MaskedDiffusionLM) -> None:
    """In one block over everything, a row's tokens are those of the forward at which its own gap was large enough."""
    prompts, gap = prompts_of(5), 0.8
    whole = {"block_length": 32, "num_inference_steps": 32}
    committed: list[torch.Tensor] = []

    def watch(pipe: Any, step: int, timestep: int, tensors: dict[str, Any]) -> dict[str, Any]:
        committed.append(tensors["transfer_index"].sum(-1))
        return {}

    pipe = LLaDA2Pipeline(model=tiny, scheduler=schedulers.ProphetScheduler(thresholds=(gap,) * 3))
    pipe.set_progress_bar_config(disable=True)
    pipe(
        input_ids=prompts,
        gen_length=24,
        threshold=2.0,
        editing_threshold=None,
        mask_token_id=MASK,
        output_type="seq",
        callback_on_step_end=watch,
        callback_on_step_end_tensor_inputs=["transfer_index"],
        **whole,
    )
    for row, counts in zip(prompts, torch.stack(committed, 1), strict=True):
        tokens = torch.cat([row, torch.full((24,), MASK)])
        for step in range(len(counts)):
            with torch.no_grad():
                logits = tiny(tokens[None]).logits[0]
            top = logits.topk(2, -1).values
            undecided = tokens == MASK
            if float((top[:, 0] - top[:, 1])[undecided].mean()) >= gap:
                assert int(counts[step]) == int(undecided.sum())
                assert int(counts[step + 1 :].sum()) == 0
                break
            quota = 32 // 24 + (step < 32 % 24)  # the pipeline makes at most gen_length steps of a block
            assert int(counts[step]) == quota
            place = logits.softmax(-1).max(-1).values.masked_fill(~undecided, -1).topk(quota).indices
            tokens[place] = logits[place].argmax(-1)
    assert len({int((counts > 0).sum()) for counts in torch.stack(committed, 1)}) > 1  # at different times


class _HostReads(TorchDispatchMode):
    """Counts what makes the host wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero)
        return func(*args, **(kwargs or {}))


def host_reads(call: Callable[[], Any]) -> int:
    with _HostReads() as mode:
        call()
    return mode.count


@pytest.mark.parametrize("cls", CLASSES)
def test_one_wait_a_forward_whatever_the_batch(tiny: MaskedDiffusionLM, cls: Any) -> None:
    @torch.no_grad()
    def once(scheduler: Any) -> Callable[[], Any]:
        scheduler.set_timesteps(8, block_length=8)
        sample = torch.full((16, 8), MASK)
        logits = tiny(torch.cat([prompts_of(16), sample], 1)).logits[:, -8:]

        def call() -> None:
            options = {"mask_token_id": MASK, "threshold": 0.6, "editing_threshold": 0.5}
            output = scheduler.step(logits, 0, sample, **options)
            done = output.transfer_index | output.editing_transfer_index
            sequence = torch.cat([prompts_of(16), output.prev_sample], 1)
            finished = scheduler.check_eos_finished(
                sequence, output.sampled_tokens, done, torch.zeros(16, dtype=torch.bool), END, MASK, 8
            )
            left = (output.prev_sample == MASK).any()
            scheduler.check_block_should_continue(1, left, True, output.editing_transfer_index, 0, 16, finished)

        return call

    assert host_reads(once(cls())) <= 1
    assert host_reads(once(BlockRefinementScheduler())) > 3 * 16


@pytest.mark.parametrize("cls", CLASSES)
def test_configs_round_trip(cls: Any, tmp_path: Any) -> None:
    stock = BlockRefinementScheduler(block_length=16, threshold=0.8, editing_threshold=0.3)
    scheduler = cls.from_config(stock.config)
    assert {key: scheduler.config[key] for key in ("block_length", "threshold", "editing_threshold")} == {
        "block_length": 16,
        "threshold": 0.8,
        "editing_threshold": 0.3,
    }
    scheduler.save_pretrained(tmp_path)
    again = cls.from_pretrained(tmp_path)
    assert again.rule(0.5) == scheduler.rule(0.5)
    assert again.config.block_length == 16
    assert BlockRefinementScheduler.from_config(again.config).config.threshold == 0.8


def test_options_survive_a_saved_pipeline(tiny: MaskedDiffusionLM, tmp_path: Any) -> None:
    scheduler = schedulers.ProphetScheduler(thresholds=(9.0, 6.0, 3.0), region=(2, 4), progress="paper")
    LLaDA2Pipeline(model=tiny, scheduler=scheduler).save_pretrained(tmp_path)
    again = fastsample.load_pipeline(tmp_path)
    assert type(again.scheduler) is schedulers.ProphetScheduler
    assert again.scheduler.rule(0.7) == scheduler.rule(0.7)
    assert isinstance(again.model, MaskedDiffusionLM)


@pytest.mark.parametrize(
    ("cls", "options", "words"),
    [
        (schedulers.ProphetScheduler, {"thresholds": (1.0, 2.0, 3.0)}, "must not rise"),
        (schedulers.ProphetScheduler, {"progress": "wall clock"}, "progress = 'wall clock'"),
        (schedulers.FactorScheduler, {"factor": 0}, "factor = 0"),
        (schedulers.EntropyBoundedScheduler, {"gamma": -1}, "gamma = -1"),
        (schedulers.HierarchyScheduler, {"confidence": 1.5}, "confidence = 1.5"),
    ],
)
def test_options_out_of_range_are_refused_at_once(cls: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        cls(**options)


def test_a_region_outside_the_block_is_refused_before_a_forward(tiny: MaskedDiffusionLM) -> None:
    with forwards_of(tiny) as calls, pytest.raises(ValueError, match="outside"):
        sequences(tiny, schedulers.ProphetScheduler(region=(6, 5)), prompts_of(1))
    assert calls == []


@pytest.fixture(scope="module")
def gemma() -> DiffusionGemmaPipeline:
    text = DiffusionGemmaTextConfig(
        vocab_size=16,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        global_head_dim=8,
        max_position_embeddings=128,
        sliding_window=64,
        num_experts=2,
        top_k_experts=1,
        moe_intermediate_size=16,
        layer_types=["sliding_attention", "full_attention"],
        pad_token_id=END,
        eos_token_id=END,
    )
    vision = dict(model_type="gemma4_vision", hidden_size=16, intermediate_size=32, num_hidden_layers=1)
    vision |= dict(num_attention_heads=2, num_key_value_heads=1, head_dim=8)
    torch.manual_seed(1)
    config = DiffusionGemmaConfig(text_config=text, vision_config=vision, canvas_length=8)
    model = DiffusionGemmaForBlockDiffusion(config).eval()
    _, tokenizer = load_language_model()
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    pipe = DiffusionGemmaPipeline(model=model, scheduler=BlockRefinementScheduler(), processor=tokenizer)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def canvases(pipe: DiffusionGemmaPipeline, scheduler: Any, **kwargs: Any) -> tuple[torch.Tensor, int]:
    """Generated ids, and how many forwards of the decoder they took."""
    pipe.scheduler = scheduler
    settings = {"gen_length": 16, "num_inference_steps": 8, "output_type": "seq", "eos_early_stop": False}
    generator = torch.Generator().manual_seed(4)
    with forwards_of(pipe.model) as calls:
        found = pipe(prompt=["123+", "4567"], generator=generator, **{**settings, **kwargs}).sequences
    return found, len(calls)


@pytest.mark.parametrize(
    "scheduler", [schedulers.ThresholdScheduler(), schedulers.ProphetScheduler(thresholds=NEVER)]
)
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_gemma_stocks_text_where_nothing_fires(gemma: Any, scheduler: Any, temperature: float) -> None:
    stop = {"confidence_threshold": None, "temperature": temperature}
    want, most = canvases(gemma, BlockRefinementScheduler(), **stop)
    got, count = canvases(gemma, scheduler, **stop)
    assert torch.equal(want, got)
    assert (count, most) == (16, 16)


def test_gemma_a_decided_canvas_ends_by_the_pipelines_own_test(gemma: Any) -> None:
    """All at once in the first forward, and one more that finds the prediction unchanged: 2 a canvas, not 8."""
    scheduler = schedulers.ProphetScheduler(thresholds=(0.0,) * 3)
    at_once, count = canvases(gemma, scheduler)
    assert count <= 2 * 2
    whole, every = canvases(gemma, scheduler, confidence_threshold=None)
    assert every == 16
    assert torch.equal(at_once[:, :8], whole[:, :8])  # the second canvas starts from other noise


@pytest.mark.parametrize("cls", CLASSES)
def test_gemma_takes_every_rule(gemma: Any, cls: Any) -> None:
    found, count = canvases(gemma, cls())
    assert found.shape == (2, 16)
    assert count <= 16


def test_public_names_are_those_of_the_module() -> None:
    assert {cls.__name__ for cls in CLASSES} <= set(fastsample.__all__)
