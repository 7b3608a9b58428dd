"""A Picard consistency model: the denoiser's own image at a tolerance, a near one within a bound of rounds."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from refusal import check_refused
from torch import Tensor
from zoo import ZOO

import fastsample as fs
from fastsample.demo import bundled
from fastsample.pipelines.counting import count
from fastsample.pipelines.parallel.consistency import FILE, NORMS, SLOPES, Consistency, changed_names, norms

STEPS = 10


@pytest.fixture(scope="module")
def script() -> Any:
    """`scripts/train_picard.py` as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[1] / "scripts")
        import train_picard

        return train_picard


@pytest.fixture(scope="module")
def pipe() -> Any:
    pipe: Any = bundled.load_pipeline()
    pipe.scheduler = fs.DDIMScheduler.from_config(pipe.scheduler.config)
    return pipe


@pytest.fixture(scope="module")
def state(script: Any, pipe: Any) -> dict[str, Tensor]:
    """Some changes of the bundled model, over two sweeps."""
    generator = torch.Generator().manual_seed(0)
    made = script.new_state(pipe.unet, 4, generator)
    return {name: value + 0.02 * torch.randn(value.shape, generator=generator) for name, value in made.items()}


def latents(call: Callable[..., Any], steps: int = STEPS, **options: Any) -> Tensor:
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    prompts = [
        "a small red circle at the left on a white background",
        "a large blue cross at the top on a grey background",
    ]
    result: Tensor = call(
        prompts, num_inference_steps=steps, guidance_scale=3.0, generator=generators, output_type="latent", **options
    ).images
    return result


@pytest.fixture(scope="module")
def exact(pipe: Any) -> Tensor:
    return latents(pipe)


def close(found: Tensor, expected: Tensor) -> None:
    assert float((found - expected).abs().max()) <= 3e-5 * float(expected.abs().max())


@pytest.mark.parametrize(
    ("iteration", "window", "sweeps"),
    [("secant", "auto", None), ("picard", 4, 1), ("anderson", None, 3), ("replay", 3, 2)],
)
def test_tolerance_0_is_the_sequential_image(
    pipe: Any, state: Any, exact: Tensor, iteration: str, window: Any, sweeps: Any
) -> None:
    """No sample is final while the consistency model has a share, and each sweep after makes one so."""
    options: Any = {"consistency": state, "consistency_sweeps": sweeps}
    sampler = fs.ParallelSampler(pipe, iteration=iteration, window=window, tolerance=0.0, **options)
    close(latents(sampler), exact)
    (report,) = sampler.run.reports
    held = sweeps or 2
    assert not sampler.run.fallback
    assert not sampler.run.stopped
    assert all(start == (0, 0) for start in report.starts[:held])
    assert all(start == (index, index) for index, start in enumerate(report.starts[held:-1], 1))
    assert sampler.run.rounds <= STEPS + held


def test_the_bundled_model_is_near_in_few_rounds_and_exact_at_tolerance_0(pipe: Any, exact: Tensor) -> None:
    tuned: Any = {"consistency": bundled.load_consistency()}
    close(latents(fs.ParallelSampler(pipe, tolerance=0.0, **tuned)), exact)
    exact_25 = latents(pipe, 25)
    for rounds, bound in ((2, 0.8), (3, 0.4)):
        near, plain = (
            (latents(fs.ParallelSampler(pipe, rounds=rounds, **options), 25) - exact_25).square().mean().sqrt()
            for options in (tuned, {})
        )
        assert near < bound * plain


@pytest.mark.parametrize("iteration", ["secant", "picard", "anderson"])
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("tuned", [True, False])
def test_rounds_end_a_call_with_what_it_has(pipe: Any, state: Any, iteration: str, window: Any, tuned: bool) -> None:
    """With all steps at once, the image is the guess that a longer call has after as many rounds."""
    guesses: list[Tensor] = []
    options: Any = {"iteration": iteration, "window": window, "consistency": state if tuned else None}
    latents(
        fs.ParallelSampler(
            pipe,
            **options,
            rounds=4,
            tolerance=0.0,
            on_sweep=lambda each: guesses.append(each.trajectory[-1].clone()),
        )
    )
    told: list[int] = []
    sampler = fs.ParallelSampler(pipe, **options, rounds=3, tolerance=0.0)
    shown = latents(sampler, callback_on_step_end=lambda pipe, step, timestep, tensors: told.append(step) or {})
    assert (sampler.run.rounds, sampler.run.stopped, sampler.run.fallback) == (3, True, "")
    assert told == list(range(STEPS))
    assert shown.isfinite().all()
    if window is None:
        torch.testing.assert_close(shown, guesses[1])


