"""Recipes: what composes with what, what a run reports, and that a pipeline is left as it was."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import threading
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import accelerate
import diffusers
import pytest
import torch
from pipelines import SD_CONFIG, pixart, pixart_inputs, quiet, sd3, sd3_inputs, stable_diffusion
from refusal import check_refused
from test_presets import entry, preset_of, table_on
from torch import Tensor
from zoo import ZOO

import fastsample as fs
from fastsample.pipelines.composition import PARTS as COMPOSED
from fastsample.pipelines.composition import REFUSED
from fastsample.pipelines.recipe import Recipe
from fastsample.tables.preset import BUNDLED

CALL: dict[str, Any] = {"guidance_scale": 3.0, "output_type": "latent"}
STEPS = 6


@pytest.fixture(scope="module")
def pipe() -> Any:
    return quiet(stable_diffusion())


@pytest.fixture(scope="module")
def transformer_pipe() -> Any:
    """One whose network torch.compile traces in a second."""
    return quiet(pixart())


@pytest.fixture(scope="module")
def preset(pipe: Any) -> Any:
    config = dict(pipe.scheduler.config)
    return preset_of(config, entry(table_on(config, STEPS)))


def latents(pipe: Any, **changed: Any) -> Tensor:
    arguments = {**CALL, "generator": torch.Generator().manual_seed(0), **changed}
    own = getattr(pipe, "pipe", pipe)
    prompt: dict[str, Any] = {"prompt": "a red circle"} if own.tokenizer else pixart_inputs()
    images: Tensor = pipe(**{**prompt, **arguments}).images
    return images


PARTS: dict[str, dict[str, Any]] = {
    "solver": {"solver": "ghvb", "grid": "trailing", "options": {"order": 2}},
    "preset": {},
    "guidance_cut": {"guidance_cut": fs.GuidanceCut(0, 3)},
    "tgate": {"tgate": fs.TGate(3)},
    "parallel": {"parallel": {"tolerance": 0.0}},
}


@contextlib.contextmanager
def compiled(pipe: Any) -> Iterator[None]:
    """In the block torch.compile has the network, which is traced and run as it is."""
    pipe.transformer.compile(backend="eager")
    try:
        yield
    finally:
        pipe.transformer._compiled_call_impl = None


@contextlib.contextmanager
def offloaded(pipe: Any) -> Iterator[None]:
    """In the block networks are moved to the device when they are called, each whole: diffusers' model offloading."""
    pipe.enable_model_cpu_offload(device="cpu")
    try:
        yield
    finally:
        pipe.remove_all_hooks()
        del pipe._all_hooks, pipe._offload_device, pipe._offload_gpu_id


@contextlib.contextmanager
def offloaded_by_layers(pipe: Any) -> Iterator[None]:
    """In the block weights are elsewhere, and come layer by layer: accelerate's hooks of sequential offloading."""
    for part in (pipe.vae, pipe.transformer):
        accelerate.cpu_offload(part, torch.device("cpu"))
    try:
        assert next(pipe.transformer.parameters()).is_meta
        yield
    finally:
        pipe.remove_all_hooks()


AROUND = {"compile": compiled, "offload": offloaded, "offload by layers": offloaded_by_layers}
"""Parts that are put on the pipeline itself; two kinds of one."""
PAIRS = list(itertools.combinations([*PARTS, *AROUND], 2))
LARGEST = [  # all that goes together at once
    ("solver", "preset", "guidance_cut", "parallel", "compile", "offload"),
    ("solver", "preset", "guidance_cut", "parallel", "offload by layers"),
    ("solver", "preset", "tgate", "compile", "offload by layers"),
]


