"""T-GATE and guidance cuts among what else is done to pipelines: offloading, compiling, callbacks, loops."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable
from typing import Any

import accelerate
import diffusers
import peft
import pytest
import torch
from diffusers.callbacks import SDCFGCutoffCallback, SDXLCFGCutoffCallback
from pipelines import quiet, stable_diffusion, stable_diffusion_xl
from refusal import check_refused
from torch import Tensor
from zoo import SD_SAFETY, SQUARE, ZOO, assemble, sd_scheduler, text_inputs, unet, vae

import fastsample as fs
from fastsample.pipelines.counting import count
from fastsample.pipelines.guidance.reading import Branch

CPU = torch.device("cpu")
GATES: dict[str, Any] = {"gate": fs.TGate(2), "cut": fs.GuidanceCut(0, 2)}


def sample(pipe: Any, prompt: Any = "a small red circle", steps: int = 6, **changed: Any) -> Tensor:
    arguments = {"guidance_scale": 4.0, "height": 16, "width": 16, "output_type": "latent", **changed}
    generator = arguments.pop("generator", None) or torch.Generator().manual_seed(0)
    return pipe(prompt, num_inference_steps=steps, generator=generator, **arguments)[0]


# --- hooks of others ------------------------------------------------------------------------------------------


def offload(pipe: Any, kind: str) -> None:
    if kind == "model":
        pipe.enable_model_cpu_offload(device="cpu")
    elif kind == "sequential":
        accelerate.cpu_offload(pipe.unet, execution_device=CPU)
    elif kind == "group":
        pipe.unet.enable_group_offload(onload_device=CPU, offload_device=CPU, offload_type="leaf_level")
    elif kind == "compiled":
        pipe.unet.compile(backend="eager")
    elif kind == "wrapped":
        pipe.unet = torch.compile(pipe.unet, backend="eager")
    elif kind == "adapter":
        lora = peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=True)
        pipe.unet.add_adapter(lora)
    else:
        pipe.to(torch.float64).to(torch.float32)


def small() -> Any:
    """With one block on the way down and one up, as what compiles takes long to be read."""
    pipe = stable_diffusion()
    torch.manual_seed(1)
    pipe.unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        mid_block_type=None,
        up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    return pipe


@functools.cache
def expected(name: str) -> tuple[Tensor, Tensor]:
    """What a pipeline gives, untouched and gated."""
    pipe = small()
    plain = sample(pipe, steps=4)
    with GATES[name].apply(pipe):
        return plain, sample(pipe, steps=4)


@pytest.mark.parametrize("order", ["kind first", "gate first"])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *itertools.product(("model", "sequential", "wrapped"), GATES),
        *itertools.product(("group", "compiled", "adapter", "moved"), ["gate"]),
    ],
)
def test_gates_last_and_go_whatever_else_is_done(kind: str, name: str, order: str) -> None:
    """Gated in each call, and afterwards as if it had never been: to the bit."""
    plain, gated = expected(name)
    pipe = small()
    if order == "kind first":
        offload(pipe, kind)
    handle = GATES[name].apply(pipe)
    if order == "gate first":
        offload(pipe, kind)
    assert all(torch.equal(sample(pipe, steps=4), gated) for _ in range(2))
    assert handle.summary().calls == 2
    handle.remove()
    assert torch.equal(sample(pipe, steps=4), plain)
    if kind in ("model", "sequential"):
        pipe.remove_all_hooks()
        assert torch.equal(sample(pipe, steps=4), plain)


def test_adapters_are_fused_and_unloaded_behind_a_gate() -> None:
    pipe = stable_diffusion()
    plain = sample(pipe)
    pipe.unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    with fs.TGate(3).apply(pipe):
        adapted = sample(pipe)
        pipe.fuse_lora(components=["unet"])
        torch.testing.assert_close(sample(pipe), adapted, rtol=1e-4, atol=1e-4)
        pipe.unfuse_lora(components=["unet"])
        pipe.unload_lora_weights()
        assert not torch.allclose(sample(pipe), adapted)
    torch.testing.assert_close(sample(pipe), plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("order", itertools.permutations(range(3)))
def test_gate_cut_and_offload_are_undone_in_any_order(order: tuple[int, ...]) -> None:
    pipe = stable_diffusion()
    plain = sample(pipe)
    gate, cut = fs.TGate(4, drop_guidance=False).apply(pipe), fs.GuidanceCut(0, 2).apply(pipe)
    pipe.enable_model_cpu_offload(device="cpu")
    sample(pipe)
    undo = [gate.remove, cut.remove, pipe.remove_all_hooks]
    for number in order:
        undo[number]()
    assert torch.equal(sample(pipe), plain)


# --- guidance as the pipeline says it -------------------------------------------------------------------------


def turned_off(step: int, *names: str) -> Callable[..., dict[str, Any]]:
    """A callback that ends guidance after `step`, and leaves the positive half of what is named."""

    def callback(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if index == step:
            pipe._guidance_scale = 0.0
            tensors |= {name: tensors[name].chunk(2)[-1] for name in names}
        return tensors

    return callback


@pytest.mark.parametrize("drop", [True, False])
@pytest.mark.parametrize("gate", [2, 3, 5])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_callback_turns_guidance_off(batch: int, gate: int, drop: bool) -> None:
    """Before, at or behind the gate; the evaluations are those that guidance leaves."""
    pipe = stable_diffusion()
    callback = {
        "callback_on_step_end": turned_off(2, "prompt_embeds"),
        "callback_on_step_end_tensor_inputs": ["prompt_embeds"],
    }
    prompts = ["a small red circle", "a red circle"][:batch]
    with fs.TGate(gate, drop_guidance=drop).apply(pipe), count(pipe, batch) as ledger:
        found = sample(pipe, prompts, **callback)
    assert found.shape[0] == batch
    guided = min(3, gate) if drop else 3
    assert ledger.model_evaluations == 6 + guided
    with fs.TGate(6, drop_guidance=drop).apply(pipe):  # a gate at the last step changes nothing
        assert torch.equal(sample(pipe, prompts, **callback), sample(pipe, prompts, **callback))


@pytest.mark.parametrize("xl", [False, True])
@pytest.mark.parametrize("name", ["gate", "cut", "parallel"])
def test_the_official_callback_that_ends_guidance(name: str, xl: bool) -> None:
    pipe = stable_diffusion_xl() if xl else stable_diffusion()
    callback = (SDXLCFGCutoffCallback if xl else SDCFGCutoffCallback)(cutoff_step_ratio=0.5)  # after step 3
    plain = sample(pipe, callback_on_step_end=callback)
    if name == "parallel":
        sampler = fs.ParallelSampler(pipe, window=4, tolerance=0.0)
        with pytest.warns(UserWarning, match="at a step of its own"):
            assert torch.equal(sample(sampler, callback_on_step_end=callback), plain)
        return
    late = fs.TGate(5, keep="positive", cache=False) if name == "gate" else fs.GuidanceCut(0, 5)
    with late.apply(pipe), count(pipe, 1) as ledger:  # there is no guidance left to be dropped
        assert torch.equal(sample(pipe, callback_on_step_end=callback), plain)
    assert ledger.rows == 4 * 2 + 2


def test_a_changed_scale_is_the_loops_own_affair() -> None:
    """A callback that raises guidance: before the gate both branches are there, behind it one."""
    pipe = stable_diffusion()

    def raised(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._guidance_scale += 1.0
        return tensors

    with fs.TGate(6).apply(pipe):
        assert torch.equal(sample(pipe, callback_on_step_end=raised), sample(pipe, callback_on_step_end=raised))
    sampler = fs.ParallelSampler(pipe, window=4, tolerance=0.0)
    plain = sample(pipe, callback_on_step_end=raised)
    with pytest.warns(UserWarning, match="the callback changes pipe._guidance_scale"):
        assert torch.equal(sample(sampler, callback_on_step_end=raised), plain)


def test_equal_rows_are_no_branches() -> None:
    """One image twice, unguided: not halves of a guided batch, and never their mean."""
    pipe = stable_diffusion()
    streams = lambda: [torch.Generator().manual_seed(1) for _ in "ab"]  # noqa: E731
    twice = {"prompt": ["a small red circle", "red"], "guidance_scale": 1.0}
    with fs.TGate(3).apply(pipe), count(pipe, 1) as ledger:
        check_refused(lambda: sample(pipe, generator=streams(), **twice), "no guidance to drop")
    with fs.GuidanceCut(0, 3).apply(pipe), ledger.running():
        check_refused(lambda: sample(pipe, generator=streams(), **twice), "without guidance")
    assert ledger.rows == 0
    with fs.TGate(3, drop_guidance=False).apply(pipe):
        pair = sample(pipe, generator=streams(), **twice)
        alone = sample(pipe, "red", guidance_scale=1.0, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(pair[1:], alone, rtol=1e-4, atol=1e-5)


def test_perturbed_attention_is_refused_before_the_network() -> None:
    torch.manual_seed(0)
    pipe = assemble(
        diffusers.StableDiffusionPAGPipeline, sd_scheduler("DDIMScheduler"), vae=vae(), unet=unet(), **SD_SAFETY
    )
    pipe.set_pag_applied_layers(["mid"])
    call = {"num_inference_steps": 4, "output_type": "latent", "guidance_scale": 4.0, **text_inputs(**SQUARE)}
    with fs.TGate(2).apply(pipe) as handle, count(pipe, 1) as ledger:
        check_refused(lambda: pipe(**call, pag_scale=3.0), "use GuidanceCut")
        assert ledger.rows == 0
        assert pipe(**call, pag_scale=0.0)[0].isfinite().all()
        assert handle.summary().dropped == 2


@pytest.mark.parametrize("keep", ["negative", "positive"])
@pytest.mark.parametrize("cache", [True, False])
def test_guess_mode_gives_the_controlnet_one_branch(keep: str, cache: bool) -> None:
    """Which is the conditional one; the other branch has no control then, nor behind the gate."""
    entry = ZOO["stable_diffusion_controlnet"]
    pipe = entry.build()
    plain = {**entry.inputs(), "guess_mode": True, "output_type": "latent", "num_inference_steps": 4}
    seeded = lambda: pipe(**plain, generator=torch.Generator().manual_seed(0))[0]  # noqa: E731
    rows: list[int] = []
    watch = pipe.controlnet.conv_in.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    with fs.TGate(2, keep=keep, cache=cache).apply(pipe), count(pipe, 1) as ledger:
        gated = seeded()
    watch.remove()
    assert (rows, ledger.rows) == ([1] * 4, 2 * 2 + 2)
    calls: list[Any] = []

    def one_branch(_: Any, args: Any, output: Any) -> Any:
        calls.append(output)
        branch = output[0].chunk(2)[keep == "positive"]
        return (branch.repeat(2, 1, 1, 1),) if len(calls) > 2 else output

    hook = pipe.unet.register_forward_hook(one_branch)
    expected = seeded()
    hook.remove()
    if not cache:
        torch.testing.assert_close(gated, expected, rtol=1e-4, atol=1e-5)
    assert torch.isfinite(gated).all()


@pytest.mark.parametrize("name", ["wan", "cosmos_2", "skyreels"])
@pytest.mark.parametrize("keep", ["negative", "positive"])
def test_keep_holds_where_guidance_is_two_calls(name: str, keep: str) -> None:
    """Without a cache: behind the gate the network is called with that branch's text."""
    entry = ZOO[name]
    pipe = entry.build()
    texts: list[Tensor] = []

    def watch(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        texts.append(kwargs["encoder_hidden_states"])

    pipe.transformer.register_forward_pre_hook(watch, with_kwargs=True)
    with fs.TGate(2, keep=keep, cache=False).apply(pipe):
        entry.sample(pipe)
    positive, negative = texts[0], texts[1]
    assert not torch.equal(positive, negative)
    wanted = {"negative": negative, "positive": positive}[keep]
    assert len(texts) == 2 * 2 + entry.steps - 2
    assert all(torch.equal(text, wanted) for text in texts[4:])


# --- which call it is -----------------------------------------------------------------------------------------


def loop(pipe: Any, seed: int, stop: int | None = None, batch: int = 1) -> Tensor:
    """A loop of one's own over timesteps that were laid out before; left before step `stop`."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, 4, 8, 8, generator=generator)
    text = torch.randn(2, 5, 16, generator=generator).repeat_interleave(batch, 0)
    for index, t in enumerate(pipe.scheduler.timesteps):
        if index == stop:
            break
        noise = pipe.unet(torch.cat([x, x]), t, encoder_hidden_states=text).sample
        uncond, cond = noise.chunk(2)
        x = pipe.scheduler.step(uncond + 4.0 * (cond - uncond), t, x).prev_sample
    return x


def predicted(pipe: Any, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
    """The network's guided output: the loop is elsewhere."""
    first, second = pipe.unet(torch.cat([x] * 2), t, encoder_hidden_states=text)[0].chunk(2)
    return first + 4.0 * (second - first)


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "PNDMScheduler", "HeunDiscreteScheduler"])
@pytest.mark.parametrize("stop", [None, 1, 4])
@torch.no_grad()
def test_loops_of_ones_own_are_told_apart(stop: int | None, scheduler: str) -> None:
    """Timesteps laid out once for several images, some of which are given up: each as with a gate of its own."""
    pipe = stable_diffusion()
    pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config, skip_prk_steps=True)

    def fresh(seed: int) -> Tensor:
        pipe.scheduler.set_timesteps(6)
        with fs.TGate(3).apply(pipe):
            return loop(pipe, seed)

    expected = [fresh(0), fresh(1)]
    pipe.scheduler.set_timesteps(6)
    with fs.TGate(3).apply(pipe) as handle:
        found = []
        for seed in (0, 1):
            for number, at in ((7, stop), (seed, None)):
                if scheduler != "DDIMScheduler":  # which hold what they have stepped
                    pipe.scheduler.set_timesteps(6)
                result = loop(pipe, number, at)
            found.append(result)
        assert handle.summary().calls == 4
    assert all(map(torch.equal, found, expected))


