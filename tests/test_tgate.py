"""T-GATE by hooks against the step plan written out in plain loops; undone without a trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import accelerate
import diffusers
import pipelines
import pytest
import torch
import torch._dynamo.testing
from refusal import check_refused
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from zoo import ZOO

import fastsample as fs
from fastsample.demo.bundled import load_pipeline
from fastsample.pipelines.counting import count
from fastsample.pipelines.guidance.reading import Branch
from fastsample.pipelines.tgate import PRESETS, Action, Convergence, TGate, TGatePolicy
from fastsample.pipelines.tgate.attention import _again
from fastsample.pipelines.tgate.targets import TextReader

PROMPTS = ["a small red circle", "a red circle"]


def reference_plan(i: int, gate: int, sp: int, fi: int, warm_up: int) -> tuple[str, str]:
    """(cross, self) of the authors' table: "run", "keep" (run and keep), "mean" (keep the halves' mean), "old"."""
    if i >= gate:
        return "old", "keep" if i % fi == 0 else "old"
    if i == gate - 1:
        return "mean", "mean"
    if i < warm_up:
        return "run", "run"
    return "run", "keep" if i == warm_up or i % sp == 0 else "old"


@contextmanager
def reference_gate(denoiser: nn.Module, gate: int, sp: int, fi: int, warm_up: int) -> Iterator[dict[str, int]]:
    """Replaces every attn1 and attn2 forward by a closure over a dict; the caller sets `state["i"]`."""
    state = {"i": 0}
    kept: dict[str, Tensor] = {}

    def wrap(name: str, module: nn.Module, part: int) -> None:
        forward = module.forward

        def replaced(*args: Any, **kwargs: Any) -> Tensor:
            action = reference_plan(state["i"], gate, sp, fi, warm_up)[part]
            if action == "old":
                return kept[name]
            out: Tensor = forward(*args, **kwargs)
            if action == "keep":
                kept[name] = out
            if action == "mean":
                negative, positive = out.chunk(2)
                kept[name] = (negative + positive) / 2
            return out

        module.forward = replaced  # type: ignore[method-assign]

    modules = {n: m for n, m in denoiser.named_modules() if n.endswith(("attn1", "attn2"))}
    for name, module in modules.items():
        wrap(name, module, 0 if name.endswith("attn2") else 1)
    yield state
    for module in modules.values():
        del module.forward


def sd_loop(pipe: Any, batch: int, steps: int, guidance: float, gate: int, call: Callable[..., Tensor]) -> Tensor:
    """Stable Diffusion's loop with the negative half alone after the gate; `call(i, x, t, half)` is the denoiser."""
    generator = torch.Generator().manual_seed(0)
    pipe.scheduler.set_timesteps(steps)
    x = torch.randn(batch, 4, 8, 8, generator=generator)
    for i, t in enumerate(pipe.scheduler.timesteps):
        if i < gate:
            negative, positive = call(i, torch.cat([x, x]), t, False).chunk(2)
            noise = negative + guidance * (positive - negative)
        else:
            noise = call(i, x, t, True)
        x = pipe.scheduler.step(noise, t, x).prev_sample
    return x


def sd_reference(pipe: Any, batch: int, steps: int, guidance: float, plan: tuple[int, int, int, int]) -> Tensor:
    positive, negative = pipe.encode_prompt(PROMPTS[:batch], "cpu", 1, True)
    text = torch.cat([negative, positive])
    with reference_gate(pipe.unet, *plan) as state:

        def call(i: int, x: Tensor, t: Tensor, half: bool) -> Tensor:
            state["i"] = i
            return pipe.unet(x, t, encoder_hidden_states=text[:batch] if half else text).sample

        return sd_loop(pipe, batch, steps, guidance, plan[0], call)