@pytest.mark.parametrize("names", [*PAIRS, *LARGEST], ids="+".join)
def test_what_composes(names: tuple[str, ...], transformer_pipe: Any, preset: Any) -> None:
    """Each cell of the table is what its parts are one by one, or refused with the table's reason."""
    pipe = transformer_pipe
    if {*names} == {"offload", "offload by layers"}:
        return  # one or the other
    parts: dict[str, Any] = {"steps": STEPS}
    for name in names:
        parts |= PARTS.get(name, {})
    if "preset" in names:
        parts["preset"] = preset
        parts.setdefault("solver", "dpmpp-2m")
    reason = next((reason for pair, reason in REFUSED.items() if {*pair} <= {*names}), None)
    if reason is not None:
        check_refused(lambda: Recipe(**parts), reason)
        return
    recipe = Recipe(**parts)
    expected = _by_hand(pipe, recipe)
    with contextlib.ExitStack() as around:
        for name in names:
            if name in AROUND:
                around.enter_context(AROUND[name](pipe))
        with recipe.apply(pipe) as run:
            got = latents(pipe)
    summary = run.summary()
    assert torch.allclose(got, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    assert summary.calls == 1
    assert (summary.dropped > 0) == bool({"guidance_cut", "tgate"} & {*names})
    assert summary.rounds <= STEPS + 1
    if "parallel" not in names:
        assert summary.evaluations + summary.dropped == 2 * STEPS
    assert torch.equal(_by_hand(pipe, recipe), expected)  # nothing of it stays


def test_the_table_is_shown() -> None:
    shown = fs.composition()
    assert "| **tgate** |  |  |  | no | yes | yes |" in shown
    assert all(reason in shown for reason in REFUSED.values())
    assert shown in (Path(__file__).parents[1] / "docs" / "recipes.md").read_text()
    assert {name for names in PAIRS for name in names} >= {*COMPOSED}


def test_each_row_of_a_window_knows_its_step(transformer_pipe: Any) -> None:
    """A cut inside a window: guided and unguided rows side by side, in any window, from any step on."""
    pipe = transformer_pipe
    for cut in (fs.GuidanceCut(0, 2), fs.GuidanceCut(2, 5), fs.GuidanceCut(0.5, 1.0)):
        recipe = Recipe("ghvb", "trailing", steps=STEPS, guidance_cut=cut)
        expected = _by_hand(pipe, recipe)
        for window in (2, 3, None):
            with replace(recipe, parallel={"tolerance": 0.0, "window": window}).apply(pipe) as run:
                got = latents(pipe)
            assert torch.allclose(got, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
            assert run.summary().dropped >= STEPS - (cut.window(STEPS)[1] - cut.window(STEPS)[0])


def _by_hand(pipe: Any, recipe: Recipe) -> Tensor:
    """The same parts put on one after the other, sequentially."""
    own = pipe.scheduler
    scheduler = recipe.scheduler(pipe)
    try:
        pipe.scheduler = scheduler or own
        for part in (recipe.guidance_cut, recipe.tgate):
            if part is not None:
                with part.apply(pipe):
                    return latents(pipe, num_inference_steps=STEPS)
        return latents(pipe, num_inference_steps=STEPS)
    finally:
        pipe.scheduler = own


def test_a_pipeline_is_left_as_it_was(pipe: Any, preset: Any) -> None:
    before, plain = pipe.scheduler, latents(pipe, num_inference_steps=4)
    recipe = Recipe("ghvb", "trailing", preset, STEPS, fs.GuidanceCut(0, 2), parallel={"tolerance": 0.0})
    run = recipe.apply(pipe)
    latents(pipe)
    run.remove()
    run.remove()
    for parallel in (None, {"tolerance": 0.0}):  # in a call under way, which goes on with its scheduler
        run = replace(recipe, parallel=parallel).apply(pipe)
        found = [latents(pipe), latents(pipe, callback_on_step_end=lambda *_: run.remove() or {})]  # noqa: B023
        assert torch.isfinite(found[1]).all()
        assert pipe.scheduler is before
    assert type(pipe).__name__ == "StableDiffusionPipeline"
    assert torch.equal(latents(pipe, num_inference_steps=4), plain)
    check_refused(lambda: Recipe(guidance_cut=fs.GuidanceCut(0, 2)).apply(object()), "no pipeline")
    with fs.GuidanceCut(0, 3).apply(pipe):
        check_refused(lambda: Recipe("ghvb", guidance_cut=fs.GuidanceCut(0, 2)).apply(pipe), "cut already")
        assert pipe.scheduler is before
    assert torch.equal(latents(pipe, num_inference_steps=4), plain)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_recipes_are_taken_off_in_any_order(order: tuple[int, ...], pipe: Any) -> None:
    before, config, plain = pipe.scheduler, dict(pipe.config), latents(pipe, num_inference_steps=4)
    runs = [
        Recipe("ghvb", "trailing", steps=2, options={"order": 2}).apply(pipe),
        Recipe("dpmpp-2m", steps=3, guidance_cut=fs.GuidanceCut(0, 2)).apply(pipe),
        fs.speed_up(pipe, steps=4),
    ]
    got = latents(pipe)
    assert [run.summary().rounds for run in runs] == [4, 4, 4]
    pipe.scheduler = runs[-1].recipe.scheduler(pipe)  # the last one's rules
    assert torch.equal(latents(pipe), got)
    pipe.scheduler = runs[-1]._scheduler
    schedulers = [run._scheduler for run in runs]
    for number in order:
        assert pipe.scheduler is [one for one in schedulers if one is not None][-1]
        runs[number].remove()
        schedulers[number] = None
    assert pipe.scheduler is before
    assert dict(pipe.config) == config
    assert type(pipe) is diffusers.StableDiffusionPipeline
    assert torch.equal(latents(pipe, num_inference_steps=4), plain)


def test_an_exception_leaves_nothing(pipe: Any) -> None:
    before, plain = pipe.scheduler, latents(pipe, num_inference_steps=4)

    def stop(*_: Any) -> dict[str, Any]:
        raise ZeroDivisionError

    recipe = Recipe("ghvb", "trailing", steps=4, guidance_cut=fs.GuidanceCut(0, 2), parallel={"tolerance": 0.0})
    with pytest.raises(ZeroDivisionError), recipe.apply(pipe):
        latents(pipe, callback_on_step_end=stop)
    with pytest.raises(ZeroDivisionError), Recipe(tgate=fs.TGate(2)).apply(pipe):
        latents(pipe, callback_on_step_end=stop)
    assert pipe.scheduler is before
    assert torch.equal(latents(pipe, num_inference_steps=4), plain)


def test_a_scheduler_set_under_a_recipe_goes_with_it(pipe: Any) -> None:
    before, config, plain = pipe.scheduler, dict(pipe.config), latents(pipe, num_inference_steps=4)
    run, mine = fs.speed_up(pipe, steps=4), fs.DDIMScheduler.from_config(before.config)
    pipe.scheduler = mine
    under = latents(pipe)
    with pytest.warns(UserWarning, match="set to a DDIMScheduler meanwhile"):
        run.remove()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.remove()
    assert pipe.scheduler is before
    assert dict(pipe.config) == config
    assert torch.equal(latents(pipe, num_inference_steps=4), plain)
    pipe.scheduler = mine
    assert torch.equal(latents(pipe, num_inference_steps=4), under)
    pipe.scheduler = before


def test_pipelines_that_share_their_parts(pipe: Any) -> None:
    other = quiet(diffusers.StableDiffusionPipeline.from_pipe(pipe))
    plain = latents(pipe, num_inference_steps=4)
    first = fs.speed_up(pipe, steps=4)
    assert torch.equal(latents(other, num_inference_steps=4), plain)
    fast = latents(pipe)
    second = Recipe("dpmpp-2m", steps=4, guidance_cut=fs.GuidanceCut(0, 2)).apply(other)
    latents(other)
    assert (first.summary().dropped, second.summary().dropped) == (0, 2)
    first.remove()
    second.remove()
    assert other.scheduler is pipe.scheduler
    assert torch.equal(latents(other, num_inference_steps=4), plain)
    assert torch.equal(latents(pipe, num_inference_steps=4), plain)
    assert not torch.equal(fast, plain)


def test_a_pipeline_is_saved_with_its_recipes_scheduler(pipe: Any, tmp_path: Path) -> None:
    with Recipe("ghvb", "trailing", options={"order": 2}).apply(pipe):
        expected = latents(pipe, num_inference_steps=4)
        pipe.save_pretrained(tmp_path)
    loaded = quiet(fs.load_pipeline(tmp_path, safety_checker=None))
    assert torch.equal(latents(loaded, num_inference_steps=4), expected)


def test_a_call_may_say_its_own_steps(pipe: Any) -> None:
    with Recipe("ghvb", "trailing", steps=3).apply(pipe) as run:
        latents(pipe, num_inference_steps=5)
        assert run.summary().rounds == 5
        latents(pipe)
        assert run.summary().rounds == 8
        latents(pipe, num_inference_steps=None, timesteps=[900, 500])
        assert run.summary().rounds == 10
        with Recipe(parallel={"tolerance": 0.0}).apply(pipe) as over:  # the steps and counts of both
            latents(pipe)
        latents(fs.ParallelSampler(pipe, tolerance=0.0))
        assert (run.summary().calls, over.summary().calls, over.summary().rounds) == (5, 1, 3)


def test_every_thread_samples_by_it(pipe: Any) -> None:
    found: list[Tensor] = []
    with Recipe("ghvb", "trailing", steps=3).apply(pipe) as run:
        expected = latents(pipe)
        thread = threading.Thread(target=lambda: found.append(latents(pipe)))
        thread.start()
        thread.join()
        assert run.summary().calls == 2
    assert torch.equal(found[0], expected)


def test_rounds_are_of_the_call_of_their_thread(pipe: Any) -> None:
    begun, swept = threading.Event(), threading.Event()

    def wait(pipe: Any, step: int, time: Any, kept: dict[str, Any]) -> dict[str, Any]:
        begun.set()
        assert swept.wait(60)
        return kept

    with Recipe("ghvb", "trailing", steps=4, parallel={}).apply(pipe) as run:
        latents(pipe)
        rounds = run.summary().rounds
        thread = threading.Thread(target=lambda: latents(pipe, num_inference_steps=9, callback_on_step_end=wait))
        thread.start()
        assert begun.wait(60)
        latents(pipe)
        swept.set()
        thread.join()
        assert run.summary().rounds == 2 * rounds + 9


def test_the_summary_compares_with_a_plain_call(pipe: Any) -> None:
    with Recipe("ghvb", "trailing", steps=3, guidance_cut=fs.GuidanceCut(0, 1)).apply(pipe) as run:
        latents(pipe)
        assert "plain" not in str(run.summary())
        arguments = {**CALL, "generator": torch.Generator().manual_seed(0)}
        plain = run.measure_plain("a red circle", **arguments, num_inference_steps=7).images
        summary = run.summary()
        latents(pipe)
    assert torch.equal(plain, latents(pipe, num_inference_steps=7))
    assert (summary.evaluations, summary.dropped, summary.plain_evaluations) == (4, 2, 14)
    assert "4 evaluations in 3 rounds, 2 dropped with guidance" in str(summary)
    assert "14 evaluations" in str(summary)
    with Recipe("ghvb", steps=2).apply(pipe) as beneath, Recipe("ddim", steps=2).apply(pipe):
        again = beneath.measure_plain("a red circle", **{**arguments, "generator": torch.Generator().manual_seed(0)})
    assert beneath.summary().plain_evaluations == 100
    assert torch.equal(again.images, latents(pipe))


def test_the_tables_of_the_calls_guidance(pipe: Any) -> None:
    config = dict(pipe.scheduler.config)
    three = entry(table_on(config, STEPS))
    seven = entry(table_on(config, STEPS, "ghvb"), guidance=7.5, least=6.0, most=9.0)
    both = preset_of(config, three, seven)
    with Recipe("dpmpp-2m", preset=both, steps=STEPS).apply(pipe), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        got = [latents(pipe, guidance_scale=scale) for scale in (3.0, 7.5, 3.0)]
    for scale, own, found in zip((3.0, 7.5, 3.0), (three, seven, three), got, strict=True):
        with Recipe("dpmpp-2m", preset=preset_of(config, own), steps=STEPS).apply(pipe):
            assert torch.equal(latents(pipe, guidance_scale=scale), found)
    with Recipe("dpmpp-2m", preset=both).apply(pipe), pytest.warns(UserWarning, match="guidance 5 is far"):
        latents(pipe, guidance_scale=5.0, num_inference_steps=STEPS)


def test_a_recipe_comes_back_from_json(preset: Any) -> None:
    for recipe in (
        Recipe(),
        Recipe("ghvb", "beta", preset, 6, fs.GuidanceCut(0.1, 0.5), None, {"window": 4}, {"order": 2}, "a reason"),
        Recipe(tgate=fs.TGate(4, drop_guidance=False)),
    ):
        assert Recipe.from_json(recipe.to_json()) == recipe
    for text in ("", "[]", "{}", Recipe().to_json()[:-4], Recipe().to_json().replace("steps", "step")):
        check_refused(lambda: Recipe.from_json(text), "text")  # noqa: B023
    for name, value in (
        ("solver", 3),
        ("grid", ["beta"]),
        ("steps", True),
        ("parallel", [1]),
        ("parallel", {"toleranc": 1}),
        ("parallel", {"tolerance": "low"}),
        ("options", None),
        ("reason", None),
        ("guidance_cut", 4),
        ("guidance_cut", {"begin": 0}),
        ("tgate", {"gate_step": "three"}),
        ("tgate", "three"),
        ("preset", {}),
    ):
        changed = json.dumps({**json.loads(Recipe("ghvb").to_json()), name: value})
        words = {"preset": "Preset"}.get(name, "gate" if name == "tgate" else name)
        check_refused(lambda: Recipe.from_json(changed), words)  # noqa: B023
    check_refused(lambda: Recipe(parallel={"on_sweep": print}).to_json(), "cannot be written")


def test_a_recipes_text_is_the_line_that_applies_it(pipe: Any, preset: Any) -> None:
    for recipe in (
        fs.recommend(pipe, steps=3),
        Recipe("ghvb", "beta", None, 3, fs.GuidanceCut(0.1, 0.5), None, {"window": 4}, {"order": 2}, "two\nlines"),
        Recipe("ghvb", preset=preset, steps=STEPS),
        Recipe(tgate=fs.TGate(2), steps=3),
    ):
        names = {"fastsample": fs, "pipe": pipe}
        exec(str(recipe), names)
        run = names["run"]
        got = latents(pipe)
        run.remove()
        assert replace(run.recipe, reason="") == replace(recipe, reason="")
        with recipe.apply(pipe):
            assert torch.equal(latents(pipe), got)
    assert repr(Recipe("ghvb", preset="flow_text_to_image")) == (
        "fastsample.Recipe(solver='ghvb', preset='flow_text_to_image')"
    )


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"steps": 0}, "steps = 0"),
        ({"steps": 2.5}, "steps = 2.5"),
        ({"grid": "karras"}, "solver = None"),
        ({"preset": "absent.json"}, "no file"),
        ({"parallel": {"iteration": "newton"}}, "newton"),
        ({"parallel": {"window": 0}}, "window = 0"),
    ],
)
def test_wrong_recipes_are_refused(parts: dict[str, Any], words: str) -> None:
    check_refused(lambda: Recipe(**parts), words)