@torch.no_grad()
def test_the_network_may_be_called_by_a_helper() -> None:
    pipe = stable_diffusion()
    pipe.scheduler.set_timesteps(6)
    with fs.GuidanceCut(0, 3).apply(pipe) as cut:
        x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        text = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))
        for _ in range(2):
            for t in pipe.scheduler.timesteps:
                x = pipe.scheduler.step(predicted(pipe, x, t, text), t, x).prev_sample
    assert (cut.summary().calls, cut.summary().dropped) == (2, 6)


def two_calls(pipe: Any, named: bool) -> None:
    """A loop that calls the network for one branch after the other."""
    x, text = torch.ones(1, 4, 8, 8), torch.randn(2, 1, 5, 16, generator=torch.Generator().manual_seed(1))
    for t in pipe.scheduler.timesteps:
        if named:
            noise_cond = pipe.unet(x, t, encoder_hidden_states=text[0]).sample
            noise_uncond = pipe.unet(x, t, encoder_hidden_states=text[1]).sample
            x = pipe.scheduler.step(noise_uncond + 4.0 * (noise_cond - noise_uncond), t, x).prev_sample
        else:
            a = pipe.unet(x, t, encoder_hidden_states=text[0]).sample
            b = pipe.unet(x, t, encoder_hidden_states=text[1]).sample
            x = pipe.scheduler.step(b + 4.0 * (a - b), t, x).prev_sample