def sdxl_reference(pipe: Any, batch: int, steps: int, guidance: float, plan: tuple[int, int, int, int]) -> Tensor:
    positive, negative, pooled, negative_pooled = pipe.encode_prompt(PROMPTS[:batch])
    text, pooled = torch.cat([negative, positive]), torch.cat([negative_pooled, pooled])
    ids = torch.tensor([[16.0, 16, 0, 0, 16, 16]]).repeat(2 * batch, 1)
    with reference_gate(pipe.unet, *plan) as state:

        def call(i: int, x: Tensor, t: Tensor, half: bool) -> Tensor:
            state["i"] = i
            rows = slice(0, batch if half else 2 * batch)
            extra = {"text_embeds": pooled[rows], "time_ids": ids[rows]}
            return pipe.unet(x, t, encoder_hidden_states=text[rows], added_cond_kwargs=extra).sample

        return sd_loop(pipe, batch, steps, guidance, plan[0], call)


def pixart_reference(pipe: Any, batch: int, steps: int, guidance: float, plan: tuple[int, int, int, int]) -> Tensor:
    given: dict[str, Any] = pipelines.pixart_inputs(batch)
    text = torch.cat([given["negative_prompt_embeds"], given["prompt_embeds"]])
    mask = torch.cat([given["negative_prompt_attention_mask"], given["prompt_attention_mask"]])
    with reference_gate(pipe.transformer, *plan) as state:

        def call(i: int, x: Tensor, t: Tensor, half: bool) -> Tensor:
            state["i"] = i
            rows = slice(0, batch if half else 2 * batch)
            return pipe.transformer(
                x,
                encoder_hidden_states=text[rows],
                encoder_attention_mask=mask[rows],
                timestep=t.expand(len(x)),
                added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            ).sample.chunk(2, dim=1)[0]

        return sd_loop(pipe, batch, steps, guidance, plan[0], call)


def text_inputs(batch: int) -> dict[str, Any]:
    return {"prompt": PROMPTS[:batch], "height": 16, "width": 16}


FAMILIES: dict[str, tuple[Callable[[], Any], Callable[..., Tensor], Callable[[int], dict[str, Any]]]] = {
    "sd": (pipelines.stable_diffusion, sd_reference, text_inputs),
    "sdxl": (pipelines.stable_diffusion_xl, sdxl_reference, text_inputs),
    "pixart": (pipelines.pixart, pixart_reference, pipelines.pixart_inputs),
}
PLANS = [
    (1, 1, 1, 0),
    (3, 1, 1, 0),
    (6, 1, 1, 0),
    (4, 2, 1, 0),
    (4, 2, 2, 1),
    (5, 3, 1, 2),
    (2, 1, 3, 0),
    (3, 2, 2, 2),
]