def test_wrong_parts_are_refused_when_applied(pipe: Any) -> None:
    before = pipe.scheduler
    other = entry(table_on({**SD_CONFIG, "beta_end": 0.02}, STEPS))
    for recipe, words in (
        (Recipe("ghbv"), "ghbv"),
        (Recipe("ghvb", "karas"), "karas"),
        (Recipe("ghvb", options={"betta": 1}), "betta"),
        (Recipe("ghvb", preset=preset_of({**SD_CONFIG, "beta_end": 0.02}, other)), "another noise schedule"),
    ):
        check_refused(lambda: recipe.apply(pipe), words)  # noqa: B023
        assert pipe.scheduler is before


def test_recommended_and_applied_in_one_line(pipe: Any) -> None:
    vp, flow_pipe = fs.recommend(pipe), quiet(sd3())
    flow = fs.recommend(flow_pipe, guidance=2.0, steps=4)
    assert (vp.solver, vp.grid) == ("hb-dpmpp-2m", "quadratic")
    by_call = [fs.recommend(pipe, guidance=g, steps=n).solver for g, n in ((1.0, 8), (3.0, 8), (7.5, 8), (7.5, 20))]
    assert by_call == ["unipc", "hb-dpmpp-2m", "ghvb", "hb-dpmpp-2m"]
    assert (flow.solver, flow.steps) == ("ghvb", 4)
    assert "benchmarks/" in vp.reason
    assert "flow" in flow.reason
    before = flow_pipe.scheduler
    run = fs.speed_up(flow_pipe, guidance=2.0, steps=3)
    flow_pipe(**{**sd3_inputs(), "output_type": "latent", "guidance_scale": 2.0})
    assert run.summary().rounds == 3
    run.remove()
    assert flow_pipe.scheduler is before
    check_refused(lambda: fs.recommend(pipe, guidance=-1), "guidance = -1")
    check_refused(lambda: fs.recommend(pipe, steps=0), "steps = 0")


