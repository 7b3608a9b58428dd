"""Metrics against closed forms; runs that resume; the whole benchmark on a tiny pipeline."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import diffusers
import numpy as np
import pipelines
import pytest
import torch

import fastsample
from fastsample.bench import metrics, report
from fastsample.bench.cases import Arm, make_cases, parse_arm
from fastsample.bench.mixture import MixtureProblem
from fastsample.bench.record import Record
from fastsample.bench.reference import converged
from fastsample.bench.runner import Bench
from fastsample.demo.mixture import GaussianMixture
from fastsample.names.options import parse_value
from fastsample.names.peers import peer_class
from fastsample.pipelines.drawing import Drawing

PROMPTS = ["a small red circle", "a red circle"]


@pytest.fixture(autouse=True)
def cache(references: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTSAMPLE_CACHE", str(references))


def test_frechet_distance_of_gaussians() -> None:
    """|mean difference|^2 + tr(A + B - 2 sqrt(AB)), which for diagonal covariances is a sum over axes."""
    rng = np.random.default_rng(0)
    base = rng.normal(size=(4000, 3))
    base = (base - base.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(base, rowvar=False))).T  # exactly whitened
    a, b = base * [1.0, 2.0, 0.5], base * [3.0, 2.0, 1.0] + [0.0, 1.0, -2.0]
    want = 5.0 + (3 - 1) ** 2 + 0.0 + (1 - 0.5) ** 2
    assert metrics.frechet_distance(a, b) == pytest.approx(want, rel=1e-4)
    assert metrics.frechet_distance(a, a) == pytest.approx(0, abs=1e-5)
    assert metrics.frechet_distance(a * math.nan, b) == math.inf
    with pytest.raises(ValueError, match="at least 2"):
        metrics.frechet_distance(a[:1], b)


def test_rms_and_psnr() -> None:
    a, b = torch.zeros(2, 3), torch.full((2, 3), 0.1)
    assert metrics.rms(a, b) == pytest.approx(0.1)
    assert metrics.psnr(a, b) == pytest.approx(20)
    assert metrics.psnr(a, a) == math.inf
    assert metrics.rms(a, b * math.nan) == math.inf


def make_bench(tmp_path: Path, resume: bool = True) -> Bench:
    pipe = pipelines.stable_diffusion()
    return Bench(pipe, PROMPTS, Record(tmp_path / "results.jsonl", resume=resume), batch=2)


def test_a_benchmark_counts_measures_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("FASTSAMPLE_CACHE", str(cache))
    arms = [parse_arm("ghvb:order=3,beta=0.9"), parse_arm("dpmpp-2m"), parse_arm("DDIM", peer=True)]
    cases = make_cases(arms, [3, 12], [1.0, 4.0], [0])
    results = list(make_bench(tmp_path).run(cases))
    assert len(results) == len(cases) == 12
    for result in results:
        assert result["nfe"] == result["steps"] * (2 if result["guidance"] > 1 else 1)
        assert result["finite"]
        assert result["seconds"] > 0
        assert result["environment"]["torch"] == torch.__version__
    assert len(list(cache.glob("converged-*.safetensors"))) == 2  # one a guidance scale
    by_arm = {(r["arm"], r["steps"], r["guidance"]): r["latent_rms"] for r in results}
    assert by_arm["dpmpp-2m", 12, 1.0] < by_arm["dpmpp-2m", 3, 1.0]  # more steps, closer to converged

    file = tmp_path / "results.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines[:7]) + "\n" + lines[7][:40])  # killed while writing the eighth
    again = make_bench(tmp_path)
    assert len(again.record.results) == 7
    assert len(list(again.run(cases))) == 5
    keys = [json.loads(line)["key"] for line in file.read_text().splitlines()]
    assert sorted(keys) == sorted(again._key(case) for case in cases)
    other = make_bench(tmp_path)
    other.prompts = PROMPTS[:1]
    other.__post_init__()
    assert all(other.result(case) is None for case in cases)  # other prompts, other results
    other.prompts, threads = PROMPTS, torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        other.__post_init__()
        assert all(other.result(case) is None for case in cases)  # other threads, other seconds
    finally:
        torch.set_num_threads(threads)
    for part in (other.pipe.unet, other.pipe.text_encoder, other.pipe.vae):
        weight = next(part.parameters()).data.view(-1)
        weight[0] += 1
        other.__post_init__()
        assert all(other.result(case) is None for case in cases)  # other weights
        weight[0] -= 1
    assert len(make_bench(tmp_path, resume=False).record.results) == 0


def test_a_reference_that_a_crash_has_cut_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "converged.safetensors"
    drawn = Drawing(torch.ones(1, 4, 2, 2), torch.zeros(1, 3, 4, 4))
    converged(path, {}, lambda scheduler, steps: drawn)
    whole = path.read_bytes()
    for size in (0, 5, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert converged(path, {}, lambda scheduler, steps: drawn) is drawn
        assert path.read_bytes() == whole


def test_a_recipe_is_an_arm(tmp_path: Path) -> None:
    """It runs at its own steps, costs what its run says, and is not mixed up with another of the same file's name."""
    parts = {"guidance_cut": fastsample.GuidanceCut(0, 2), "parallel": {"tolerance": 0.0, "window": None}}
    recipe = fastsample.Recipe("ghvb", "trailing", steps=4, options={"order": 2}, **parts)
    recipe.save(path := tmp_path / "fast.json")
    arms = [parse_arm(str(path)), parse_arm("ghvb:order=2,grid=trailing")]
    cases = make_cases(arms, [3], [4.0], [0])
    assert [(case.arm, case.steps) for case in cases] == [(arms[1], 3), (arms[0], 4)]
    bench = make_bench(tmp_path)
    plain, cut = bench.run([*cases[:1], *cases[1:]])
    assert "dropped" not in plain
    with recipe.apply(pipe := pipelines.stable_diffusion()) as run:
        noise = [torch.Generator().manual_seed(1_000_003 + row) for row in range(2)]
        pipe(PROMPTS, guidance_scale=4.0, generator=noise)
    summary = run.summary()
    assert (cut["nfe"] * 2, cut["dropped"] * 2, cut["rounds"]) == (
        summary.evaluations,
        summary.dropped,
        summary.rounds,
    )
    assert cut["dropped"] >= 2
    assert "dropped" in report.rich_table(report.summarise([plain, cut]), "").columns[-2].header
    replace(recipe, steps=None).save(path)
    assert parse_arm(str(path)).label != arms[0].label
    assert [case.steps for case in make_cases([parse_arm(str(path))], [3, 4], [4.0], [0])] == [3, 4]


