"""Recipes: what composes with what, what a run reports, and that a pipeline is left as it was."""

from __future__ import annotations

import itertools
import threading
import warnings
from typing import Any

import pytest
import torch
from pipelines import quiet, sd3, sd3_inputs, stable_diffusion
from refusal import check_refused
from test_presets import entry, preset_of, table_on
from torch import Tensor

import fastsample as fs
from fastsample.pipelines.recipe import Recipe

CALL: dict[str, Any] = {"guidance_scale": 3.0, "output_type": "latent"}
STEPS = 6


@pytest.fixture(scope="module")
def pipe() -> Any:
    return quiet(stable_diffusion())


@pytest.fixture(scope="module")
def preset(pipe: Any) -> Any:
    config = dict(pipe.scheduler.config)
    return preset_of(config, entry(table_on(config, STEPS)))


def latents(pipe: Any, **changed: Any) -> Tensor:
    arguments = {**CALL, "generator": torch.Generator().manual_seed(0), **changed}
    images: Tensor = pipe("a red circle", **arguments).images
    return images


PARTS: dict[str, dict[str, Any]] = {
    "solver": {"solver": "ghvb", "grid": "trailing", "options": {"order": 2}},
    "preset": {},
    "guidance_cut": {"guidance_cut": fs.GuidanceCut(0, 3)},
    "tgate": {"tgate": fs.TGate(3)},
    "parallel": {"parallel": {"tolerance": 0.0}},
}
REFUSED = {frozenset({"tgate", "guidance_cut"}), frozenset({"tgate", "parallel"})}


@pytest.mark.parametrize("pair", list(itertools.combinations(PARTS, 2)), ids="+".join)
@pytest.mark.parametrize("module", ["plain", "compiled"])
def test_what_composes(pair: tuple[str, str], module: str, pipe: Any, preset: Any) -> None:
    """Each cell is what its parts are one by one, or refused with a reason."""
    parts: dict[str, Any] = {"steps": STEPS}
    for name in pair:
        parts |= PARTS[name]
    if "preset" in pair:
        parts["preset"] = preset
        parts.setdefault("solver", "dpmpp-2m")
    if frozenset(pair) in REFUSED:
        check_refused(lambda: Recipe(**parts), "tgate and")
        return
    recipe = Recipe(**parts)
    if module == "compiled":
        if "tgate" in pair or "parallel" in pair:
            pytest.skip("minutes of compiling")
        pipe.unet.compile(backend="eager")
    try:
        with recipe.apply(pipe) as run:
            got = latents(pipe)
            summary = run.summary()
        expected = _by_hand(pipe, recipe)
    finally:
        pipe.unet._compiled_call_impl = None
    assert torch.allclose(got, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    assert summary.calls == 1
    cut = "guidance_cut" in pair or "tgate" in pair
    assert (summary.dropped > 0) == cut
    assert summary.rounds <= STEPS + 1
    if "parallel" not in pair:
        assert summary.evaluations + summary.dropped == 2 * STEPS


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
    assert pipe.scheduler is before
    assert type(pipe).__name__ == "StableDiffusionPipeline"
    assert torch.equal(latents(pipe, num_inference_steps=4), plain)
    check_refused(lambda: Recipe(guidance_cut=fs.GuidanceCut(0, 2)).apply(object()), "no network")
    with fs.GuidanceCut(0, 3).apply(pipe):
        check_refused(lambda: Recipe("ghvb", guidance_cut=fs.GuidanceCut(0, 2)).apply(pipe), "cut already")
        assert pipe.scheduler is before
    assert torch.equal(latents(pipe, num_inference_steps=4), plain)


def test_a_call_may_say_its_own_steps(pipe: Any) -> None:
    with Recipe("ghvb", "trailing", steps=3).apply(pipe) as run:
        latents(pipe, num_inference_steps=5)
        assert run.summary().rounds == 5
        latents(pipe)
        assert run.summary().rounds == 8
        latents(pipe, num_inference_steps=None, timesteps=[900, 500])
        assert run.summary().rounds == 10


def test_every_thread_samples_by_it(pipe: Any) -> None:
    found: list[Tensor] = []
    with Recipe("ghvb", "trailing", steps=3).apply(pipe) as run:
        expected = latents(pipe)
        thread = threading.Thread(target=lambda: found.append(latents(pipe)))
        thread.start()
        thread.join()
        assert run.summary().calls == 2
    assert torch.equal(found[0], expected)


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


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"steps": 0}, "steps = 0"),
        ({"steps": 2.5}, "steps = 2.5"),
        ({"grid": "karras"}, "solver = None"),
        ({"preset": "absent.json"}, "no file"),
    ],
)
def test_wrong_recipes_are_refused(parts: dict[str, Any], words: str) -> None:
    check_refused(lambda: Recipe(**parts), words)


def test_wrong_parts_are_refused_when_applied(pipe: Any) -> None:
    before = pipe.scheduler
    for recipe, words in (
        (Recipe("ghbv"), "ghbv"),
        (Recipe("ghvb", "karas"), "karas"),
        (Recipe("ghvb", options={"betta": 1}), "betta"),
        (Recipe("ghvb", parallel={"iteration": "newton"}), "newton"),
    ):
        check_refused(lambda: recipe.apply(pipe), words)  # noqa: B023
        assert pipe.scheduler is before


def test_recommended_and_applied_in_one_line(pipe: Any) -> None:
    vp, flow_pipe = fs.recommend(pipe), quiet(sd3())
    flow = fs.recommend(flow_pipe, guidance=2.0, steps=4)
    assert (vp.solver, vp.grid) == ("hb-dpmpp-2m", "quadratic")
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


def test_a_distilled_model_keeps_its_scheduler(pipe: Any) -> None:
    own = pipe.config
    pipe._internal_dict = type(own)({**own, "_name_or_path": "stabilityai/sd-turbo"})
    try:
        recipe = fs.recommend(pipe)
    finally:
        pipe._internal_dict = own
    assert recipe.solver is None
    assert "turbo" in recipe.reason