FAMILIES = {
    "stable_diffusion": "ghvb",  # 7.5 by itself, in few steps
    "stable_diffusion_xl": "hb-dpmpp-2m",
    "stable_diffusion_3": "ghvb",
    "flux": "ghvb",
    "qwen_image": "ghvb",
    "wan": "ghvb",
    "pixart_alpha": "hb-dpmpp-2m",
    "sana": "ghvb",
    "cosmos": "ghvb",
    "bria": None,
    "cosmos_2": None,
    "lcm": None,
}
"""The solver recommended for pipelines of the zoo; None where they keep their own."""


SCALES = {"stable_diffusion_3": 7.0, "flux": 1.0, "qwen_image": 4.0, "wan": 5.0, "sana": 4.5}
"""Their own guidance; Flux's network is told it."""


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_recommended_works_as_printed(name: str) -> None:
    entry = ZOO["stable_diffusion" if name == "lcm" else name]
    pipe = entry.build()
    if name == "lcm":
        pipe.scheduler = diffusers.LCMScheduler.from_config(pipe.scheduler.config)
    own, recipe = pipe.scheduler, fs.recommend(pipe, steps=entry.steps)
    assert recipe.solver == FAMILIES[name]
    if "stable_guidance" in recipe.options:  # that of the pipeline's calls, where it combines branches
        assert recipe.options["stable_guidance"] == SCALES[name]
    assert ("kept" if recipe.solver is None else "benchmarks/") in recipe.reason
    names: dict[str, Any] = {"fastsample": fs, "pipe": pipe}
    exec(str(recipe), names)
    assert (pipe.scheduler is own) == (recipe.solver is None)
    assert torch.isfinite(entry.sample(pipe)).all()
    names["run"].remove()
    assert pipe.scheduler is own


