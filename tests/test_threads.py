"""What is put on a pipeline for a block is there for the block's thread, and gone with the block, however it ends."""

from __future__ import annotations

import contextlib
import copy
import itertools
import pickle
import threading
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from pipelines import bundled_folder, quiet, stable_diffusion
from refusal import check_refused
from torch import Tensor
from turns import Turns, elsewhere, together
from zoo import ZOO, picture

import fastsample as fs
from fastsample.pipelines.configured import configured
from fastsample.pipelines.counting import count
from fastsample.pipelines.overlay import Attribute, overlaid
from fastsample.pipelines.tgate.targets import attention_modules

SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "ours": fs.DPMSolverScheduler.from_config,
    "ours stochastic": lambda config: fs.DPMSolverScheduler.from_config(config, algorithm_type="sde-dpmsolver++"),
    "ddim": diffusers.DDIMScheduler.from_config,
    "euler": diffusers.EulerDiscreteScheduler.from_config,
    "unipc": diffusers.UniPCMultistepScheduler.from_config,
}
EXACT = {"window": 4, "tolerance": 0.0}


def pipeline(scheduler: str = "ours") -> Any:
    pipe = quiet(stable_diffusion())
    pipe.scheduler = SCHEDULERS[scheduler](pipe.scheduler.config)
    return pipe


def sample(pipe: Any, seed: int = 0, **changed: Any) -> Tensor:
    arguments = {
        "prompt": "a small red circle",
        "num_inference_steps": 6,
        "guidance_scale": 3.0,
        "output_type": "latent",
        "height": 8,
        "width": 8,
    }
    return pipe(**{**arguments, "generator": torch.Generator().manual_seed(seed), **changed}).images


def close(found: Tensor, expected: Tensor) -> None:
    assert expected.isfinite().all()
    assert float((found - expected).abs().max()) <= 3e-5 * float(expected.abs().max())


def trace(pipe: Any) -> dict[str, Any]:
    """The class of a pipeline and of its parts, and the names of what they hold: what a patch would change."""
    parts = {"": pipe, **{name: part for name, part in pipe.components.items() if hasattr(part, "__dict__")}}
    modules = {
        f"{name}.{inner}": module
        for name, part in parts.items()
        if isinstance(part, torch.nn.Module)
        for inner, module in part.named_modules()
    }
    held = {name: (type(part), frozenset(vars(part))) for name, part in {**parts, **modules}.items()}
    hooks = {name: (len(m._forward_pre_hooks), len(m._forward_hooks)) for name, m in modules.items()}
    return {"held": held, "hooks": hooks, "kinds": {name: id(type(part)) for name, part in parts.items()}}


def rows_of(pipe: Any) -> list[int]:
    """Fills with the batch rows of each evaluation of the denoiser."""
    rows: list[int] = []
    pipe.unet.conv_in.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    return rows


# --- parallel sampling ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_while_a_block_is_open_other_threads_call_the_plain_pipeline(scheduler: str) -> None:
    pipe = pipeline(scheduler)
    expected, other = sample(pipe), sample(pipe, 1, num_inference_steps=4)
    sample(pipe)
    before, rows = trace(pipe), rows_of(pipe)
    with fs.parallelise(pipe, **EXACT) as run:
        assert torch.equal(elsewhere(lambda: sample(pipe, 1, num_inference_steps=4)), other)
        assert rows == [2] * 4
        assert run.steps == 0
        close(sample(pipe), expected)
        assert (run.steps, run.fallback) == (6, "")
        assert torch.equal(elsewhere(lambda: sample(pipe, 1, num_inference_steps=4)), other)
        assert run.steps == 6
    pipe.unet.conv_in._forward_pre_hooks.clear()
    assert trace(pipe) == before
    assert torch.equal(sample(pipe), expected)