def test_a_call_that_settles_before_its_bound_is_not_stopped(pipe: Any, exact: Tensor) -> None:
    sampler = fs.ParallelSampler(pipe, rounds=STEPS, tolerance=0.0)
    close(latents(sampler), exact)
    assert (sampler.run.rounds, sampler.run.stopped) == (STEPS, False)
    sampler = fs.ParallelSampler(pipe, rounds=2)
    latents(sampler, steps=1)
    assert (sampler.run.rounds, sampler.run.stopped) == (1, False)


@pytest.mark.parametrize("name", ["stable_diffusion_xl", "flux"])
def test_a_whole_model_serves_other_pipelines(name: str) -> None:
    """A copy of the network with other weights: the pipeline's own image at tolerance 0, in two rounds another."""
    pipe = ZOO[name].build()
    (network,) = (part for key, part in pipe.components.items() if key in ("unet", "transformer"))
    other = copy.deepcopy(network)
    with torch.no_grad():
        for value in other.parameters():
            value.add_(0.05 * value.std() * torch.randn_like(value) if value.numel() > 1 else 0.1)
    torch.manual_seed(1)
    expected = ZOO[name].sample(pipe)
    found = {}
    for rounds in (None, 2):
        torch.manual_seed(1)
        sampler = fs.ParallelSampler(pipe, consistency=other, tolerance=0.0, rounds=rounds)
        found[rounds] = torch.as_tensor(ZOO[name].sample(sampler))
        assert not sampler.run.fallback
    close(found[None], torch.as_tensor(expected))
    assert sampler.run.rounds == 2
    assert not torch.equal(found[2], found[None])


def test_the_denoiser_is_left_alone_and_every_evaluation_is_counted(pipe: Any, state: Any, exact: Tensor) -> None:
    """Its weights stay to the bit, in a call and after, and other threads have them; hooks see the changed calls."""
    before = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    images: list[Tensor] = []
    sampler = fs.ParallelSampler(pipe, consistency=state, rounds=3)

    def elsewhere(sweep: Any) -> None:
        if not images:
            thread = threading.Thread(target=lambda: images.append(latents(pipe)))
            thread.start()
            thread.join()

    sampler.options["on_sweep"] = elsewhere
    with count(pipe, 2) as ledger:
        latents(sampler)
    assert ledger.forward_calls == 3
    assert ledger.rows == 4 * (1 + 2 * (STEPS - 1))
    close(images[0], exact)
    assert all(torch.equal(before[name], value) for name, value in pipe.unet.state_dict().items())
    close(latents(pipe), exact)


def test_a_guidance_cut_holds_in_its_sweeps_too(pipe: Any, state: Any) -> None:
    with fs.GuidanceCut(stop=0.5).apply(pipe), count(pipe, 2) as ledger:
        expected = latents(pipe)
        plain = ledger.rows
        sampler = fs.ParallelSampler(pipe, consistency=state, tolerance=0.0)
        close(latents(sampler), expected)
    assert ledger.forward_calls == STEPS + sampler.run.rounds
    with count(pipe, 2) as uncut:
        latents(fs.ParallelSampler(pipe, consistency=state, rounds=2))
    with fs.GuidanceCut(stop=0.5).apply(pipe), count(pipe, 2) as cut:
        latents(fs.ParallelSampler(pipe, consistency=state, rounds=2))
    assert cut.rows == plain < uncut.rows


def test_shares_fall_over_the_sweeps(pipe: Any, state: Any) -> None:
    for sweeps, shares in ((1, [1.0, 0.0]), (2, [1.0, 0.5, 0.0]), (4, [1.0, 0.75, 0.5, 0.25, 0.0, 0.0])):
        model = Consistency.of(state, pipe.unet, sweeps)
        assert [model.share(sweep) for sweep in range(len(shares))] == shares