def sample(pipe: Any, inputs: dict[str, Any], steps: int = 6, guidance: float = 4.0, **extra: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return pipe(
        **inputs,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=generator,
        output_type="latent",
        **extra,
    )[0]


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_hooks_follow_the_authors_step_plan(family: str, batch: int) -> None:
    make, reference, inputs = FAMILIES[family]
    pipe = make()
    untouched = sample(pipe, inputs(batch))
    for gate, sp, fi, warm_up in PLANS:
        want = reference(pipe, batch, 6, 4.0, (gate, sp, fi, warm_up))
        with TGate(gate, sp, fi, warm_up).apply(pipe) as handle:
            got = sample(pipe, inputs(batch))
            again = sample(pipe, inputs(batch))
            counts = handle.summary()
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
        assert torch.equal(got, again)
        assert counts.dropped == 2 * batch * (6 - gate)
        assert counts.cross_reused == 2 * counts.cross_modules * (6 - gate)
        assert counts.cross_modules == counts.self_modules > 0
    assert torch.equal(sample(pipe, inputs(batch)), untouched)


@pytest.mark.parametrize("family", FAMILIES)
def test_removed_hooks_leave_no_trace(family: str) -> None:
    make, _, inputs = FAMILIES[family]
    pipe = make()
    before = sample(pipe, inputs(1))
    denoiser = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    attributes = {name: set(vars(module)) for name, module in denoiser.named_modules()}
    handle = TGate(2).apply(pipe)
    assert not torch.equal(sample(pipe, inputs(1)), before)
    handle.remove()
    handle.remove()
    assert torch.equal(sample(pipe, inputs(1)), before)
    assert {name: set(vars(module)) for name, module in denoiser.named_modules()} == attributes


def test_a_hook_registered_later_survives_the_removal() -> None:
    pipe = pipelines.stable_diffusion()
    handle = TGate(2).apply(pipe)

    class Negate(diffusers.hooks.ModelHook):  # type: ignore[misc]
        def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return tuple(-value for value in self.fn_ref.original_forward(*args, **{**kwargs, "return_dict": False}))

    registry = diffusers.hooks.HookRegistry.check_if_exists_or_initialize(pipe.unet)
    registry.register_hook(Negate(), "negate")
    handle.remove()
    x, text = torch.ones(1, 4, 8, 8), torch.ones(1, 5, 16)
    negated = pipe.unet(x, 5, encoder_hidden_states=text, return_dict=False)[0]
    registry.remove_hook("negate")
    torch.testing.assert_close(negated, -pipe.unet(x, 5, encoder_hidden_states=text).sample)


def test_an_aborted_call_and_other_sizes_do_not_poison_the_next() -> None:
    pipe = pipelines.stable_diffusion()
    with TGate(3).apply(pipe):
        want = sample(pipe, text_inputs(1))

        def stop(pipe: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
            raise KeyboardInterrupt

        for steps in (1, 4):
            with pytest.raises(KeyboardInterrupt):
                sample(
                    pipe,
                    text_inputs(1),
                    callback_on_step_end=lambda *args, n=steps: stop(*args) if args[1] == n else {},
                )
            assert torch.equal(sample(pipe, text_inputs(1)), want)
        other = sample(pipe, {"prompt": PROMPTS, "height": 24, "width": 16})
        assert other.shape == (2, 4, 12, 8)
        assert torch.equal(sample(pipe, text_inputs(1)), want)
        different = sample(pipe, {"prompt": "a small small small circle", "height": 16, "width": 16})
        assert not torch.equal(different, want)


def test_the_caches_are_freed_after_a_call() -> None:
    pipe = pipelines.stable_diffusion()
    with TGate(3).apply(pipe) as handle:
        sizes: list[int] = []
        sample(
            pipe,
            text_inputs(1),
            callback_on_step_end=lambda *args: sizes.append(handle.summary().cache_bytes) or {},
        )
        assert sizes[1] == 0 < sizes[2] == sizes[5]
        assert handle.summary().cache_bytes == 0
        handle.reset()
        assert handle.summary().evaluations == 0


@pytest.mark.parametrize(
    "name", ["HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "PNDMScheduler", "EulerDiscreteScheduler"]
)
def test_steps_not_evaluations_close_the_gate(name: str) -> None:
    pipe = pipelines.stable_diffusion()
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config, skip_prk_steps=True)
    rows: list[int] = []
    pipe.unet.conv_in.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    with TGate(3).apply(pipe):
        sample(pipe, text_inputs(1), steps=5)
    order = pipe.scheduler.order
    before = 3 * order + int(name == "PNDMScheduler")  # which makes its second step twice
    assert rows == [2] * before + [1] * (len(rows) - before)
    assert len(rows) == len(pipe.scheduler.timesteps)


@pytest.mark.parametrize("solver", ["unipc", "dpmpp-2m-sde", "heun", "ghvb"])
def test_our_schedulers_gate_alike(solver: str) -> None:
    pipe = pipelines.stable_diffusion()
    pipe.scheduler = fs.create_scheduler(solver, pipe.scheduler.config)
    with TGate(2).apply(pipe) as handle:
        assert torch.isfinite(sample(pipe, text_inputs(1), steps=4)).all()
        stages = 2 if solver == "heun" else 1
        assert handle.summary().dropped == len(pipe.scheduler.timesteps) - 2 * stages


def test_no_guidance_keeps_the_cache_as_it_is() -> None:
    pipe = pipelines.stable_diffusion()
    with TGate(3, drop_guidance=False).apply(pipe) as handle:
        assert torch.isfinite(sample(pipe, text_inputs(2), guidance=1.0)).all()
        assert handle.summary().dropped == 0
        assert handle.summary().cross_reused == 3 * handle.summary().cross_modules


def test_guidance_can_go_on_behind_the_gate() -> None:
    """Both branches reuse their own text: as a batch of unguided rows would."""
    pipe = pipelines.stable_diffusion()
    with TGate(3, drop_guidance=False).apply(pipe) as handle:
        sample(pipe, text_inputs(1))
        summary = handle.summary()
    assert summary.evaluations == 12
    assert summary.dropped == 0


def test_a_gate_at_the_last_step_changes_nothing() -> None:
    pipe = pipelines.stable_diffusion()
    plain = sample(pipe, text_inputs(1))
    with TGate(6).apply(pipe):
        assert torch.equal(sample(pipe, text_inputs(1)), plain)


def test_cutting_guidance_alone_computes_all_attention() -> None:
    pipe = load_pipeline()
    with TGate(1, cache=False).apply(pipe) as handle:
        sample(pipe, {"prompt": "a small red circle"}, steps=3)
        summary = handle.summary()
    assert summary.cross_reused == 0
    assert summary.dropped == 2


def test_image_to_image_counts_its_own_steps() -> None:
    pipe = pipelines.stable_diffusion_img2img()
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with TGate(2).apply(pipe) as handle:
        pipe("a red circle", image=image, strength=0.5, num_inference_steps=8, output_type="latent")
        assert handle.summary().dropped == 2  # four steps, the gate after two


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: TGate(0), "gate_step = 0"),
        (lambda: TGate(2.5), "gate_step = 2.5"),  # type: ignore[arg-type]
        (lambda: TGate(True), "gate_step = True"),
        (lambda: TGate(3, sp_interval=0), "sp_interval = 0"),
        (lambda: TGate(3, fi_interval=0), "fi_interval = 0"),
        (lambda: TGate(3, warm_up=-1), "warm_up = -1"),
        (lambda: TGate(3, keep="both"), "keep = 'both'"),
        (lambda: TGate(3, cache=False, drop_guidance=False), "leave nothing to do"),
        (lambda: TGate(3, cache=1), "cache = 1"),  # type: ignore[arg-type]
        (lambda: TGate.preset("sd3"), "preset = 'sd3'"),
        (lambda: TGate(3).apply(pipelines.flux()), "joint attention"),
        (lambda: TGate(3).apply(pipelines.sd3()), "joint attention"),
        (lambda: TGate(3).apply(object()), "has none of the components"),
    ],
)
def test_wrong_input_is_one_line(call: Callable[[], object], words: str) -> None:
    check_refused(call, words)


