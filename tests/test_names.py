"""The names of AUTOMATIC1111 and ComfyUI."""

from __future__ import annotations

import diffusers
import pipelines
import pytest
import torch
from refusal import check_refused

import fastsample as fs
from fastsample.names.programs import A1111, COMFYUI, REFUSED, RES4LYF, SD_CPP
from fastsample.names.samplers import parse_sampler_name, sampler_names
from fastsample.schedules.grids import FIXED_GRIDS, grid_names
from fastsample.solvers import available
from fastsample.solvers.registry import plain
from fastsample.testing import exact_model, run_scheduler

SD = pipelines.SD_CONFIG


def test_every_name_means_a_solver_and_a_grid() -> None:
    for name in sampler_names():
        named = parse_sampler_name(name)
        assert named.solver in available()
        assert named.grid in grid_names()
        assert {**named.options, **named.on_flow}.keys() <= available()[named.solver].options.keys()


SAMPLERS = {**A1111, **COMFYUI, **SD_CPP, **RES4LYF}
# two names of one sampler are run once
DIFFERENT = {(sampler.solver, *sampler.options.items()): name for name, sampler in SAMPLERS.items()}.values()


@pytest.mark.parametrize("name", DIFFERENT)
def test_every_sampler_lands(name: str) -> None:
    """Names are k-diffusion's samplers: from noise onto the data that every prediction points at."""
    clean = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    schedule = fs.NoiseSchedule.from_config(SD)
    for steps in (1, 2, 3, 10):
        got = run_scheduler(fs.scheduler_from_name(name, SD), exact_model(clean, schedule), x, steps)
        torch.testing.assert_close(got, clean, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(
    ("name", "solver", "grid"),
    [
        ("DPM++ 2M SDE Karras", "dpmpp-2m-sde", "karras"),
        ("dpm++ 2m sde karras", "dpmpp-2m-sde", "karras"),
        ("DPM++ 2M", "dpmpp-2m", "karras"),
        ("dpmpp_2m", "dpmpp-2m", "normal"),
        ("dpmpp_2m_sde_gpu", "dpmpp-2m-sde", "normal"),
        ("k_euler", "euler", "normal"),
        ("dpmpp_2m sgm_uniform", "dpmpp-2m", "sgm-uniform"),
        ("DPM++ 2M SDE Heun Exponential", "dpmpp-2m-sde", "exponential"),
        ("Euler a", "euler", "normal"),
        ("UniPC", "unipc", "linspace"),
        ("DPM++ 2M Align Your Steps SDXL", "dpmpp-2m", "ays-sdxl"),
        ("DPM++ 2M Beta", "dpmpp-2m", "beta"),
        ("Euler Align Your Steps", "euler", "ays"),
        ("dpmpp_2m + karras", "dpmpp-2m", "karras"),
        ("euler/beta57", "euler", "beta57"),
        ("exponential/res_2s", "res-2s", "normal"),
        ("ghvb oss-flux", "ghvb", "oss-flux"),
        ("dpmpp_2m_sde_gpu simple", "dpmpp-2m-sde", "simple"),
        ("er_sde bong_tangent", "er-sde", "bong-tangent"),
        ("dpmpp_2m beta", "dpmpp-2m", "beta-time"),  # the programs lay it out in different things
    ],
)
def test_spellings(name: str, solver: str, grid: str) -> None:
    named = parse_sampler_name(name)
    assert (named.solver, named.grid) == (solver, grid)


def test_the_last_step_rules() -> None:
    """A1111 and ComfyUI leave out the sigma before the end for DPM2, and A1111 alone for DPM++ 3M SDE."""
    for name, discards in (("DPM2", True), ("dpm_2", True), ("DPM++ 3M SDE", True), ("dpmpp_3m_sde", False)):
        scheduler = fs.scheduler_from_name(name, SD)
        scheduler.set_timesteps(10)
        longer = fs.create_scheduler(scheduler.config.solver_name, SD, grid=scheduler.config.timestep_grid)
        longer.set_timesteps(11 if discards else 10)
        want = [node.sbar for node in longer._run.grid]
        want = [*want[:-2], want[-1]] if discards else want
        assert [node.sbar for node in scheduler._run.grid] == pytest.approx(want)
        assert len(scheduler._run.grid) == 11


def test_karras_2m_is_diffusers_own() -> None:
    """What diffusers documents as the equivalent of "DPM++ 2M Karras"."""
    theirs = diffusers.DPMSolverMultistepScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", use_karras_sigmas=True
    )
    ours = fs.scheduler_from_name("DPM++ 2M Karras", SD)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x)

    torch.testing.assert_close(
        run_scheduler(ours, model, x, 20), run_scheduler(theirs, model, x, 20), rtol=1e-4, atol=1e-4
    )