@pytest.mark.parametrize("name", ["stable_diffusion_controlnet", "pixart_alpha", "flux", "wan"])
def test_every_kind_of_pipeline_is_plain_elsewhere(name: str) -> None:
    """One network or two, guidance by halves, by two calls, or none; with the scheduler that it came with."""
    pipe = ZOO[name].build()
    expected, before = ZOO[name].sample(pipe), trace(pipe)
    with fs.parallelise(pipe, **EXACT) as run:
        assert torch.equal(elsewhere(lambda: ZOO[name].sample(pipe)), expected)
        assert run.steps == 0
        close(ZOO[name].sample(pipe), expected)
        assert not run.fallback
        assert torch.equal(elsewhere(lambda: ZOO[name].sample(pipe)), expected)
    assert run.steps > 0
    assert trace(pipe) == before
    assert torch.equal(ZOO[name].sample(pipe), expected)


@pytest.mark.parametrize("scheduler", ["ours", "ours stochastic", "ddim"])
@pytest.mark.parametrize("step", [0, 3])
def test_a_plain_call_elsewhere_in_the_midst_of_a_parallel_one(scheduler: str, step: int) -> None:
    """Of the same object: neither notices the other."""
    pipe = pipeline(scheduler)
    expected, other = sample(pipe), sample(pipe, 1, num_inference_steps=9, height=16)
    found: list[Tensor] = []

    def meanwhile(_: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if index == step:
            found.append(elsewhere(lambda: sample(pipe, 1, num_inference_steps=9, height=16)))
        return tensors

    sampler = fs.ParallelSampler(pipe, **EXACT)
    close(sampler(**call(callback_on_step_end=meanwhile)).images, expected)
    assert not sampler.run.fallback
    assert torch.equal(found[0], other)


def call(**changed: Any) -> dict[str, Any]:
    """`sample`'s arguments."""
    kept: dict[str, Any] = {}

    def pipe(**kwargs: Any) -> Any:
        kept.update(kwargs)
        return type("Images", (), {"images": None})

    sample(pipe, **changed)
    return kept


@pytest.mark.parametrize("scheduler", ["ours", "ours stochastic"])
def test_a_parallel_call_elsewhere_in_the_midst_of_a_plain_one(scheduler: str) -> None:
    """The block opens and closes between two steps of another thread's call."""
    pipe = pipeline(scheduler)
    expected, other = sample(pipe), sample(pipe, 1, num_inference_steps=9)
    before = trace(pipe)

    def parallel() -> None:
        sampler = fs.ParallelSampler(pipe, **EXACT)
        close(sampler(**call(seed=1, num_inference_steps=9)).images, other)
        assert not sampler.run.fallback

    def meanwhile(_: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if index in (0, 2):
            elsewhere(parallel)
        return tensors

    assert torch.equal(sample(pipe, callback_on_step_end=meanwhile), expected)
    assert trace(pipe) == before


def test_the_global_stream_is_not_rewound_under_other_threads() -> None:
    """A parallel call whose steps draw nothing leaves PyTorch's own generator to who draws from it."""
    pipe = pipeline("ours")
    drawn: list[Tensor] = []

    def draw(_: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        drawn.append(elsewhere(lambda: torch.randn(4)))
        return tensors

    torch.manual_seed(5)
    fs.ParallelSampler(pipe, window=2, tolerance=0.0)(**call(callback_on_step_end=draw))
    torch.manual_seed(5)
    assert torch.equal(torch.stack(drawn), torch.stack([torch.randn(4) for _ in drawn]))


@pytest.mark.parametrize("scheduler", ["ours", "ours stochastic"])
@pytest.mark.parametrize("shared", ["pipeline", "networks"])
def test_two_threads_sample_in_parallel_by_turns(scheduler: str, shared: str) -> None:
    """One object in blocks of two threads, or two that share scheduler and networks: each its image and its costs."""
    pipe = pipeline(scheduler)
    pipes = [pipe, pipe if shared == "pipeline" else diffusers.StableDiffusionPipeline.from_pipe(pipe)]
    pipes[1].set_progress_bar_config(disable=True)
    steps = [6, 9]
    expected = [sample(pipes[seed], seed, num_inference_steps=n) for seed, n in enumerate(steps)]
    before = [trace(own) for own in pipes]
    turns = Turns(2)

    def job(number: int) -> Callable[[], Any]:
        def pause(_: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            turns.pass_on(number)
            return tensors

        def run() -> tuple[Tensor, Any]:
            with fs.parallelise(pipes[number], iteration="picard", **EXACT) as found:
                turns.pass_on(number)
                arguments = {"num_inference_steps": steps[number], "callback_on_step_end": pause}
                return sample(pipes[number], number, **arguments), found

        return turns.take_part(number, run)

    for (found, run), want, n in zip(together(job(0), job(1)), expected, steps, strict=True):
        close(found, want)
        assert (run.steps, run.plain_steps, run.fallback) == (n, 1, "")
    assert [trace(own) for own in pipes] == before


@pytest.mark.parametrize("order", itertools.permutations(range(3)))
@pytest.mark.parametrize("threads", [False, True])
def test_blocks_are_left_in_any_order(order: tuple[int, ...], threads: bool) -> None:
    """While they are open the innermost of this thread counts; then the pipeline is plain, and its class its own."""
    pipe = pipeline()
    expected, before = sample(pipe, num_inference_steps=3), trace(pipe)
    blocks = [fs.parallelise(pipe, window=2, tolerance=0.0) for _ in range(3)]
    runs = [block.__enter__() for block in blocks]
    open_ones = [0, 1, 2]
    for number in order:
        steps = [run.steps for run in runs]
        close(sample(pipe, num_inference_steps=3), expected)
        assert [run.steps - old for run, old in zip(runs, steps, strict=True)] == [
            3 * (place == max(open_ones)) for place in range(3)
        ]
        leave = lambda block=blocks[number]: block.__exit__(None, None, None)  # noqa: E731
        (elsewhere if threads else lambda job: job())(leave)
        open_ones.remove(number)
    assert trace(pipe) == before
    assert torch.equal(sample(pipe, num_inference_steps=3), expected)


@pytest.mark.parametrize("where", ["denoiser", "callback", "block", "decoder"])
def test_nothing_is_left_after_an_exception(where: str) -> None:
    """Nor after one in a block inside another, which goes on."""
    pipe = pipeline()
    expected, before = sample(pipe), trace(pipe)

    class BrokenError(Exception):
        pass

    def fail(*_: Any, **__: Any) -> Any:
        raise BrokenError

    def attempt() -> None:
        if where == "denoiser":
            handle = pipe.unet.conv_out.register_forward_hook(fail)
            try:
                sample(pipe)
            finally:
                handle.remove()
        elif where == "callback":
            sample(pipe, callback_on_step_end=fail)
        elif where == "decoder":
            handle = pipe.vae.decoder.register_forward_hook(fail)
            try:
                sample(pipe, output_type="pt")
            finally:
                handle.remove()
        else:
            fail()

    with fs.parallelise(pipe, **EXACT) as run:
        with pytest.raises(BrokenError), fs.parallelise(pipe, **EXACT):
            attempt()
        close(sample(pipe), expected)
        assert run.steps == 6
    assert trace(pipe) == before
    with pytest.raises(BrokenError), fs.parallelise(pipe, **EXACT):
        attempt()
    assert trace(pipe) == before
    assert torch.equal(sample(pipe), expected)


def test_pipelines_that_share_a_scheduler_and_networks() -> None:
    """`from_pipe`: what is open on one is not on the other, and both may be open."""
    pipe = pipeline()
    image = {"image": picture(1, 3, 16, 16), "strength": 0.8, "height": None, "width": None}
    other = quiet(diffusers.StableDiffusionImg2ImgPipeline.from_pipe(pipe))
    assert other.unet is pipe.unet
    assert other.scheduler is pipe.scheduler
    arguments = {name: value for name, value in call(**image).items() if value is not None}
    again = lambda: {**arguments, "generator": torch.Generator().manual_seed(0)}  # noqa: E731
    expected, theirs = sample(pipe), other(**again()).images
    rows = rows_of(pipe)
    with fs.parallelise(pipe, **EXACT) as run:
        assert torch.equal(other(**again()).images, theirs)
        assert rows == [2] * 4
        with fs.parallelise(other, **EXACT) as inner:
            close(other(**again()).images, theirs)
            close(sample(pipe), expected)
        assert torch.equal(other(**again()).images, theirs)
    assert (run.steps, inner.steps) == (6, 4)
    assert torch.equal(sample(pipe), expected)


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, lambda pipe: pickle.loads(pickle.dumps(pipe))])
def test_a_copy_made_in_a_block_is_plain(make: Callable[[Any], Any]) -> None:
    pipe = pipeline()
    expected = sample(pipe)
    with fs.parallelise(pipe, **EXACT) as run, configured(pipe, fs.GHVBScheduler.from_config(pipe.scheduler.config)):
        made = make(pipe)
        assert type(made) is diffusers.StableDiffusionPipeline
        assert torch.equal(sample(made), expected)
    assert run.steps == 0
    assert torch.equal(sample(made), expected)


def test_a_pipeline_is_saved_in_a_block_as_ever(tmp_path: Any) -> None:
    pipe = pipeline()
    expected = sample(pipe)
    with fs.parallelise(pipe, **EXACT):
        pipe.save_pretrained(tmp_path)
    assert torch.equal(sample(quiet(fs.load_pipeline(tmp_path, safety_checker=None))), expected)


def test_a_method_replaced_on_the_object_is_not_overlooked() -> None:
    """What stands on the object hides its class: it is refused before any evaluation, and nothing is left."""
    pipe = pipeline()
    sample(pipe)
    pipe.scheduler.step = pipe.scheduler.step
    before, rows = trace(pipe), rows_of(pipe)
    with fs.parallelise(pipe, **EXACT):
        check_refused(lambda: sample(pipe), "step was replaced on the object itself")
    assert rows == []
    pipe.unet.conv_in._forward_pre_hooks.clear()
    assert trace(pipe) == before


# --- T-GATE --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", ["ours", "ours stochastic"])
@pytest.mark.parametrize("plan", [(2, 1, 1, 0), (4, 2, 2, 1)])
def test_two_threads_call_a_gated_pipeline_by_turns(scheduler: str, plan: tuple[int, ...]) -> None:
    """Each call has its own steps, kept outputs and guidance; the counts are of both."""
    pipe = pipeline(scheduler)
    runs = [{"seed": 0}, {"seed": 1, "num_inference_steps": 9, "prompt": ["a circle", "small"], "height": 16}]
    plain = [sample(pipe, **arguments) for arguments in runs]
    before = trace(pipe)
    with fs.TGate(*plan).apply(pipe) as handle:
        expected = [sample(pipe, **arguments) for arguments in runs]
        once = handle.summary()
        handle.reset()
        turns = Turns(2)

        def job(number: int) -> Callable[[], Tensor]:
            def pause(_: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
                turns.pass_on(number)
                return tensors

            return turns.take_part(number, lambda: sample(pipe, **runs[number], callback_on_step_end=pause))

        found = together(job(0), job(1))
        assert all(map(torch.equal, found, expected))
        assert not any(map(torch.equal, found, plain))
        assert handle.summary() == once
    assert trace(pipe) == before
    assert all(torch.equal(sample(pipe, **arguments), want) for arguments, want in zip(runs, plain, strict=True))


@torch.no_grad()
def test_two_threads_call_a_gated_pipeline_whose_guidance_is_two_calls() -> None:
    """Wan: diffusers' cache_context names the branch for all threads; here each has its own."""
    entry = ZOO["wan"]
    pipe = entry.build()
    pipe.scheduler = fs.UniPCScheduler.from_config(pipe.scheduler.config)
    arguments = [{"num_inference_steps": 4}, {"num_inference_steps": 6}]

    def run(number: int, **extra: Any) -> Tensor:
        inputs = {"output_type": "latent", **entry.inputs(), **arguments[number], **extra}
        return torch.as_tensor(pipe(**inputs, generator=torch.Generator().manual_seed(number))[0])

    with fs.TGate(2).apply(pipe) as handle:
        expected = [run(0), run(1)]
        handle.reset()
        turns = Turns(2)
        turn_of: dict[int, int] = {}

        def pause(module: Any, args: Any) -> None:
            turns.pass_on(turn_of[threading.get_ident()])

        def job(number: int) -> Callable[[], Tensor]:
            def begin() -> Tensor:
                turn_of[threading.get_ident()] = number
                return run(number)

            return turns.take_part(number, begin)

        # within cache_context, before T-GATE's hook and between the branches of a step
        hook = pipe.transformer.register_forward_pre_hook(pause)
        assert all(map(torch.equal, together(job(0), job(1)), expected))
        hook.remove()
        assert handle.summary().calls == 2
        assert handle.summary().dropped == 2 + 4


def test_only_one_thread_gates_a_pipeline() -> None:
    """Of several that try at once; the others are refused in one line, and what is left is the one gate's."""
    pipe = pipeline()
    plain, before = sample(pipe), trace(pipe)
    start = threading.Barrier(4)

    def attempt() -> Any:
        start.wait(60)
        try:
            return fs.TGate(2).apply(pipe)
        except ValueError as error:
            return str(error)

    results = together(*[attempt] * 4)
    refusals = [result for result in results if isinstance(result, str)]
    assert len(refusals) == 3
    assert all("gated already" in refusal and "\n" not in refusal for refusal in refusals)
    next(result for result in results if not isinstance(result, str)).remove()
    assert trace(pipe) == before
    assert torch.equal(sample(pipe), plain)


@pytest.mark.parametrize("step", [0, 3])
def test_a_gate_removed_in_the_midst_of_another_threads_call(step: int) -> None:
    """That call goes on ungated, and the pipeline is what it was."""
    pipe = pipeline()
    plain, before = sample(pipe), trace(pipe)
    handle = fs.TGate(2).apply(pipe)

    def remove(_: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if index == step:
            elsewhere(handle.remove)
        return tensors

    found = sample(pipe, callback_on_step_end=remove)
    assert torch.equal(found, plain) == (step < 2)
    assert found.isfinite().all()
    assert trace(pipe) == before
    assert torch.equal(sample(pipe), plain)


@pytest.mark.parametrize("first", ["gate", "block"])
def test_gates_and_blocks_are_left_in_any_order(first: str) -> None:
    """A parallel call is refused while there is a gate."""
    pipe = pipeline()
    plain, before = sample(pipe), trace(pipe)
    block = fs.parallelise(pipe, **EXACT)
    block.__enter__()
    handle = fs.TGate(2).apply(pipe)
    gated = elsewhere(lambda: sample(pipe))
    assert not torch.equal(gated, plain)
    check_refused(lambda: sample(pipe), "has T-GATE")
    if first == "gate":
        handle.remove()
        close(sample(pipe), plain)
        block.__exit__(None, None, None)
    else:
        block.__exit__(None, None, None)
        assert torch.equal(sample(pipe), gated)
        handle.remove()
    assert trace(pipe) == before
    assert torch.equal(sample(pipe), plain)


def test_nothing_is_left_when_a_gate_cannot_be_put_on() -> None:
    """The second of two networks is refused by diffusers' registry, after the first has been hooked."""
    pipe = ZOO["stable_diffusion_controlnet"].build()
    before = trace(pipe)

    class Stubborn(diffusers.hooks.HookRegistry):
        def register_hook(self, hook: Any, name: str) -> None:
            raise RuntimeError("no more hooks")

    *_, last = attention_modules(pipe.controlnet).values()
    last._diffusers_hook = Stubborn(last)
    with pytest.raises(RuntimeError, match="no more hooks"):
        fs.TGate(2).apply(pipe)
    del last._diffusers_hook
    assert trace(pipe) == before


def shared() -> tuple[Any, Any, dict[str, Any]]:
    base = quiet(diffusers.StableDiffusionPipeline.from_pretrained(bundled_folder()))
    other = quiet(diffusers.StableDiffusionImg2ImgPipeline.from_pipe(base))
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    arguments = {"prompt": "a large red circle at the left on a white background", "num_inference_steps": 8}
    return base, other, {**arguments, "image": image, "strength": 0.9, "output_type": "latent", "guidance_scale": 5.0}


def seeded(pipe: Any, arguments: dict[str, Any], **changed: Any) -> Tensor:
    return pipe(**{**arguments, "generator": torch.Generator().manual_seed(0), **changed}).images


@pytest.mark.parametrize("before", [1.0, 5.0])
@pytest.mark.parametrize("scheduler", ["shared", "its own"])
def test_the_pipeline_that_calls_says_whether_it_is_guided(before: float, scheduler: str) -> None:
    """Not the one that was hooked, whose guidance is that of its own last call."""
    base, other, arguments = shared()
    text = {name: value for name, value in arguments.items() if name not in ("image", "strength")}
    if scheduler == "its own":
        other.scheduler = fs.DPMSolverScheduler.from_config(base.scheduler.config)
    with fs.TGate(3).apply(other):
        expected = seeded(other, arguments)
    unguided = seeded(other, arguments, guidance_scale=1.0)
    seeded(base, text, guidance_scale=before)
    with fs.TGate(3).apply(base) as handle:
        assert torch.equal(seeded(other, arguments), expected)
        assert handle.summary().dropped == 4
        check_refused(lambda: seeded(other, arguments, guidance_scale=1.0), "no guidance to drop")
    seeded(base, text, guidance_scale=before)
    with fs.TGate(7, drop_guidance=False).apply(base):
        assert torch.equal(seeded(other, arguments, guidance_scale=1.0), unguided)
    seeded(base, text, guidance_scale=5.0)
    twice = {"prompt": [arguments["prompt"]] * 2, "guidance_scale": 1.0}
    streams = [torch.Generator().manual_seed(1) for _ in range(2)]  # one image twice looks like two branches
    with fs.TGate(3, cache=False).apply(base):
        check_refused(lambda: seeded(other, arguments, **twice, generator=streams), "no guidance to drop")


# --- a pipeline set up for a block ---------------------------------------------------------------------------


def ghvb(pipe: Any) -> Any:
    return fs.GHVBScheduler.from_config(pipe.scheduler.config)


def test_a_scheduler_is_set_for_the_blocks_thread() -> None:
    pipe = pipeline()
    own, mine = pipe.scheduler, ghvb(pipe)
    plain, before = sample(pipe), trace(pipe)
    pipe.scheduler = ghvb(pipe)
    expected = sample(pipe)
    pipe.scheduler = own
    with configured(pipe, mine):
        assert pipe.scheduler is mine
        assert pipe.components["scheduler"] is mine
        assert elsewhere(lambda: pipe.scheduler) is own
        assert torch.equal(elsewhere(lambda: sample(pipe)), plain)
        assert torch.equal(sample(pipe), expected)
    assert pipe.scheduler is own
    assert trace(pipe) == before
    assert torch.equal(sample(pipe), plain)


@pytest.mark.parametrize("order", itertools.permutations(range(3)))
def test_setups_are_left_in_any_order(order: tuple[int, ...]) -> None:
    pipe = pipeline()
    own, before = pipe.scheduler, trace(pipe)
    schedulers = [ghvb(pipe) for _ in range(3)]
    blocks = [configured(pipe, scheduler) for scheduler in schedulers]
    for block in blocks:
        block.__enter__()
    open_ones = [0, 1, 2]
    for number in order:
        assert pipe.scheduler is schedulers[max(open_ones)]
        blocks[number].__exit__(None, None, None)
        open_ones.remove(number)
    assert pipe.scheduler is own
    assert trace(pipe) == before


def test_what_is_assigned_in_a_block_is_the_blocks() -> None:
    pipe = pipeline()
    own, other = pipe.scheduler, ghvb(pipe)
    with configured(pipe, ghvb(pipe)):
        pipe.scheduler = other
        assert pipe.scheduler is other
        assert elsewhere(lambda: pipe.scheduler) is own
    assert pipe.scheduler is own


@pytest.mark.parametrize("acceleration", ["gate", "parallel", "both", "neither"])
def test_a_setup_is_undone_whatever_happens(acceleration: str) -> None:
    """At the end, after an exception, and where the second part of it is refused."""
    pipe = pipeline()
    plain, own, before = sample(pipe), pipe.scheduler, trace(pipe)
    gate = fs.TGate(2) if acceleration in ("gate", "both") else None
    parallel = EXACT if acceleration in ("parallel", "both") else None
    expected_error = ValueError if acceleration == "both" else ZeroDivisionError

    def attempt() -> None:
        with configured(pipe, ghvb(pipe), gate=gate, parallel=parallel) as setup:
            sample(pipe)
            assert setup.gate is None or setup.gate.summary().calls == 1
            assert setup.run is None or setup.run.steps == 6
            raise ZeroDivisionError

    with pytest.raises(expected_error):
        attempt()
    assert pipe.scheduler is own
    assert trace(pipe) == before
    assert torch.equal(sample(pipe), plain)


def test_combined_pipelines_are_set_up_with_their_parts() -> None:
    inner = pipeline()

    class Combined(diffusers.DiffusionPipeline):
        def __init__(self, decoder_pipe: Any) -> None:
            super().__init__()
            self.register_modules(decoder_pipe=decoder_pipe)

        def __call__(self, **kwargs: Any) -> Any:
            return self.decoder_pipe(**kwargs)

    pipe, own, mine = Combined(inner), inner.scheduler, ghvb(inner)
    with configured(pipe, mine):
        assert inner.scheduler is mine
        assert elsewhere(lambda: inner.scheduler) is own
    assert inner.scheduler is own


def test_a_setup_is_refused_where_there_is_no_scheduler() -> None:
    with pytest.raises(ValueError, match="has no scheduler"), configured(_Decoder(pipeline().vae), object()):
        pass


class _Decoder(diffusers.DiffusionPipeline):
    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.register_modules(vae=vae)


# --- counting ------------------------------------------------------------------------------------------------


def test_a_ledger_counts_its_own_thread() -> None:
    pipe = pipeline()
    with count(pipe, images=1) as ledger:
        elsewhere(lambda: sample(pipe))
        sample(pipe)
        with count(pipe, images=1) as inner:
            sample(pipe)
    assert (ledger.forward_calls, ledger.rows, inner.rows) == (12, 24, 12)
    assert not pipe.unet._forward_hooks


def test_gated_evaluations_are_counted_in_every_thread() -> None:
    pipe = pipeline()

    def counted() -> float:
        with count(pipe, images=1) as ledger:
            sample(pipe)
        return ledger.model_evaluations

    with fs.TGate(2).apply(pipe):
        assert [counted(), elsewhere(counted), counted()] == [2 * 2 + 4] * 3


# --- the overlay itself --------------------------------------------------------------------------------------


class Plain:
    """Something to be overlaid."""

    def __init__(self) -> None:
        self.held = 1

    @property
    def derived(self) -> int:
        return self.held * 10

    @derived.setter
    def derived(self, value: int) -> None:
        self.held = value // 10

    def double(self, x: int) -> int:
        return 2 * x


@pytest.mark.parametrize("order", itertools.permutations(range(4)))
def test_layers_see_what_is_beneath_them(order: tuple[int, ...]) -> None:
    """Methods and attributes, held and derived, over and under those of another thread."""
    target = Plain()
    blocks = [
        overlaid(target, double=lambda beneath, x: beneath(x) + 1),
        overlaid(target, held=Attribute(lambda value: value + 100)),
        overlaid(target, double=lambda beneath, x: 10 * beneath(x), derived=Attribute(lambda value: -value)),
        overlaid(target, double=lambda beneath, x: 0),
    ]
    for block in blocks[:3]:
        block.__enter__()
    elsewhere(blocks[3].__enter__)
    assert (target.double(3), target.held, target.derived) == (70, 101, -1010)
    assert elsewhere(lambda: (target.double(3), target.held, target.derived)) == (6, 1, 10)
    assert type(target) == Plain  # noqa: E721  as pipelines ask
    assert type(target).__name__ == "Plain"
    for number in order:
        blocks[number].__exit__(None, None, None)
    assert type(target) is Plain
    assert (target.double(3), target.held, target.derived, vars(target)) == (6, 1, 10, {"held": 1})


def test_what_a_layer_does_not_take_is_set_beneath() -> None:
    target = Plain()
    with overlaid(target, held=Attribute(lambda value: value + 100), derived=Attribute(lambda value: value)):
        target.held = 5
        assert (target.held, vars(target)) == (105, {"held": 5})
        target.derived = 70
        elsewhere(lambda: setattr(target, "held", target.held + 1))
    assert target.held == 8


def test_an_exception_leaves_the_class() -> None:
    target = Plain()
    with contextlib.suppress(ZeroDivisionError), overlaid(target, double=lambda beneath, x: 1 / 0):
        target.double(1)
    assert type(target) is Plain