@pytest.mark.parametrize(
    ("tgate", "guidance", "words"),
    [
        (TGate(7), 4.0, "gate_step = 7 with 6 steps"),
        (TGate(3), 1.0, "drop_guidance = True"),
    ],
)
def test_a_call_that_cannot_be_gated_stops_before_the_network(tgate: TGate, guidance: float, words: str) -> None:
    pipe = pipelines.stable_diffusion()
    calls: list[int] = []
    pipe.unet.conv_in.register_forward_pre_hook(lambda *_: calls.append(1))
    with tgate.apply(pipe), pytest.raises(ValueError, match=words):
        sample(pipe, text_inputs(1), guidance=guidance)
    assert calls == []


def test_gating_twice_is_refused() -> None:
    pipe = pipelines.stable_diffusion()
    with TGate(3).apply(pipe), pytest.raises(ValueError, match="gated already"):
        TGate(4).apply(pipe)


def test_presets_are_plans() -> None:
    for name in PRESETS:
        assert TGate.preset(name).gate_step == PRESETS[name]["gate_step"]
    assert TGate.preset("sdxl", gate_step=5).gate_step == 5


def test_perturbed_branches_are_no_part_of_the_mean() -> None:
    kept = {(branch,): torch.full((1, 2), value) for branch, value in zip(Branch, (1.0, 3.0, 9.0), strict=True)}
    assert torch.equal(_again(kept, (Branch.POSITIVE,), mean=True), torch.full((1, 2), 2.0))


