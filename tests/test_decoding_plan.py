"""Planning: the fastest rule that keeps within a budget, from prompts without answers."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
import slow_decoding as slow
import torch
from decoding_models import MASK, bundled_kind
from refusal import check_refused

import fastsample as fs
from fastsample.decoding.plan import DecodingPlan, Trial, fit_curve, wilson
from fastsample.demo.language.sums import problems


@pytest.fixture(scope="module")
def pipe() -> Any:
    found = fs.MaskedDiffusionPipeline(*fs.load_language_model())
    found.set_progress_bar_config(disable=True)
    return found


RULES = {"factor:factor=0.3": fs.Factor(0.3), "risk": fs.Risk(), "threshold:confidence=0.5": fs.Threshold(0.5)}


def texts_by(pipe: Any, prompts: list[str], rule: Any) -> Any:
    out = pipe(prompts, rule=rule, gen_length=96)
    return out.sequences, sum(out.ledger.row_forwards) / len(prompts)


def test_a_plan_is_what_the_rules_do(pipe: Any) -> None:
    """Agreement, forwards and risk of each candidate are those of decoding by it; the order is that of the risk."""
    prompts = [problem.prompt for problem in itertools.islice(problems(5, test=False), 8)]
    names: list[str] = []
    plan = fs.plan_decoding(
        pipe, prompts, 0.2, candidates=RULES, gen_length=96, looks=1, batch=3, progress=names.append
    )
    assert names == list(RULES)
    assert [trial.risk for trial in plan.trials] == sorted(trial.risk for trial in plan.trials)
    slow_texts, forwards = texts_by(pipe, prompts, fs.LowConfidence())
    assert plan.reference.forwards == forwards
    assert plan.reference.agreement == plan.reference.predicted == 1.0
    for trial in plan.trials:
        found, forwards = texts_by(pipe, prompts, RULES[trial.name])
        assert trial.agreement == (found == slow_texts).all(-1).double().mean()
        assert trial.forwards == pytest.approx(forwards)
        assert trial.interval[0] <= trial.agreement <= trial.interval[1]
    within = [trial for trial in plan.trials if min(trial.agreement, trial.predicted) >= 0.8]
    assert plan.chosen is min(within, key=lambda trial: trial.forwards, default=plan.reference)
    assert plan.rule == RULES[plan.chosen.name]
    assert plan.information > 0


def test_where_nothing_agrees_the_reference_is_chosen() -> None:
    """Random logits: whatever is committed at once is different."""
    model = slow.RandomModel(24, 4000, 0, spread=2.0)
    ids = torch.randint(0, 20, (6, 4), generator=torch.Generator().manual_seed(0))
    plan = fs.plan_decoding(
        model, ids, 0.1, candidates={"threshold": fs.Threshold(0.05)}, gen_length=12, mask_token_id=MASK, looks=0
    )
    assert plan.chosen is plan.reference
    assert plan.rule == fs.LowConfidence()
    assert plan.information != plan.information


def test_checks_that_a_model_cannot_make_are_left_out() -> None:
    forms = {"a": fs.Checked(), "b": fs.Checked(form="rows")}
    options: dict[str, Any] = dict(candidates=forms, gen_length=6, mask_token_id=MASK, looks=0)
    ids = torch.tensor([[1, 2], [3, 4]])
    assert [trial.name for trial in fs.plan_decoding(bundled_kind(), ids, **options).trials] == ["a"]
    plain = slow.RandomModel(24, 50, 0)
    assert [trial.name for trial in fs.plan_decoding(plain, ids, **options).trials] == ["b"]


def test_the_information_of_a_known_law() -> None:
    """Two tokens that are always equal, of 4 kinds, and one apart: log 4 each for the two, 0 for the third."""

    def model(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        logits = torch.zeros(*input_ids.shape, 6, dtype=torch.float64)
        logits[..., 4] = -torch.inf
        for here, other in ((1, 2), (2, 1)):
            known = input_ids[:, other] < 4
            peak = torch.nn.functional.one_hot(input_ids[:, other].clamp(max=5), 6).double() * 200
            logits[:, here] = torch.where(known[:, None], peak + logits[:, here], logits[:, here])
        return slow.SimpleNamespace(logits=logits)

    plan = fs.plan_decoding(
        model, torch.zeros(3, 1, dtype=torch.int64), candidates={}, gen_length=3, mask_token_id=5, looks=3
    )
    assert plan.information == pytest.approx(2 * torch.tensor(4.0).log().item())
    assert plan.chosen is plan.reference
    assert plan.expected_wrong(10) == pytest.approx(1 - 2.718281828 ** (-plan.information / 10))


def test_the_curve_finds_the_law_that_texts_follow() -> None:
    """Drawn from sigmoid(a + b log risk): found within a point over the risks that were seen."""
    draw = torch.Generator().manual_seed(0)
    risk = torch.rand(4000, generator=draw, dtype=torch.float64) * 0.5 + 0.01
    law = (1.0 + 1.5 * risk.log()).sigmoid()
    curve = fit_curve(risk, torch.rand(4000, generator=draw, dtype=torch.float64) < law)
    assert abs(float(curve(risk).mean() - law.mean())) < 0.01
    rising = curve(torch.linspace(0.01, 0.5, 20, dtype=torch.float64))
    assert (rising.diff() > 0).all()
    for same in (False, True):
        flat = fit_curve(risk[:50], torch.full((50,), same))
        assert abs(float(flat(risk[:50]).mean()) - same) < 0.05


def test_an_interval_covers_its_share() -> None:
    """As often as it says, over many draws; the ends of [0, 1] belong to it."""
    draw = torch.Generator().manual_seed(0)
    for share in (0.5, 0.9, 0.97):
        counts = (torch.rand(2000, 64, generator=draw) < share).sum(-1).tolist()
        inside = [low <= share <= high for low, high in (wilson(count, 64) for count in counts)]
        assert sum(inside) / 2000 > 0.92
    assert wilson(64, 64)[1] == 1.0
    assert wilson(0, 64)[0] == 0.0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(budget=1.0), "budget = 1.0"),
        (dict(budget=-0.1), "budget = -0.1"),
        (dict(batch=0), "batch = 0"),
        (dict(looks=-1), "looks = -1"),
        (dict(gen_length=0), "gen_length = 0"),
    ],
)
def test_wrong_input_is_refused(options: dict[str, Any], words: str) -> None:
    check_refused(lambda: fs.plan_decoding(bundled_kind(), torch.tensor([[1]]), **options), words)


def test_prompts_that_do_not_fit_are_refused(pipe: Any) -> None:
    check_refused(lambda: fs.plan_decoding(pipe, []), "prompts = []")
    check_refused(lambda: fs.plan_decoding(pipe, "1+2"), "prompts = '1+2'")
    for given in ({"attention_mask": torch.ones(1, 3)}, {"mask_token_id": 3}, {"adapter": object()}):
        check_refused(lambda: fs.plan_decoding(pipe, ["1+2"], **given), f"{next(iter(given))} is given")  # noqa: B023
    check_refused(lambda: fs.plan_decoding(bundled_kind(), ["1+2"]), "prompts are texts")
    check_refused(lambda: fs.plan_decoding(bundled_kind(), torch.zeros(0, 3, dtype=torch.int64)), "no rows")
    check_refused(lambda: fs.plan_decoding(slow.RandomModel(9, 3, 0), torch.tensor([[1]])), "mask_token_id = None")


def test_the_command_shows_the_plan(run, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    asked: list[Any] = []

    def planned(pipe: Any, prompts: list[str], budget: float, **options: Any) -> DecodingPlan:
        asked.append((len(prompts), budget, options))
        slowest = Trial("low-confidence", fs.LowConfidence(), 1.0, (0.93, 1.0), 1.0, 0.1, 96.0, 96.0)
        fast = Trial("risk", fs.Risk(), 0.98, (0.9, 1.0), 0.985, 0.2, 3.0, 3.1)
        return DecodingPlan(fast, slowest, (fast,), budget, len(prompts), 3.6)

    monkeypatch.setattr("fastsample.cli.engines.decode.plan_decoding", planned)
    status, out, _ = run("decode", "--plan", "--budget", "0.05", "--json")
    assert status == 0
    assert json.loads(out)["chosen"]["name"] == "risk"
    assert asked[0][:2] == (48, 0.05)
    status, out, _ = run("decode", "--plan", "--prompt", "1+2+3+4+5", "--gen-length", "32")
    assert "--rule risk: 32.0 times fewer forwards" in out
    assert asked[1] == (1, 0.02, {"gen_length": 32, "guidance_scale": 0.0})
    for arguments, words in (
        (["--plan", "--rule", "risk"], "--rule and --steps with --plan"),
        (["--plan", "--budget", "1.5"], "--budget = 1.5"),
        (["--plan", "--temperature", "0.5"], "--temperature with --plan"),
    ):
        status, _, err = run("decode", *arguments)
        assert status == 2
        assert words in err