def corrected(pipe: Any) -> None:
    """A loop that evaluates both branches twice a step."""
    x, text = torch.ones(1, 4, 8, 8), torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))
    for t, after in itertools.pairwise(pipe.scheduler.timesteps):
        uncond, cond = pipe.unet(torch.cat([x, x]), t, encoder_hidden_states=text).sample.chunk(2)
        ahead = x - 0.1 * (uncond + 4.0 * (cond - uncond))
        uncond, cond = pipe.unet(torch.cat([ahead, ahead]), after, encoder_hidden_states=text).sample.chunk(2)
        x = x - 0.1 * (uncond + 4.0 * (cond - uncond))


@pytest.mark.parametrize("name", GATES)
@torch.no_grad()
def test_loops_of_ones_own_may_call_twice_a_step(name: str) -> None:
    """Where the names tell the branches; else they are refused before the network is called."""
    pipe = stable_diffusion()
    pipe.scheduler.set_timesteps(4)
    with GATES[name].apply(pipe) as handle, count(pipe, 1) as ledger:
        check_refused(lambda: two_calls(pipe, named=False), "name them")
        check_refused(lambda: corrected(pipe), "2 times in a step")
        assert ledger.rows == 0
        for _ in range(2):
            two_calls(pipe, named=True)
        assert (handle.summary().calls, handle.summary().dropped, ledger.rows) == (2, 4, 12)


