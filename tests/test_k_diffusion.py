"""Our solvers as k-diffusion's sampler functions: the same numbers as its own, and the contract around them."""

from __future__ import annotations

import inspect
import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from peer_k_diffusion import k_diffusion_sampling
from torch import Tensor

import fastsample as fs
from fastsample.interop.k_diffusion import sampler
from fastsample.solvers import available

MIXTURE = torch.randn(3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
STD = 0.4


def karras(steps: int, low: float = 0.03, high: float = 14.6, rho: float = 7.0) -> Tensor:
    """k-diffusion's sigmas (Karras et al., eq. 5), float64, with the 0 at the end."""
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    sigmas = (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    return torch.cat([sigmas, sigmas.new_zeros(1)])


GRIDS = {
    "karras 4": karras(4),
    "karras 12": karras(12),
    "from 80": karras(7, 0.002, 80.0),
    "not to 0": karras(12)[:-1],
    "split": karras(12)[5:],
    "uneven": torch.tensor([14.6, 14, 9, 8.8, 2, 1.9, 0.3, 0.29, 0.05, 0], dtype=torch.float64),
}


class Denoiser:
    """The data prediction of three Gaussians; x = data + sigma noise, on flow (1 - sigma) data + sigma noise."""

    def __init__(self, flow: bool = False) -> None:
        self.flow, self.sigmas, self.extra = flow, [], []

    def __call__(self, x: Tensor, sigma: Tensor, **extra: Any) -> Tensor:
        assert sigma.shape == (len(x),)
        self.sigmas.append(float(sigma[0]))
        self.extra.append(extra)
        s = sigma.double()[:, None]
        a = 1 - s if self.flow else torch.ones_like(s)
        wide = x.double()[:, None]
        variance = (a * STD) ** 2 + s**2
        away = wide - a[:, None] * MIXTURE
        weights = torch.softmax(-(away**2).sum(-1) / (2 * variance), 1)
        means = MIXTURE + (a * STD**2 / variance)[..., None] * away
        return (weights[..., None] * means).sum(1).to(x.dtype)


def start(sigmas: Tensor, dtype: torch.dtype = torch.float64, rows: int = 3) -> Tensor:
    noise = torch.randn(rows, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return (noise * sigmas[0]).to(dtype)


def smooth_noise(sigma: Tensor, following: Tensor) -> Tensor:
    """Some noise for a step, which hardly changes where the last digits of its ends do."""
    places = torch.arange(24, dtype=torch.float64).view(3, 8)
    return math.sqrt(2) * torch.sin(37 * places + 11 * float(sigma) ** 0.5 + 5 * float(following) ** 0.5)


STOCHASTIC = (
    *("euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_2m_sde", "dpmpp_3m_sde", "dpmpp_sde"),
)
PARITY = ("euler", "heun", "lms", "dpm_2", "dpmpp_2m", *STOCHASTIC)


@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("name", PARITY)
def test_the_numbers_are_those_of_k_diffusion(name: str, dtype: torch.dtype, within: float) -> None:
    peer = getattr(k_diffusion_sampling(), f"sample_{name}")
    options: dict[str, Any] = (
        {"noise_sampler": lambda *ends: smooth_noise(*ends).to(dtype)} if name in STOCHASTIC else {}
    )
    for sigmas in GRIDS.values():
        x = start(sigmas, dtype)
        want = peer(Denoiser(), x, sigmas.to(dtype), disable=True, **options)
        got = sampler(name)(Denoiser(), x, sigmas.to(dtype), disable=True, **options)
        assert got.dtype == dtype
        # theirs takes phi_3 by subtraction, in float32 too
        off = 5 * within if name == "dpmpp_3m_sde" and dtype == torch.float32 else within
        torch.testing.assert_close(got, want, rtol=off, atol=off)


@pytest.mark.parametrize(
    ("name", "option"), [("euler_ancestral", "eta"), ("dpmpp_2m_sde", "eta"), ("dpmpp_sde", "s_noise")]
)
def test_options_mean_what_they_mean_there(name: str, option: str) -> None:
    peer = getattr(k_diffusion_sampling(), f"sample_{name}")
    sigmas = karras(9)
    want = peer(Denoiser(), start(sigmas), sigmas, disable=True, noise_sampler=smooth_noise, **{option: 0.6})
    for got in (
        sampler(name, **{option: 0.6})(Denoiser(), start(sigmas), sigmas, disable=True, noise_sampler=smooth_noise),
        sampler(name)(Denoiser(), start(sigmas), sigmas, disable=True, noise_sampler=smooth_noise, **{option: 0.6}),
    ):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def test_the_callback_is_called_as_there() -> None:
    module = k_diffusion_sampling()
    for name in ("euler", "heun", "dpm_2", "dpmpp_2m", "dpmpp_sde"):
        seen: list[list[dict[str, Any]]] = []
        for function in (getattr(module, f"sample_{name}"), sampler(name)):
            calls: list[dict[str, Any]] = []
            options = {"noise_sampler": smooth_noise} if name == "dpmpp_sde" else {}
            function(Denoiser(), start(karras(5)), karras(5), callback=calls.append, disable=True, **options)
            seen.append(calls)
        assert len(seen[0]) == len(seen[1]) == 5
        for theirs, ours in zip(*seen, strict=True):
            assert set(ours) >= {"x", "i", "sigma", "sigma_hat", "denoised"}
            for key in ("x", "sigma", "sigma_hat", "denoised"):
                torch.testing.assert_close(ours[key], theirs[key], rtol=1e-9, atol=1e-9)
            assert ours["i"] == theirs["i"]


# --- written out: what holds without the package ---------------------------------------------------------


def by_slopes(model: Any, x: Tensor, sigmas: Tensor, second: str | None = None) -> Tensor:
    """Euler's method for x' = (x - D) / sigma, or with a second slope Heun's or the midpoint rule in log sigma."""
    for s, t in pairwise(sigmas):
        ones = torch.ones(len(x), dtype=x.dtype)
        d = (x - model(x, s * ones)) / s
        if second is None or t == 0:
            x = x + (t - s) * d
        elif second == "heun":
            there = x + (t - s) * d
            x = x + (t - s) * (d + (there - model(there, t * ones)) / t) / 2
        else:
            middle = (s * t) ** 0.5
            there = x + (middle - s) * d
            x = x + (t - s) * (there - model(there, middle * ones)) / middle
    return x


def two_multistep(model: Any, x: Tensor, sigmas: Tensor, noise: Any = None) -> Tensor:
    """DPM-Solver++ 2M (arXiv:2211.01095, alg. 2) and, with noise, its SDE form, in x = data + sigma noise."""
    eta, old, h_last = float(noise is not None), None, 0.0
    for s, t in pairwise(sigmas):
        denoised = model(x, s * torch.ones(len(x), dtype=x.dtype))
        if t == 0:
            x = denoised
            break
        h = float(torch.log(s / t))
        k = -math.expm1(-(1 + eta) * h)
        x = t / s * math.exp(-eta * h) * x + k * denoised
        if old is not None:
            x = x + k * h / (2 * h_last) * (denoised - old)
        if noise is not None:
            x = x + t * math.sqrt(-math.expm1(-2 * h)) * noise(s, t)
        old, h_last = denoised, h
    return x


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(("name", "second"), [("euler", None), ("heun", "heun"), ("dpm_2", "midpoint")])
def test_slope_methods_written_out_on_ve_and_flow(name: str, second: str | None, grid: str) -> None:
    """On flow models as well, where ComfyUI runs the same lines."""
    sigmas = GRIDS[grid]
    for flow in (False, True):
        levels = sigmas / sigmas[0] if flow else sigmas
        want = by_slopes(Denoiser(flow), start(levels), levels, second)
        got = sampler(name, flow=flow)(Denoiser(flow), start(levels), levels, disable=True)
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["DPM++ 2M", "k_dpmpp_2m", "sample_dpmpp_2m", "Heun", "heun"])
def test_a_name_means_the_same_however_it_is_spelt(name: str) -> None:
    levels = karras(6) / 14.6
    plain = "dpmpp_2m" if "2" in name else "heun"
    got, want = (
        sampler(own, flow=True)(Denoiser(True), start(levels), levels, disable=True) for own in (name, plain)
    )
    assert torch.equal(got, want)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("flow", [False, True], ids=["ve", "flow"])
def test_2m_written_out(grid: str, flow: bool) -> None:
    levels = GRIDS[grid] / (GRIDS[grid][0] if flow else 1)
    want = two_multistep(Denoiser(flow), start(levels), levels)
    got = sampler("dpmpp_2m", flow=flow)(Denoiser(flow), start(levels), levels, disable=True)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    if not flow:
        want = two_multistep(Denoiser(), start(levels), levels, smooth_noise)
        got = sampler("dpmpp_2m_sde")(Denoiser(), start(levels), levels, disable=True, noise_sampler=smooth_noise)
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


# --- our solvers, all of them ----------------------------------------------------------------------------


@pytest.mark.parametrize("flow", [False, True], ids=["ve", "flow"])
@pytest.mark.parametrize("name", available())
def test_every_solver_lands_on_the_data_from_any_sigmas(name: str, flow: bool) -> None:
    solver = available()[name]
    if not solver.flow:
        pytest.skip("needs a variance-preserving model")
    clean = torch.tensor([[1.5, -0.5, 0.25]], dtype=torch.float64)
    sigmas = karras(7) / (14.6 if flow else 1)

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        return clean.expand_as(x)

    calls: list[dict[str, Any]] = []
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * sigmas[0]
    got = sampler(name, flow=flow)(model, x, sigmas, callback=calls.append, disable=True)
    torch.testing.assert_close(got, clean.expand_as(x), rtol=1e-9, atol=1e-9)
    assert [call["i"] for call in calls] == list(range(7))


def test_runs_of_one_path_agree_at_any_number_of_steps_and_split() -> None:
    def end(steps: int, **extra: Any) -> Tensor:
        sigmas = karras(steps).float()
        return sampler("dpmpp_2m_sde")(
            Denoiser(), start(sigmas, torch.float32, 64), sigmas, {"seed": 5, **extra}, disable=True
        )

    few, many = end(20), end(80)
    assert float(torch.corrcoef(torch.stack([few.flatten(), many.flatten()]))[0, 1]) > 0.9
    fresh = [
        sampler("dpmpp_2m_sde", noise="independent")(Denoiser(), start(karras(n), rows=64), karras(n), disable=True)
        for n in (20, 80)
    ]
    assert float(torch.corrcoef(torch.stack([one.flatten() for one in fresh]))[0, 1]) < 0.7
    sigmas, one_step = karras(12), sampler("dpmpp-1-sde")
    whole = one_step(Denoiser(), start(sigmas), sigmas, {"seed": 7}, disable=True)
    half = one_step(Denoiser(), start(sigmas), sigmas[:6], {"seed": 7}, disable=True)
    torch.testing.assert_close(one_step(Denoiser(), half, sigmas[5:], {"seed": 7}, disable=True), whole)


def test_the_model_gets_what_the_caller_gave_and_the_noise_real_sigmas() -> None:
    model, asked = Denoiser(), []

    def noise(sigma: Tensor, following: Tensor) -> Tensor:
        asked.append((float(sigma), float(following)))
        return torch.zeros(3, 8, dtype=torch.float64)

    sigmas = karras(3)
    sampler("dpmpp_sde")(model, start(sigmas), sigmas, {"cond": 4, "seed": 1}, noise_sampler=noise, disable=True)
    assert all(extra == {"cond": 4, "seed": 1} for extra in model.extra)
    s = sigmas.tolist()
    want = [(s[0], (s[0] * s[1]) ** 0.5), (s[0], s[1]), (s[1], (s[1] * s[2]) ** 0.5), (s[1], s[2])]
    assert asked == [pytest.approx(pair) for pair in want]


@pytest.mark.parametrize("length", [0, 1])
def test_without_a_step_x_comes_back(length: int) -> None:
    x = torch.ones(1, 3)
    assert sampler("dpmpp_2m")(None, x, torch.ones(length), disable=True) is x


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: sampler("dpmpp_2n"), r"name = 'dpmpp_2n' is unknown: did you mean .*dpmpp_2m"),
        (lambda: sampler("DPM++ 2M Karras"), r"says a schedule.*use the sampler alone"),
        (lambda: sampler("dpm_fast"), r"lays out its own steps"),
        (lambda: sampler("dpmpp_2m", eta=1.0), r"option eta = 1.0 is unknown to solver 'dpmpp-2m'"),
        (lambda: sampler("euler", eta=3.0), r"eta = 3.0"),
        (lambda: sampler("euler", noise="pink"), r"noise = 'pink'"),
        (lambda: sampler("euler", s_noise=-1), r"s_noise = -1"),
        (lambda: sampler("euler")(None, torch.ones(1, 2), torch.tensor([0.0, 1.0, 2.0])), r"sigmas = .*must fall"),
        (lambda: sampler("euler")(None, torch.ones(1, 2), torch.tensor([2.0, 2.0, 0.0])), r"sigmas = .*must fall"),
        (lambda: sampler("euler")(None, torch.ones(1, 2), torch.tensor([math.inf, 1.0])), r"give finite"),
        (lambda: sampler("euler", flow=True)(None, torch.ones(1, 2), torch.tensor([14.0, 1.0])), r"at most 1"),
    ],
)
def test_what_is_refused_is_refused_in_one_line_before_the_model_runs(call: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_the_signature_names_the_options() -> None:
    parameters = inspect.signature(sampler("dpmpp_2m_sde")).parameters
    assert list(parameters)[:6] == ["model", "x", "sigmas", "extra_args", "callback", "disable"]
    assert {"noise_sampler", "eta", "solver_type", "s_noise"} <= set(parameters)
    assert parameters["solver_type"].default == "midpoint"


def test_half_precision_and_gradients_stay_outside() -> None:
    sigmas = karras(5).float()
    x = start(sigmas, torch.bfloat16).requires_grad_()
    got = sampler("dpmpp_2m")(Denoiser(), x, sigmas, disable=True)
    assert got.dtype == torch.bfloat16
    assert not got.requires_grad


def test_the_latents_of_a_pipeline_are_those_of_our_scheduler() -> None:
    """A VP model by both doors: x / alpha and the data prediction here, x and the noise there."""
    schedule = fs.NoiseSchedule.from_config(
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    )
    times = fs.time_grid("karras", schedule, 8)
    nodes = schedule.nodes(times)

    def noise(x: Tensor, t: float) -> Tensor:
        return torch.tanh(x + t / 1000)

    x = torch.randn(2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    want = fs.integrate(fs.build_table("dpmpp-2m", schedule, times), noise, x)
    by_sigma = {node.sbar: node for node in nodes}

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        node = by_sigma[min(by_sigma, key=lambda level: abs(level - float(sigma[0])))]
        return x - node.sbar * noise(x * node.alpha, node.time)

    sigmas = torch.tensor([node.sbar for node in nodes], dtype=torch.float64)
    got = sampler("dpmpp-2m", noise="independent")(denoise, x / nodes[0].alpha, sigmas, disable=True)
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)  # the order of the last steps is lowered there alone