def test_nothing_is_stored_that_is_never_read() -> None:
    policy = TGatePolicy(3)
    assert [policy.decide(i).self_attention for i in range(6)] == [Action.COMPUTE] * 6
    assert [policy.decide(i).cross for i in range(5)] == [
        Action.COMPUTE,
        Action.COMPUTE,
        Action.STORE,
        Action.REUSE,
        Action.REUSE,
    ]


def test_the_ledger_counts_what_ran() -> None:
    pipe = pipelines.stable_diffusion()
    with TGate(2).apply(pipe), count(pipe, images=2) as ledger:
        sample(pipe, text_inputs(2))
    assert ledger.model_evaluations == 2 * 2 + 4
    assert ledger.forward_calls == 6


def test_macs_are_torchs_count() -> None:
    """Of the tiny UNet without and with its attention replaced by zeros."""
    pipe = pipelines.stable_diffusion()
    with TGate(2, fi_interval=100).apply(pipe) as handle:
        sample(pipe, text_inputs(1))
        summary = handle.summary()
    x, text = torch.zeros(1, 4, 8, 8), torch.zeros(1, 8, 16)

    def macs() -> float:
        with FlopCounterMode(display=False) as counter:
            pipe.unet(x, 1, encoder_hidden_states=text)
        return counter.get_total_flops() / 2

    whole = macs()
    for name, module in pipe.unet.named_modules():
        if name.endswith(("attn1", "attn2")):
            module.forward = lambda hidden_states, **kwargs: torch.zeros_like(hidden_states)
    attention = whole - macs()
    assert summary.macs == 12 * whole
    assert summary.macs_saved_by_guidance == 4 * whole
    assert summary.macs_saved_by_caching == pytest.approx(4 * attention)
    assert summary.saved == pytest.approx((4 * whole + 4 * attention) / (12 * whole))


def test_convergence_is_the_distance_to_the_last_step() -> None:
    pipe = pipelines.stable_diffusion()
    outputs: list[Tensor] = []
    attention = pipe.unet.down_blocks[1].attentions[0].transformer_blocks[0].attn2
    handle = attention.register_forward_hook(lambda _, args, output: outputs.append(output.detach()))
    found = TGate.suggest(pipe, PROMPTS, tolerance=0.5, num_inference_steps=5, output_type="latent")
    handle.remove()
    place = found.layers.index("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2")
    want = [float((o - outputs[-1]).norm() / outputs[-1].norm()) for o in outputs]
    torch.testing.assert_close(found.distances[:, place], torch.tensor(want), rtol=1e-4, atol=1e-6)
    assert not attention._forward_hooks


@pytest.mark.parametrize(("means", "gate"), [([9, 9, 0, 0, 0], 3), ([0, 0, 0, 0], 1), ([9, 9, 9, 0], None)])
def test_suggested_gates(means: list[float], gate: int | None) -> None:
    """The gate reuses the outputs of the step before it."""
    assert Convergence(("a",), torch.tensor(means).float()[:, None], 0.1).gate_step == gate


def test_suggestions_need_cross_attention() -> None:
    with pytest.raises(ValueError, match="joint attention"):
        TGate.suggest(pipelines.flux(), PROMPTS)
    with pytest.raises(ValueError, match="tolerance = 0"):
        TGate.suggest(pipelines.stable_diffusion(), PROMPTS, tolerance=0)