@torch.no_grad()
def test_a_loop_without_guidance_is_refused_or_kept() -> None:
    pipe = stable_diffusion()
    x, text = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 16)
    x[1] = x[0]

    def unguided() -> None:
        for t in pipe.scheduler.timesteps:
            pipe.unet(x, t, encoder_hidden_states=text).sample.square()

    pipe.scheduler.set_timesteps(4)
    with fs.TGate(2).apply(pipe):
        check_refused(unguided, "no guidance to drop")
    with fs.TGate(2, drop_guidance=False).apply(pipe) as handle:
        unguided()
        assert (handle.summary().evaluations, handle.summary().dropped) == (8, 0)


@pytest.mark.parametrize("how", ["exception", "interrupt", "network"])
@pytest.mark.parametrize("name", GATES)
def test_calls_that_were_given_up_leave_nothing(name: str, how: str) -> None:
    pipe = quiet(stable_diffusion())
    with GATES[name].apply(pipe):
        want = sample(pipe)
        for at in (1, 4):
            calls: list[int] = []

            def stop(own: Any, index: int, timestep: Any, tensors: dict[str, Any], at: int = at) -> dict[str, Any]:
                if index == at and how == "exception":
                    raise ZeroDivisionError
                own._interrupt = index >= at and how == "interrupt"
                return tensors

            def fail(module: Any, args: Any, at: int = at, calls: list[int] = calls) -> None:
                calls.append(1)
                if len(calls) > at:
                    raise KeyboardInterrupt

            hook = pipe.unet.mid_block.register_forward_pre_hook(fail) if how == "network" else None
            with contextlib.suppress(ZeroDivisionError, KeyboardInterrupt):
                sample(pipe, callback_on_step_end=stop)
            if hook is not None:
                hook.remove()
            pipe._interrupt = False
            assert torch.equal(sample(pipe), want)