def test_options_override_the_names() -> None:
    scheduler = fs.scheduler_from_name("DPM++ 2M SDE", SD, eta=0.5)
    assert scheduler.config.solver_options == {"eta": 0.5}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("DPM++ 2N Karras", "did you mean"),
        ("", "is unknown"),
        (None, "is unknown"),
        ("DPM adaptive", "integrate_adaptive"),
        ("Restart", "goes back to noisier steps"),
        ("DDIM CFG++", "both branches of guidance"),
        ("euler_cfg_pp karras", "both branches of guidance"),
        ("res_5s", "use 'res_2s', 'res_3s' or 'res_3m'"),
        ("fully_implicit/gauss-legendre_2s", "implicit Runge-Kutta"),
        ("linear/rk4_4s", "Runge-Kutta tableau"),
        ("dpm++2mv2", "use 'dpm++2m'"),
        ("DPM++ 2M Karras Exponential", "a blend"),
        ("euler beta(1, 2, 3)", "the beta grid has a, b"),
        ("euler normal(3)", "the normal grid has no options"),
        ("euler(3)", "options in brackets are of a grid"),
        ("euler beta(-1, 2)", "give a positive number"),
        ("euler oss-flux", "laid out for flow-matching models"),
        ("foo bar", "give a sampler"),
    ],
)
def test_other_names_are_one_line(name: str, words: str) -> None:
    check_refused(lambda: fs.scheduler_from_name(name, SD), words)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("dmpp_2m", "dpmpp_2m"),
        ("DPM++ 2N Karras", "DPM++ 2M Karras"),
        ("eular a", "Euler a"),
        ("euler_ancestrall karas", "euler_ancestral Karras"),
        ("dpmpp_2m_karass", "dpmpp_2m Karras"),
        ("seeds", "seeds_2"),
        ("unipcc", "UniPC"),
        ("er_sdee bong_tangant", "er_sde Bong Tangent"),
    ],
)
def test_the_first_name_suggested_is_the_one_meant(name: str, meant: str) -> None:
    with pytest.raises(ValueError, match="did you mean") as caught:
        fs.scheduler_from_name(name, SD)
    assert f"did you mean {meant!r}" in str(caught.value)


def test_brackets_hold_the_options_of_a_grid() -> None:
    for name, grid, options in (
        ("euler beta(0.5, 0.7)", "beta", {"a": 0.5, "b": 0.7}),
        ("dpmpp_2m beta(b=0.9)", "beta-time", {"b": 0.9}),
        ("DPM++ 2M Karras(rho=5)", "karras", {"rho": 5}),
        ("lms polyexponential(2)", "exponential", {"rho": 2}),
    ):
        scheduler = fs.scheduler_from_name(name, SD)
        assert scheduler.config.timestep_grid == grid
        assert scheduler.config.grid_options == options
        plain = fs.create_scheduler(scheduler.config.solver_name, SD, grid=grid)
        for each in (scheduler, plain):
            each.set_timesteps(7)
        assert not torch.equal(scheduler.sigmas, plain.sigmas)