def test_compiled_denoisers_settle() -> None:
    """Graphs are stable from the second run, and the result is that of the plain module."""
    pipe = pipelines.stable_diffusion()
    with TGate(2).apply(pipe):
        want = sample(pipe, text_inputs(1))
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    with TGate(2).apply(pipe):
        for block in (*pipe.unet.down_blocks, pipe.unet.mid_block, *pipe.unet.up_blocks):
            block.compile(backend=counter)
        torch.testing.assert_close(sample(pipe, text_inputs(1)), want, rtol=1e-4, atol=1e-5)
        sample(pipe, text_inputs(1))
        settled = counter.frame_count
        torch.testing.assert_close(sample(pipe, text_inputs(1)), want, rtol=1e-4, atol=1e-5)
    assert counter.frame_count == settled > 0


def test_another_cache_is_refused() -> None:
    config = diffusers.PyramidAttentionBroadcastConfig(
        cross_attention_block_skip_range=2,
        cross_attention_block_identifiers=("blocks",),
        current_timestep_callback=lambda: 500,
    )
    pipe = ZOO["wan"].build()
    pipe.transformer.enable_cache(config)
    with pytest.raises(ValueError, match="another cache"):
        TGate(2).apply(pipe)
    pipe = pipelines.stable_diffusion()  # no CacheMixin: applied as a function
    diffusers.apply_pyramid_attention_broadcast(pipe.unet, config)
    with pytest.raises(ValueError, match="another cache"):
        TGate(2).apply(pipe)
    pipe = pipelines.stable_diffusion()
    own = pipe.unet.forward
    pipe.unet.forward = lambda *args, **kwargs: own(*args, **kwargs)  # as DeepCache does
    with pytest.raises(ValueError, match="replaced by another package"):
        TGate(2).apply(pipe)


@torch.no_grad()
def test_two_call_guidance_drops_the_second_call() -> None:
    """Wan: after the gate one call runs, with the mean of both calls' cross-attention at the last step before it."""
    pipe, wan_inputs = ZOO["wan"].build(), ZOO["wan"].inputs
    plain = sample(pipe, wan_inputs())
    outputs: dict[int, list[Tensor]] = {}
    block = pipe.transformer.blocks[0].attn2
    rows: list[int] = []
    pipe.transformer.patch_embedding.register_forward_pre_hook(lambda *_: rows.append(1))
    block.to_out[0].register_forward_hook(lambda _, args, out: outputs.setdefault(len(rows), []).append(out))
    seen: dict[int, Tensor] = {}
    block.register_forward_hook(lambda _, args, out: seen.__setitem__(len(rows), out))
    with TGate(2).apply(pipe) as handle:
        gated = sample(pipe, wan_inputs())
        summary = handle.summary()
    assert len(rows) == 2 * 2 + 4
    assert (summary.evaluations, summary.dropped) == (8, 4)
    assert summary.cross_modules == len(pipe.transformer.blocks)
    mean = (outputs[3][0] + outputs[4][0]) / 2
    torch.testing.assert_close(seen[5], mean)
    torch.testing.assert_close(seen[8], mean)
    assert not torch.equal(gated, plain)
    with TGate(6).apply(pipe):
        assert torch.equal(sample(pipe, wan_inputs()), plain)
    assert torch.equal(sample(pipe, wan_inputs()), plain)