def test_the_same_case_gives_the_same_result(tmp_path: Path) -> None:
    cases = make_cases([parse_arm("dpmpp-2m-sde"), parse_arm("DPMSolverMultistep", peer=True)], [4], [3.0], [1])
    first = [result["latent_rms"] for result in make_bench(tmp_path / "a").run(cases)]
    second = [result["latent_rms"] for result in make_bench(tmp_path / "b").run(cases)]
    assert first == second


def test_an_equal_peer_measures_equal(tmp_path: Path) -> None:
    arms = [parse_arm("dpmpp-2m"), parse_arm("DPMSolverMultistep", peer=True)]
    ours, theirs = make_bench(tmp_path).run(make_cases(arms, [6], [3.0], [0]))
    assert ours["latent_rms"] == pytest.approx(theirs["latent_rms"], rel=1e-2)


def test_a_diverged_run_is_recorded_not_raised(tmp_path: Path) -> None:
    bench = make_bench(tmp_path)
    list(bench.run(make_cases([parse_arm("ddim")], [2], [2.0], [0])))  # a finite reference is on disk

    class Broken(Arm):
        def scheduler(self, config):  # type: ignore[no-untyped-def]
            scheduler = super().scheduler(config)
            step = scheduler.step
            scheduler.step = lambda *args, **kwargs: tuple(x * math.nan for x in step(*args, **kwargs))
            return scheduler

    (result,) = bench.run(make_cases([Broken("ddim", (("eta", 0.0),))], [2], [2.0], [0]))
    assert result["finite"] is False
    assert result["latent_rms"] is None  # JSON has no inf
    assert "diverged" in report.markdown(report.summarise([result]))


def test_reports_show_mean_and_spread(tmp_path: Path) -> None:
    results = list(make_bench(tmp_path).run(make_cases([parse_arm("ddim")], [2, 4], [1.0], [0, 1])))
    rows = report.summarise(results)
    assert [(row.steps, row.seeds) for row in rows] == [(2, 2), (4, 2)]
    want = np.mean([r["latent_rms"] for r in results if r["steps"] == 2])
    assert rows[0].metrics["latent_rms"] == (pytest.approx(want), pytest.approx(rows[0].metrics["latent_rms"][1]))
    assert "±" in report.markdown(rows)
    assert len(report.csv_text(rows).splitlines()) == 3
    assert report.rich_table(rows, "title").row_count == 2

    from fastsample.bench import grids, plots

    plots.pareto(rows, tmp_path / "pareto.png")
    grids.image_grid({"ddim": torch.rand(2, 3, 8, 8)}, tmp_path / "images.png", PROMPTS)
    assert (tmp_path / "pareto.png").stat().st_size > 1000
    assert (tmp_path / "images.png").stat().st_size > 1000


def test_arms_from_text() -> None:
    arm = parse_arm("ghvb:order=3,beta=0.5", grid="karras")
    assert arm.options == (("order", 3), ("beta", 0.5))
    assert arm.label == "ghvb(order=3,beta=0.5) karras"
    assert peer_class("DDIM") is diffusers.DDIMScheduler
    assert peer_class("DDIMScheduler") is diffusers.DDIMScheduler
    assert [parse_value(text) for text in ("1", "1.5", "true", "none", "heun")] == [1, 1.5, True, None, "heun"]


def test_mixture_problem_counts_calls_and_runs_peers() -> None:
    problem = MixtureProblem(GaussianMixture.random(components=2, std=0.5), points=8)
    assert len(dict(problem.errors(Arm("dpmpp-2m"), 6))) == 4
    assert list(problem.errors(Arm("heun"), 5)) == []  # two calls a step
    assert len(dict(problem.errors(Arm("heun"), 6))) == 4
    peers = dict(problem.errors(Arm("DPMSolverMultistep", peer=True), 12))
    ours = dict(problem.errors(Arm("dpmpp-2m"), 12))
    assert peers["linspace"] == pytest.approx(ours["linspace"], rel=0.2)  # theirs rounds the timesteps
    assert ours["linspace"] > dict(problem.errors(Arm("dpmpp-2m"), 48))["linspace"]