@pytest.mark.parametrize("asked", [{"guidance": math.nan}, {"guidance": True}, {"guidance": "3"}, {"steps": True}])
def test_what_cannot_be_recommended_for_is_one_line(asked: dict[str, Any], pipe: Any) -> None:
    check_refused(lambda: fs.recommend(pipe, **asked), next(iter(asked)))
    for wrong in (None, object(), "a model", pipe.unet, type(pipe)):
        check_refused(lambda: fs.speed_up(wrong), "pipe")  # noqa: B023


def test_a_distilled_model_keeps_its_scheduler(pipe: Any) -> None:
    own = pipe.config
    pipe._internal_dict = type(own)({**own, "_name_or_path": "stabilityai/sd-turbo"})
    try:
        recipe = fs.recommend(pipe)
    finally:
        pipe._internal_dict = own
    assert recipe.solver is None
    assert "turbo" in recipe.reason


def test_a_wrong_recipe_ends_the_command(run: Any, tmp_path: Path) -> None:
    """In one line with status 2, before any evaluation: files that hold none, and what a pipeline cannot carry."""
    whole, file = Recipe("ghvb", steps=4).to_json(), str(tmp_path / "fast.json")
    for text, words, more in (
        (whole[:-9], "not JSON", []),
        ("\xff\xfe", "not JSON", []),
        (whole.replace('"steps"', '"step"'), "['step']", []),
        ((BUNDLED / "flow_text_to_image.json").read_text(), "a preset", []),
        (whole.replace("ghvb", "ghbv"), "ghbv", []),
        (whole, "--grid", ["--grid", "beta"]),
        (whole, "--tgate", ["--tgate", "2"]),
        (whole.replace('"options": {}', '"options": {"betta": 1}'), "betta", []),
        (Recipe(tgate=fs.TGate(3)).to_json(), "joint attention", ["--model", "flow_text_to_image"]),
    ):
        Path(file).write_text(text)
        for command in ("bench", "sample"):
            status, out, err = run(command, "--solver", file, *more)
            assert (status, out) == (2, "")
            assert words in err
            assert err.count("\n") == 1
    status, _, err = run("sample", "--solver", str(tmp_path / "absent.json"))
    assert (status, "No such file" in err) == (2, True)