# Read off the programs: ComfyUI (0.3.64 and newer), AUTOMATIC1111 and Forge, stable-diffusion.cpp, RES4LYF.
PROGRAMS = {
    "comfyui": (
        """euler, euler_cfg_pp, euler_ancestral, euler_ancestral_cfg_pp, heun, heunpp2, exp_heun_2_x0,
        exp_heun_2_x0_sde, dpm_2, dpm_2_ancestral, lms, dpm_fast, dpm_adaptive, dpmpp_2s_ancestral,
        dpmpp_2s_ancestral_cfg_pp, dpmpp_sde,
        dpmpp_sde_gpu, dpmpp_2m, dpmpp_2m_cfg_pp, dpmpp_2m_sde, dpmpp_2m_sde_gpu, dpmpp_2m_sde_heun,
        dpmpp_2m_sde_heun_gpu, dpmpp_3m_sde, dpmpp_3m_sde_gpu, ddpm, lcm, ipndm, ipndm_v, deis, res_multistep,
        res_multistep_cfg_pp, res_multistep_ancestral, res_multistep_ancestral_cfg_pp, gradient_estimation,
        gradient_estimation_cfg_pp, er_sde, seeds_2, seeds_3, sa_solver, sa_solver_pece, ddim, uni_pc, uni_pc_bh2""",
        """simple, sgm_uniform, karras, exponential, ddim_uniform, beta, normal, linear_quadratic, kl_optimal""",
    ),
    "a1111": (
        """DPM++ 2M, DPM++ SDE, DPM++ 2M SDE, DPM++ 2M SDE Heun, DPM++ 2S a, DPM++ 3M SDE, Euler a, Euler, LMS, Heun,
        DPM2, DPM2 a, DPM fast, DPM adaptive, Restart, DDIM, DDIM CFG++, PLMS, UniPC, LCM, DDPM, HeunPP2, IPNDM,
        IPNDM_V, DEIS""",
        """Uniform, Karras, Exponential, Polyexponential, SGM Uniform, KL Optimal, Align Your Steps, Simple, Normal,
        DDIM, Beta, Turbo, Align Your Steps GITS, Align Your Steps 32""",
    ),
    "sd.cpp": (
        """euler, euler_a, heun, dpm2, dpm++2s_a, dpm++2m, dpm++2mv2, ipndm, ipndm_v, lcm, ddim_trailing, tcd,
        res_multistep, res_2s, er_sde, euler_cfg_pp, euler_a_cfg_pp, euler_ge, dpm++2m_sde, dpm++2m_sde_bt, lms""",
        """discrete, normal, karras, exponential, ays, gits, sgm_uniform, simple, smoothstep, kl_optimal, lcm,
        bong_tangent, ltx2, logit_normal, flux2, flux, beta""",
    ),
    "res4lyf": (
        """res_2m, res_3m, res_2s, res_3s, res_5s, res_6s, res_2m_ode, res_3m_ode, res_2s_ode, res_3s_ode, res_5s_ode,
        res_6s_ode, deis_2m, deis_3m, deis_2m_ode, deis_3m_ode, rk_beta, rk, legacy_rk""",
        """bong_tangent, beta57""",
    ),
}


def listed(text: str) -> list[str]:
    return [name.strip() for name in text.replace("\n", " ").split(",")]


LISTS = {program: tuple(map(listed, texts)) for program, texts in PROGRAMS.items()}
FLOW = dict(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).config)


@pytest.mark.parametrize("program", LISTS)
def test_every_name_of_the_programs_is_served_or_refused_with_its_reason(program: str) -> None:
    samplers, schedules = LISTS[program]
    reasons = {plain(name): reason for name, reason in REFUSED.items()}
    for sampler in samplers:
        for schedule in ("", *schedules):
            name = f"{sampler} {schedule}".strip()
            reason = reasons.get(plain(sampler))
            if reason:
                check_refused(lambda name=name: parse_sampler_name(name), f"is no drop-in scheduler: {reason}")
            else:
                assert parse_sampler_name(name).solver in available()


@pytest.mark.parametrize("program", LISTS)
def test_every_schedule_of_the_programs_is_laid_out(program: str) -> None:
    """On the kinds of models that it is for; on others it says so."""
    for schedule in LISTS[program][1]:
        for config, kind in ((SD, "vp"), (FLOW, "flow")):
            grid = parse_sampler_name(f"euler {schedule}").grid
            if grid in FIXED_GRIDS and kind not in FIXED_GRIDS[grid].kinds:
                with pytest.raises(ValueError, match="is laid out for"):
                    fs.scheduler_from_name(f"euler {schedule}", config)
                continue
            scheduler = fs.scheduler_from_name(f"euler {schedule}", config)
            for steps in (1, 2, 9):
                scheduler.set_timesteps(steps)
                assert len(scheduler.timesteps) == steps
                assert bool((scheduler.sigmas.diff() < 0).all())


def test_names_on_flow_models_take_the_flow_s_own_split() -> None:
    for name in ("Euler a", "euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral", "DPM2 a", "euler_a"):
        assert fs.scheduler_from_name(name, FLOW).config.solver_options["split"] == "rf"
        assert "split" not in fs.scheduler_from_name(name, SD).config.solver_options
    for name in ("DPM++ 3M SDE", "dpmpp_3m_sde"):
        assert fs.scheduler_from_name(name, SD).config.solver_options == {"solver_type": "heun"}


def test_comfyui_s_last_step_is_onto_the_data_prediction() -> None:
    """k-diffusion's LMS, which is AUTOMATIC1111's, goes on at its order."""
    for name, alone in (("ipndm", True), ("ipndm_v", True), ("k_lms", True), ("LMS", False)):
        scheduler = fs.scheduler_from_name(name, SD)
        scheduler.set_timesteps(6)
        assert (not any(scheduler._run.table.steps[-1].next.history)) == alone