def test_a_scheduler_may_use_its_timesteps_again() -> None:
    """Its calls are told apart by the pipeline's own, not by what was laid out."""
    pipe = stable_diffusion()

    class Reusing(diffusers.DDIMScheduler):
        def set_timesteps(self, steps: int, device: Any = None) -> None:
            if len(self.timesteps) != steps:
                super().set_timesteps(steps, device)

    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    with fs.TGate(3).apply(pipe):
        want = sample(pipe)
    pipe.scheduler = Reusing.from_config(pipe.scheduler.config)
    pipe.maybe_free_model_hooks = lambda: None
    with fs.TGate(3).apply(pipe) as handle:
        for _ in range(2):
            assert torch.equal(sample(pipe), want)
            with pytest.raises(ZeroDivisionError):
                sample(pipe, callback_on_step_end=lambda *_: 1 / 0)
        assert handle.summary().calls == 4


# --- gate and cut together, and what they cost ----------------------------------------------------------------


@pytest.mark.parametrize("first", ["gate", "cut"])
def test_a_gate_and_a_cut_go_together(first: str) -> None:
    """Cut before, at and behind the gate: evaluations are left out by whichever comes first."""
    pipe = stable_diffusion()
    for window, gate, drop, rows in (
        ((0, 2), 4, False, 8),
        ((0, 5), 3, True, 9),
        ((2, 6), 3, False, 10),
        ((2, 6), 4, True, 8),
    ):
        settings = [fs.TGate(gate, drop_guidance=drop), fs.GuidanceCut(*window)]
        one, other = settings if first == "gate" else reversed(settings)
        with one.apply(pipe), other.apply(pipe), count(pipe, 1) as ledger:
            found = sample(pipe)
            assert torch.equal(sample(pipe), found)
        assert found.isfinite().all()
        assert ledger.rows == 2 * rows
    with fs.TGate(3, cache=False, keep="positive").apply(pipe):
        expected = sample(pipe)
    with fs.GuidanceCut(0, 3).apply(pipe):
        assert torch.equal(sample(pipe), expected)


def test_costs_are_measured_when_they_are_asked_for() -> None:
    """Of each shape once, by one evaluation, which no hook of others sees; before that calls cost what they take."""
    pipe = stable_diffusion()
    calls: list[int] = []
    pipe.unet.conv_in.register_forward_hook(lambda *_: calls.append(1))
    with fs.TGate(3).apply(pipe) as handle:
        sample(pipe)
        sample(pipe, height=32, width=16)
        small, large = (handle.summary(), handle.summary())
        assert small == large
        assert len(calls) == 12
    assert handle.summary() == small
    assert 0.2 < small.saved < 0.4
    text = str(small)
    assert "25.0%" in text
    assert f"{small.saved:.1%} of" in text


def test_branches_are_named_by_the_loop() -> None:
    assert [branch.value for branch in Branch] == ["positive", "negative", "other"]