def test_what_is_not_for_the_model_is_refused(pipe: Any, state: Any, tmp_path: Path) -> None:
    def given(source: Any, **options: Any) -> Callable[[], object]:
        return lambda: fs.ParallelSampler(pipe, consistency=source, **options)

    check_refused(given(tmp_path), FILE)
    check_refused(given(str(tmp_path / "nowhere")), "nowhere")
    (tmp_path / "broken.safetensors").write_text("no tensors")
    check_refused(given(tmp_path / "broken.safetensors"), "broken")
    check_refused(given(bundled.model_path() / "unet" / "diffusion_pytorch_model.safetensors"), "holds no changes")
    check_refused(given({}), "holds no changes")
    check_refused(given(3), "give a folder")
    check_refused(given(lambda: 3), "give a folder")
    check_refused(given(ZOO["stable_diffusion"].build().unet), "another kind of model")
    check_refused(given(pipe.vae), "another kind of model")
    check_refused(given({**state, "somewhere.change": torch.zeros(3)}), "no somewhere")
    name = next(key for key in state if key.endswith(".up"))
    check_refused(given({**state, name: torch.zeros(3, 4)}), "another model")
    check_refused(given({key: value for key, value in state.items() if key != name[:-3] + ".down"}), "another model")
    other = copy.deepcopy(pipe.unet)
    torch.nn.init.normal_(other.conv_in.weight)
    check_refused(given({**state, NORMS: norms(other, changed_names(state))}), "other norms")
    check_refused(given({**state, NORMS: torch.ones(3)}), "other norms")
    for sweeps in (0, 1.5, -1):
        check_refused(given(state, consistency_sweeps=sweeps), "consistency_sweeps")
    check_refused(given(None, consistency_sweeps=2), "without consistency")
    for rounds in (1, 0, -3, 2.5, True):
        check_refused(given(state, rounds=rounds), "rounds")
        check_refused(given(None, rounds=rounds), "rounds")
    check_refused(given(state, strides=(4, 2)), "strides")
    check_refused(given(state, window="all"), "window")
    two = ZOO["wan_2_2"].build()
    check_refused(lambda: fs.ParallelSampler(two, consistency=two.transformer), "one denoiser")
    check_refused(lambda: fs.ParallelSampler(two, rounds=3), "two denoisers")
    with fs.parallelise(pipe, consistency=state, rounds=2) as run:
        latents(pipe)
    assert (run.rounds, run.stopped) == (2, True)


def test_training_sweeps_as_a_call_does_and_goes_on_from_its_checkpoint(
    script: Any, pipe: Any, state: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = script.Guided(pipe.unet)
    steps = 5
    grid = script.Grid.of(pipe, steps, "cpu")
    x, text = script.Scenes.of(pipe, True, 1).draw(2)
    with torch.no_grad():
        exact = script.trajectories(network, grid, x, text)
        mine = list(script.rollout(network, network.deltas(state), exact, [1.0, 0.5, 0.0]))
    made: list[Tensor] = []
    sampler = fs.ParallelSampler(
        pipe,
        consistency=state | {SLOPES: torch.stack([grid.lam, mine[-1].slopes.flatten()])[:, 1:]},
        rounds=4,
        on_sweep=lambda own: made.append(own.trajectory.clone()),
    )
    embeds = {"prompt_embeds": text[1], "negative_prompt_embeds": text[0], "latents": x}
    options = {"num_inference_steps": steps, "guidance_scale": script.GUIDANCE, "output_type": "latent", **embeds}
    close(pipe(**options).images, exact.states[-1])
    sampler(**options)
    for ours, theirs in zip(mine, made, strict=True):
        torch.testing.assert_close(ours.states[1:], theirs, rtol=0, atol=1e-4)

    monkeypatch.setattr(script, "STEPS", (4,))
    monkeypatch.setattr(script, "POOL", 1)
    monkeypatch.setattr(script, "HELD_OUT", 2)
    arguments = ["train", "--out", str(tmp_path), "--rows", "4", "--rank", "4"]
    monkeypatch.setattr("sys.argv", ["train_picard.py", *arguments, "--steps", "2"])
    script.main()
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 2
    monkeypatch.setattr("sys.argv", ["train_picard.py", *arguments, "--steps", "3"])
    script.main()
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 3
    latents(fs.ParallelSampler(pipe, consistency=tmp_path, rounds=2), 4)
