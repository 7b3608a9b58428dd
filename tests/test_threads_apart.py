"""Calls of one pipeline in several threads at once: each as if it were alone, whatever the others ask for."""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import logging
import pickle
import sys
import threading
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from pipelines import unet
from refusal import check_refused
from test_threads import EXACT, SCHEDULERS, call, close, pipeline, sample, trace
from torch import Tensor
from turns import Turns, elsewhere, together
from zoo import ZOO

import fastsample as fs
from fastsample.pipelines import layers, overlay
from fastsample.pipelines.configured import configured
from fastsample.pipelines.counting import count
from fastsample.pipelines.guidance import GuidanceCut
from fastsample.pipelines.parallel.distributed import RowShares
from fastsample.pipelines.rehearsal import rehearse
from fastsample.pipelines.serving import serve

# whose filters are of all threads: none are set inside
pytestmark = [
    pytest.mark.filterwarnings("ignore:sampled sequentially"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

HELD = {
    **SCHEDULERS,
    "heun": diffusers.HeunDiscreteScheduler.from_config,
    "pndm": lambda config: diffusers.PNDMScheduler.from_config(config, skip_prk_steps=False),
}
"""Schedulers of diffusers hold their run on the object, where a step of another thread would find it."""
OTHERS = {"seed": 1, "num_inference_steps": 9, "guidance_scale": 1.0, "prompt": ["a circle", "small"]}


def at(steps: tuple[int, ...], job: Callable[[], Any]) -> Callable[..., dict[str, Any]]:
    """A callback that runs `job` in another thread after these steps."""

    def callback(_: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if index in steps:
            elsewhere(job)
        return tensors

    return callback


def parallel(pipe: Any, **changed: Any) -> tuple[Tensor, str]:
    """A parallel call with `sample`'s arguments, and why it was made sequentially."""
    sampler = fs.ParallelSampler(pipe, **EXACT)
    return sampler(**call(**changed)).images, sampler.run.fallback


@pytest.mark.parametrize("scheduler", HELD)
def test_neither_of_a_plain_and_a_parallel_call_notices_the_other(scheduler: str) -> None:
    """With other guidance, prompts and steps, the one in the midst of the other."""
    pipe = pipeline()
    pipe.scheduler = HELD[scheduler](pipe.scheduler.config)
    plain, other = sample(pipe), sample(pipe, **OTHERS)
    before, held = trace(pipe), dict(vars(pipe))

    def within() -> None:
        found, fallback = parallel(pipe, **OTHERS)
        assert not fallback
        close(found, other)

    assert torch.equal(sample(pipe, callback_on_step_end=at((0, 3), within)), plain)
    assert trace(pipe) == before

    def plain_within() -> None:
        assert torch.equal(sample(pipe, **OTHERS), other)

    found, fallback = parallel(pipe, callback_on_step_end=at((0, 3), plain_within))
    assert not fallback
    close(found, plain)
    assert trace(pipe) == before
    assert vars(pipe).keys() == held.keys()


@pytest.mark.parametrize("shared", ["pipeline", "class", "scheduler", "networks"])
@pytest.mark.parametrize("order", ["nested", "crossed"])
def test_overlapping_blocks(shared: str, order: str) -> None:
    """A in, B in, then A or B out first; each calls while both are open, and while the other is closed."""
    one = pipeline("euler")
    pipes = {
        "pipeline": lambda: one,
        "class": lambda: pipeline("euler"),
        "scheduler": lambda: pipeline("euler"),
        "networks": lambda: diffusers.StableDiffusionPipeline.from_pipe(one, scheduler=copy.copy(one.scheduler)),
    }
    two = pipes[shared]()
    two.set_progress_bar_config(disable=True)
    if shared == "scheduler":
        two.scheduler = one.scheduler
    expected = [sample(one), sample(two, **OTHERS)]
    before, kinds = [trace(one), trace(two)], dict(vars(diffusers.StableDiffusionPipeline))
    turns = Turns(2)
    wait = lambda number: lambda pipe, index, timestep, tensors: turns.pass_on(number) or tensors  # noqa: E731

    def first() -> list[Tensor]:
        with fs.parallelise(one, **EXACT) as run:
            turns.pass_on(0)
            found = [sample(one, callback_on_step_end=wait(0))]
            if order == "nested":
                turns.pass_on(0)
        assert not run.fallback
        return [*found, sample(one)]

    def second() -> list[Tensor]:
        with fs.parallelise(two, **EXACT) as run:
            turns.pass_on(1)
            found = [sample(two, **OTHERS, callback_on_step_end=wait(1))]
        assert not run.fallback
        return found

    own, theirs = together(turns.take_part(0, first), turns.take_part(1, second))
    close(own[0], expected[0])
    close(theirs[0], expected[1])
    assert [trace(one), trace(two)] == before
    assert dict(vars(diffusers.StableDiffusionPipeline)) == kinds
    assert torch.equal(sample(one), expected[0])


def test_a_call_that_is_made_sequentially_is_apart_too() -> None:
    pipe = pipeline("euler")
    plain, other = sample(pipe), sample(pipe, **OTHERS)

    def nudge(_: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return {**tensors, "latents": tensors["latents"] + 0.0}

    def within() -> None:
        found, fallback = parallel(pipe, **OTHERS, callback_on_step_end=nudge)
        assert "changes latents" in fallback
        assert torch.equal(found, other)

    assert torch.equal(sample(pipe, callback_on_step_end=at((1,), within)), plain)


def test_the_callbacks_pipeline_is_the_callers() -> None:
    """What it reads on it, and on the object that it has by itself, is of its own call; plain elsewhere."""
    pipe = pipeline("euler")
    sample(pipe)
    own = pipe.scheduler

    def look(caller: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        assert caller is pipe
        assert pipe.guidance_scale == 2.0
        assert pipe.num_timesteps == len(pipe.scheduler.timesteps) == 4
        assert elsewhere(lambda: (pipe.guidance_scale, pipe.scheduler is own)) == (3.0, True)
        return tensors

    _, fallback = parallel(pipe, guidance_scale=2.0, num_inference_steps=4, callback_on_step_end=look)
    assert not fallback
    assert (pipe.guidance_scale, pipe.scheduler) == (3.0, own)


@pytest.mark.parametrize("where", ["callback", "another thread"])
def test_an_interrupt_comes_through(where: str) -> None:
    """Of this call alone from its callback; from another thread of whatever runs, and once."""
    pipe = pipeline("euler")
    plain = sample(pipe)

    def stop(caller: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if index == 2:
            set_it = lambda: setattr(pipe, "_interrupt", True)  # noqa: E731
            set_it() if where == "callback" else elsewhere(set_it)
        return tensors

    expected = sample(pipe, callback_on_step_end=stop)
    for _ in range(2):
        found, fallback = parallel(pipe, callback_on_step_end=stop)
        assert not fallback
        close(found, expected)
    assert not torch.equal(expected, plain)
    found, fallback = parallel(pipe)
    close(found, plain)


@pytest.mark.parametrize("scheduler", ["euler", "ours stochastic"])
def test_many_calls_at_once(scheduler: str) -> None:
    """Not by turns: two threads in parallel, and one plain."""
    pipe = pipeline(scheduler)
    asked = [
        {**OTHERS, "seed": seed, "num_inference_steps": 4 + seed, "guidance_scale": 1.0 + seed} for seed in range(4)
    ]
    expected, before = [sample(pipe, **own) for own in asked], trace(pipe)

    def job(number: int) -> Callable[[], None]:
        def run() -> None:
            for own, want in zip(asked[number:] + asked[:number], expected[number:] + expected[:number], strict=True):
                found, fallback = parallel(pipe, **own)
                assert not fallback
                close(found, want)

        return run

    def plain() -> None:
        for own, want in zip(asked, expected, strict=True):
            assert torch.equal(sample(pipe, **own), want)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        together(job(0), job(2), plain)  # one plain one: two would share the pipeline's guidance, as ever
    finally:
        sys.setswitchinterval(interval)
    assert trace(pipe) == before


# --- callbacks that change the run -------------------------------------------------------------------------


def _guidance(pipe: Any, tensors: dict[str, Any]) -> None:
    pipe._guidance_scale = 1.5


def _prompt(pipe: Any, tensors: dict[str, Any]) -> None:
    tensors["prompt_embeds"] = tensors["prompt_embeds"] * 0.5


def _prompt_in_place(pipe: Any, tensors: dict[str, Any]) -> None:
    tensors["prompt_embeds"].mul_(0.5)


def _levels(pipe: Any, tensors: dict[str, Any]) -> None:
    pipe.scheduler.sigmas[-3:] *= 0.5


def _network(pipe: Any, tensors: dict[str, Any]) -> None:
    pipe.unet.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)


def _weights(pipe: Any, tensors: dict[str, Any]) -> None:
    with torch.no_grad():
        pipe.unet.conv_out.weight.mul_(0.5)


def _adapter(pipe: Any, tensors: dict[str, Any]) -> None:
    pipe.set_ip_adapter_scale(0.0)


CHANGES = {
    "pipe._guidance_scale": _guidance,
    "prompt_embeds": _prompt,
    "prompt_embeds ": _prompt_in_place,
    "pipe.scheduler.sigmas": _levels,
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("step", [1, 4])
def test_a_callback_that_changes_the_run_is_sequential(name: str, step: int) -> None:
    """Whatever it changes, on the pipeline that it is given or by itself, early or late."""

    def called(pipe: Any) -> Callable[..., dict[str, Any]]:
        def callback(_: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if index == step:
                CHANGES[name](pipe, tensors)
            return tensors

        return callback

    inputs = {"callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"], "num_inference_steps": 8}
    pipe = pipeline("euler")
    expected = sample(pipe, callback_on_step_end=called(pipe), **inputs)
    pipe = pipeline("euler")
    found, fallback = parallel(pipe, callback_on_step_end=called(pipe), **inputs)
    assert fallback == f"the callback changes {name.strip()}"
    assert torch.equal(found, expected)


@pytest.mark.parametrize("change", [_network, _weights, _adapter])
def test_a_callback_that_changes_a_network_is_refused(change: Callable[..., None]) -> None:
    """A call made again would find it changed from its first step on."""
    pipe = ZOO["stable_diffusion_ip_adapter"].build() if change is _adapter else pipeline("euler")

    def callback(_: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if index == 2:
            change(pipe, tensors)
        return tensors

    inputs = (
        {**ZOO["stable_diffusion_ip_adapter"].inputs(), "num_inference_steps": 6} if change is _adapter else call()
    )
    sampler = fs.ParallelSampler(pipe, **EXACT)
    check_refused(lambda: sampler(**inputs, callback_on_step_end=callback), "the callback changes pipe.unet")


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("at_step", [{"cutoff_step_index": 2}, {"cutoff_step_ratio": 0.5, "cutoff_step_index": None}])
def test_official_callbacks(several: bool, at_step: dict[str, Any]) -> None:
    pipe = pipeline("euler")
    cut = diffusers.callbacks.SDCFGCutoffCallback(**{"cutoff_step_ratio": None, **at_step})
    callback = diffusers.callbacks.MultiPipelineCallbacks([cut]) if several else cut
    expected = sample(pipe, callback_on_step_end=callback)
    found, fallback = parallel(pipe, callback_on_step_end=callback)
    assert "changes the pipeline at a step of its own" in fallback
    assert torch.equal(found, expected)
    wrapped = lambda *given: cut(*given)  # noqa: E731
    inputs = {"callback_on_step_end_tensor_inputs": cut.tensor_inputs}
    found, fallback = parallel(pipe, callback_on_step_end=wrapped, **inputs)
    assert "the callback changes" in fallback
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("stable_diffusion_xl", "SDXLCFGCutoffCallback"),
        ("stable_diffusion_3", "SD3CFGCutoffCallback"),
        ("stable_diffusion_ip_adapter", "IPAdapterScaleCutoffCallback"),
    ],
)
def test_official_callbacks_of_other_pipelines(name: str, kind: str) -> None:
    found = []
    for parallel_too in (False, True):  # each with a pipeline of its own: the adapter's scale stays changed
        pipe = ZOO[name].build()
        callback = getattr(diffusers.callbacks, kind)(cutoff_step_ratio=None, cutoff_step_index=1)
        sampler = fs.ParallelSampler(pipe, **EXACT) if parallel_too else pipe
        found.append(ZOO[name].sample(functools.partial(sampler, callback_on_step_end=callback)))
    assert "changes the pipeline at a step of its own" in sampler.run.fallback
    assert torch.equal(found[0], found[1])


def test_the_old_callback_is_called_as_ever() -> None:
    pipe = pipeline("euler")
    seen: list[list[tuple[int, float]]] = [[], []]
    sample(pipe, callback=lambda step, t, latents: seen[0].append((step, float(t))), callback_steps=2)
    old = lambda step, t, latents: seen[1].append((step, float(t)))  # noqa: E731
    _, fallback = parallel(pipe, callback=old, callback_steps=2)
    assert "use callback_on_step_end" in fallback
    assert seen[0] == seen[1]


def test_what_a_callback_raises_is_raised_once() -> None:
    """It is not taken for what many rows at once have broken."""
    pipe, calls = pipeline("euler"), []

    def fail(_: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        calls.append(index)
        if index == 3:
            raise ValueError("enough of it")
        return tensors

    before = trace(pipe)
    check_refused(lambda: fs.ParallelSampler(pipe, **EXACT)(**call(callback_on_step_end=fail)), "enough of it")
    assert calls == [0, 1, 2, 3]
    assert trace(pipe).keys() == before.keys()
    assert trace(pipe)["kinds"] == before["kinds"]


# --- what else is put on a pipeline ------------------------------------------------------------------------


@pytest.mark.parametrize("order", itertools.permutations(range(3)))
def test_recipes_are_left_in_any_order(order: tuple[int, ...]) -> None:
    """The latest counts; in the end the scheduler is the pipeline's own, and nothing is left."""
    pipe = pipeline("euler")
    plain, own, before = sample(pipe), pipe.scheduler, trace(pipe)
    runs = [fs.Recipe(solver=name).apply(pipe) for name in ("dpmpp-2m", "ddim", "unipc")]
    open_ones = [0, 1, 2]
    for number in order:
        assert pipe.scheduler.config["solver_name"] == runs[max(open_ones)].recipe.solver
        runs[number].remove()
        open_ones.remove(number)
    assert pipe.scheduler is own
    assert trace(pipe) == before
    assert torch.equal(sample(pipe), plain)


def test_a_recipe_removed_in_the_midst_of_another_threads_call() -> None:
    """The call goes on with the scheduler that it began with; one that begins then is plain."""
    pipe = pipeline("euler")
    plain = sample(pipe)
    with fs.Recipe(solver="dpmpp-2m").apply(pipe):
        expected = sample(pipe)
    assert not torch.equal(expected, plain)
    run = fs.Recipe(solver="dpmpp-2m").apply(pipe)
    assert torch.equal(sample(pipe, callback_on_step_end=at((2,), run.remove)), expected)
    assert run.summary().calls == 1
    assert torch.equal(sample(pipe), plain)


def test_a_plain_call_is_measured_beside_a_call_of_the_recipe() -> None:
    pipe = pipeline("euler")
    plain = sample(pipe)
    cut = {"solver": "dpmpp-2m", "guidance_cut": GuidanceCut(0, 2)}
    with fs.Recipe(**cut).apply(pipe):
        expected = sample(pipe)
    run = fs.Recipe(**cut).apply(pipe)

    def measure() -> None:
        assert torch.equal(run.measure_plain(**call()).images, plain)

    assert torch.equal(sample(pipe, callback_on_step_end=at((1, 3), measure)), expected)
    summary = run.summary()
    assert (summary.calls, summary.evaluations, summary.dropped) == (1, 8, 4)
    assert summary.plain_evaluations == 12
    run.remove()
    assert torch.equal(sample(pipe), plain)


def test_calls_of_two_threads_are_counted_once() -> None:
    """What guidance dropped in the one is not counted in the other too."""
    pipe = pipeline("ours")
    turns = Turns(2)

    def job(number: int) -> Callable[[], Tensor]:
        def pause(_: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            turns.pass_on(number)
            return tensors

        return turns.take_part(number, lambda: sample(pipe, number, callback_on_step_end=pause))

    with fs.Recipe(guidance_cut=GuidanceCut(0, 2)).apply(pipe) as run:
        together(job(0), job(1))
        summary = run.summary()
    assert (summary.calls, summary.evaluations, summary.dropped) == (2, 16, 8)


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, lambda pipe: pickle.loads(pickle.dumps(pipe))])
def test_a_copy_made_while_evaluations_are_counted_is_plain(make: Callable[[Any], Any]) -> None:
    pipe = pipeline()
    expected = sample(pipe)
    with count(pipe, 1) as ledger, GuidanceCut(0, 2).apply(pipe):
        made = make(pipe)
        rows = ledger.rows
        if make is not copy.copy:  # which shares the networks
            assert torch.equal(sample(made), expected)
            assert ledger.rows == rows
    assert torch.equal(sample(made), expected)


@pytest.mark.parametrize("make", [copy.deepcopy, lambda pipe: pickle.loads(pickle.dumps(pipe))])
def test_a_copy_made_behind_a_gate_is_plain(make: Callable[[Any], Any]) -> None:
    """And has weights of its own, attention's too; the gate stays on the pipeline alone."""
    pipe = pipeline()
    plain, before = sample(pipe), trace(pipe)
    with fs.TGate(2).apply(pipe) as handle:
        gated = sample(pipe)
        made = make(pipe)
        assert trace(made) | {"kinds": 0} == before | {"kinds": 0}
        with torch.no_grad():
            for weight in pipe.unet.parameters():
                weight.mul_(2.0)
        assert torch.equal(sample(made), plain)
        with torch.no_grad():
            for weight in pipe.unet.parameters():
                weight.div_(2.0)
        assert torch.equal(sample(pipe), gated)
        assert handle.summary().calls == 2
    assert trace(pipe) == before
    assert torch.equal(sample(pipe), plain)


def test_what_the_class_makes_in_the_midst_of_a_call_is_plain() -> None:
    """As `type(pipe)(**pipe.components)` and `type(pipe).from_pipe(pipe, ..)` do in a callback."""
    pipe, made = pipeline(), []
    plain = sample(pipe)

    def make(own: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if index == 1:
            parts = own.components | {"scheduler": copy.deepcopy(own.scheduler)}  # which the constructor changes
            made.extend([type(own)(**parts), type(own).from_pipe(own, torch_dtype=own.dtype, **parts)])
        return tensors

    image, fallback = parallel(pipe, callback_on_step_end=make)
    assert not fallback
    close(image, plain)
    for other in made:
        assert type(other) is type(pipe)
        other.scheduler = copy.deepcopy(pipe.scheduler)
        assert torch.equal(sample(other), plain)


def test_a_rehearsal_is_its_own_threads_alone() -> None:
    """It ends no call of another thread, and hears none of its warnings, which are shown as ever."""
    pipe = pipeline("euler")
    plain = sample(pipe)
    before, shown = trace(pipe), Shown()
    logger = logging.getLogger("diffusers")
    found = logger.level
    logger.setLevel(logging.WARNING)  # the command line, run in this process, leaves it at errors
    logger.addHandler(shown)
    level, handlers = logger.level, list(logger.handlers)

    def warn(_: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        logging.getLogger("diffusers.pipelines").warning("an argument was ignored")
        return tensors

    def within(*_: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            elsewhere(lambda: sample(pipe, callback_on_step_end=warn))

    try:
        assert torch.equal(sample(pipe, callback_on_step_end=at((1,), lambda: rehearse(pipe, call()))), plain)
        hook = pipe.text_encoder.register_forward_pre_hook(within)
        rehearse(pipe, call(guidance_scale=1.0))
        hook.remove()
        assert shown.texts == ["an argument was ignored"] * 6  # encoded once: one call of six steps
        assert (logger.level, logger.handlers) == (level, handlers)
    finally:
        logger.removeHandler(shown)
        logger.setLevel(found)
    assert trace(pipe) == before


class Shown(logging.Handler):
    """Keeps what is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def test_a_guider_serves_one_call_at_a_time() -> None:
    """The call that another thread's has overtaken is refused, the other goes on; guiders of their own both do."""
    guider, network = fs.TGateGuider(guidance_scale=3.0, gate_step=2), unet()
    before = trace_of(network)
    turns = Turns(2)

    def job(number: int, own: Any) -> Callable[[], str]:
        def run() -> str:
            try:
                for step in range(4):
                    own.set_state(step, 4, torch.tensor(999))
                    for _ in range(2 if step < 2 else 1):
                        own.prepare_models(network)
                        turns.pass_on(number)
                        own.cleanup_models(network)
            except ValueError as error:
                return str(error)
            return ""

        return turns.take_part(number, run)

    refusals = together(job(0, guider), job(1, guider))
    assert ["another thread has begun a call" in refusal for refusal in refusals] == [True, False]
    assert refusals[1] == ""
    assert trace_of(network) == before


def trace_of(network: Any) -> list[Any]:
    return [(type(part), frozenset(vars(part)), len(part._forward_hooks)) for part in network.modules()]


@pytest.mark.parametrize("kind", ["block", "recipe", "count", "cut", "gate", "setup"])
def test_an_interrupt_while_a_block_is_entered_leaves_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After each of the changes that entering makes."""
    pipe = pipeline("euler")
    plain, own, before = sample(pipe), pipe.scheduler, trace(pipe)

    def block(of: Any) -> None:
        with of:
            pass

    enter: dict[str, Callable[[], Any]] = {
        "block": lambda: fs.ParallelSampler(pipe, **EXACT)(**call()),
        "recipe": lambda: fs.Recipe(solver="dpmpp-2m", guidance_cut=GuidanceCut(0, 2)).apply(pipe),
        "count": lambda: block(count(pipe, 1)),
        "cut": lambda: GuidanceCut(0, 2).apply(pipe),
        "gate": lambda: fs.TGate(2).apply(pipe),
        "setup": lambda: block(configured(pipe, own, parallel=EXACT)),
    }
    for module in (overlay, layers):
        real = module._put_on
        for number in range(5):
            left = [number]

            def put_on(*args: Any, real: Any = real, left: list[int] = left) -> None:
                real(*args)
                left[0] -= 1
                if left[0] == -1:
                    raise KeyboardInterrupt

            monkeypatch.setattr(module, "_put_on", put_on)
            with contextlib.suppress(KeyboardInterrupt):
                getattr(enter[kind](), "remove", lambda: None)()
            monkeypatch.setattr(module, "_put_on", real)
            assert trace(pipe) == before
            assert pipe.scheduler is own
    assert torch.equal(sample(pipe), plain)


def test_a_served_pipeline_ends_with_its_block() -> None:
    """Whatever ends it; asking on is refused, and never waits for an answer that will not come."""
    pipe = pipeline("ours")
    plain, before = sample(pipe), trace(pipe)
    scheduler = fs.DDIMScheduler.from_config(pipe.scheduler.config)
    arguments = call(num_inference_steps=4)
    with serve(pipe, scheduler, arguments) as served:
        assert torch.equal(sample(pipe), plain)
        rows = served(served.sample[None].repeat(3, 1, 1, 1, 1), [900.0, 500.0, 100.0])
    assert rows.shape[0] == 3
    check_refused(lambda: served(served.sample[None], [900.0]), "has ended")
    with pytest.raises(KeyboardInterrupt), serve(pipe, scheduler, arguments):
        raise KeyboardInterrupt
    wrong = {**arguments, "height": 13}
    with pytest.raises(ValueError, match="divisible by 8"), serve(pipe, scheduler, wrong):
        pass
    assert trace(pipe) == before
    assert torch.equal(sample(pipe), plain)


# --- rows of a call among processes ------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 6, 8, 16])
@pytest.mark.parametrize("processes", [2, 3])
def test_what_has_no_rows_is_not_cut(rows: int, processes: int) -> None:
    """However many tokens, axes or layers there are: as many as rows, or a multiple of them."""

    def batch(*shape: int) -> Tensor:
        return torch.arange(rows, dtype=torch.float32).reshape(rows, *[1] * len(shape)).expand(rows, *shape)

    rotary = (torch.randn(rows, 4), torch.randn(rows, 4))
    whole = {
        "img_ids": torch.randn(rows, 3),
        "txt_ids": torch.randn(2 * rows, 3),
        "image_rotary_emb": rotary,
        "video_rotary_emb": rotary,
        "rotary_embedding": list(rotary),
        "rope_interpolation_scale": (1.0, 2.0, 3.0)[:rows] if rows < 3 else (1.0,) * rows,
        "visual_rope_pos": [torch.arange(rows)] * rows,
        "pos_embeds": torch.randn(rows, 4),
        "control_hidden_states_scale": torch.ones(rows),
        "skip_layers": list(range(rows)),
        "return_dict": False,
        "timestep": torch.tensor(3.0),
    }
    cut = {
        "hidden_states": batch(4, 4),
        "encoder_hidden_states": batch(5, 8),
        "pooled_projections": batch(8),
        "guidance": batch(),
        "added_cond_kwargs": {"text_embeds": batch(8), "time_ids": batch(6), "image_embeds": [batch(1, 4)] * rows},
        "controlnet_block_samples": (batch(4), batch(4)),
        "img_shapes": [[(1, row, row)] for row in range(rows)],
        "encoder_hidden_states_llama3": batch(5).transpose(0, 1),
    }
    share = -(-rows // processes)
    for rank in range(processes):
        mine = [min(row, rows - 1) for row in range(rank * share, (rank + 1) * share)]
        shares = RowShares.__new__(RowShares)
        shares.rank, shares.count = rank, processes
        taken = shares.take({**whole, **cut}, rows)
        assert all(taken[name] is whole[name] for name in whole)
        assert taken["hidden_states"][:, 0, 0].tolist() == mine
        assert taken["encoder_hidden_states"][:, 0, 0].tolist() == mine
        assert taken["pooled_projections"][:, 0].tolist() == taken["guidance"].tolist() == mine
        nested = taken["added_cond_kwargs"]
        assert nested["text_embeds"][:, 0].tolist() == nested["time_ids"][:, 0].tolist() == mine
        assert [part[:, 0, 0].tolist() for part in nested["image_embeds"]] == [mine] * rows
        assert [part[:, 0].tolist() for part in taken["controlnet_block_samples"]] == [mine] * 2
        assert [shape[0][1] for shape in taken["img_shapes"]] == mine
        assert taken["encoder_hidden_states_llama3"][0].tolist() == mine