@torch.no_grad()
def test_the_guider_does_in_modular_loops_what_the_hooks_do_in_pipelines() -> None:
    """The loop of a modular pipeline's denoising block, against the same pipeline gated with keep="positive"."""
    pipe = pipelines.stable_diffusion()
    before = {name: set(vars(module)) for name, module in pipe.unet.named_modules()}
    for sp, fi in ((1, 1), (2, 2)):
        with TGate(3, sp, fi, keep="positive").apply(pipe):
            want = sample(pipe, text_inputs(1))
        guider = fs.TGateGuider(guidance_scale=4.0, gate_step=3, sp_interval=sp, fi_interval=fi)
        positive, negative = pipe.encode_prompt(PROMPTS[:1], "cpu", 1, True)
        for _ in range(2):
            pipe.scheduler.set_timesteps(6)
            x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
            calls = 0
            for i, t in enumerate(pipe.scheduler.timesteps):
                guider.set_state(step=i, num_inference_steps=6, timestep=t)
                batches = guider.prepare_inputs({"text": (positive, negative)})
                for batch in batches:
                    guider.prepare_models(pipe.unet)
                    batch.noise_pred = pipe.unet(x, t, encoder_hidden_states=batch.text).sample
                    guider.cleanup_models(pipe.unet)
                    calls += 1
                x = pipe.scheduler.step(guider(batches)[0], t, x).prev_sample
            torch.testing.assert_close(x, want, rtol=1e-4, atol=1e-5)
            assert calls == 3 * 2 + 3
            assert {name: set(vars(module)) for name, module in pipe.unet.named_modules()} == before


def test_the_guider_checks_its_steps() -> None:
    guider = fs.TGateGuider(gate_step=9)
    with pytest.raises(ValueError, match="gate_step = 9 with 6 steps"):
        guider.set_state(step=0, num_inference_steps=6, timestep=torch.tensor(999))
    with pytest.raises(ValueError, match="joint attention"):
        fs.TGateGuider().prepare_models(pipelines.flux().transformer)


def test_layerwise_casting_and_gating_go_together() -> None:
    """Hooks of diffusers' own on the same modules, registered before ours and gone on after them."""
    pipe = pipelines.stable_diffusion()
    pipe.unet.enable_layerwise_casting(storage_dtype=torch.float16, compute_dtype=torch.float32)
    plain = sample(pipe, text_inputs(1))
    with TGate(6).apply(pipe):
        assert torch.equal(sample(pipe, text_inputs(1)), plain)
    with TGate(3).apply(pipe) as handle:
        assert torch.isfinite(sample(pipe, text_inputs(1))).all()
        assert handle.summary().dropped == 3
    assert torch.equal(sample(pipe, text_inputs(1)), plain)


def test_attention_backends_and_gating_go_together() -> None:
    pipe = pipelines.pixart()
    with TGate(3).apply(pipe):
        want = sample(pipe, pipelines.pixart_inputs())
    pipe.transformer.set_attn_processor(diffusers.models.attention_processor.AttnProcessor())
    with TGate(3).apply(pipe):
        torch.testing.assert_close(sample(pipe, pipelines.pixart_inputs()), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["group", "accelerate"])
def test_offloading_and_gating_go_together(kind: str) -> None:
    """Their hooks move weights around the same forwards; here from the CPU to the CPU."""
    cpu = torch.device("cpu")
    plain = sample(pipelines.stable_diffusion(), text_inputs(1))
    pipe = pipelines.stable_diffusion()
    with TGate(3).apply(pipe):
        want = sample(pipe, text_inputs(1))
    pipe = pipelines.stable_diffusion()
    if kind == "group":
        pipe.unet.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type="leaf_level")
    else:
        accelerate.cpu_offload(pipe.unet, execution_device=cpu)
    with TGate(3).apply(pipe):
        assert torch.equal(sample(pipe, text_inputs(1)), want)
    assert torch.equal(sample(pipe, text_inputs(1)), plain)


def test_text_is_seen_by_name_and_by_place() -> None:
    """Wan passes it by place; self-attention may be given the latents again."""
    reads = TextReader(ZOO["wan"].build().transformer.blocks[0].attn2)
    hidden, text = torch.zeros(1, 4, 8), torch.zeros(1, 3, 8)
    assert reads((hidden, text), {})
    assert reads((hidden,), {"encoder_hidden_states": text})
    assert not reads((hidden,), {})
    assert not reads((hidden, None), {})
    assert not reads((hidden, hidden), {})
    assert not TextReader(nn.Linear(2, 2)).possible
