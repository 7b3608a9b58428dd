"""A commit rule for a model, found on prompts without answers: the fastest that writes what the slow way writes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastsample.decoding.adapters import Adapter, adapter_of, mask_token_of
from fastsample.decoding.commit import Checked, Checking, CommitRule, Factor, LowConfidence, Risk, Threshold
from fastsample.decoding.decode import decode_masked
from fastsample.decoding.denoiser import Denoiser
from fastsample.decoding.prompts import encode
from fastsample.decoding.statistics import statistics_of

CANDIDATES: Mapping[str, CommitRule] = {
    "threshold:confidence=0.99": Threshold(0.99),
    "factor:factor=0.1": Factor(0.1),
    "risk:budget=0.02": Risk(0.02),
    "risk:budget=0.05": Risk(0.05),
    "factor:factor=0.3": Factor(0.3),
    "risk": Risk(0.1),
    "checked": Checked(),
    "checked:form=rows": Checked(form="rows"),
    "factor:factor=0.6": Factor(0.6),
    "risk:budget=0.2": Risk(0.2),
    "factor": Factor(1.0),
    "threshold": Threshold(0.9),
    "risk:budget=0.5": Risk(0.5),
    "threshold:confidence=0.8": Threshold(0.8),
}
"""By the names of `fastsample decode --rule`."""


@dataclass(frozen=True)
class Trial:
    """What a rule did with the prompts.

    `agreement`: the share of texts that are those of the reference, up to the end token, with its 95 % `interval`
    (Wilson). `predicted`: the share to expect of other prompts, the smaller of this one and of what the risk of these
    texts says, see :func:`plan_decoding`. `risk`: mean over texts of the sum of 1 - confidence over commits.
    `forwards`: a text. `evaluated`: tokens evaluated, in forwards of a whole text.
    """

    name: str
    rule: CommitRule
    agreement: float
    interval: tuple[float, float]
    predicted: float
    risk: float
    forwards: float
    evaluated: float


@dataclass(frozen=True)
class DecodingPlan:
    """The chosen rule, and how it was found.

    `reference` is decoding one token a forward; `trials` the candidates by rising risk; `chosen` one of all these.
    `information`: an estimate of sum I(X_i; X_-i) in nats, see :meth:`expected_wrong`; NaN where not asked for.
    """

    chosen: Trial
    reference: Trial
    trials: tuple[Trial, ...]
    budget: float
    prompts: int
    information: float

    @property
    def rule(self) -> CommitRule:
        """Of the choice: `decode_masked(model, ids, rule=plan.rule, ..)`."""
        return self.chosen.rule

    def expected_wrong(self, steps: int) -> float:
        """The share of texts that differ after `steps` steps in random order, were the model exact.

        1 - exp(-sum I(X_i; X_-i) / steps), from the bound on the divergence in arXiv:2505.21400. Real models err more
        than that falls: on the bundled one 36, 20, 14 and 11 % are expected at 8, 16, 24 and 32 steps, and 28, 25, 23
        and 22 % measured. So it is shown, and nothing is decided by it.
        """
        return -math.expm1(-self.information / steps)


@torch.no_grad()
def plan_decoding(
    model: Any,
    prompts: Tensor | Sequence[str],
    budget: float = 0.02,
    *,
    candidates: Mapping[str, CommitRule] = CANDIDATES,
    gen_length: int = 128,
    attention_mask: Tensor | None = None,
    mask_token_id: int | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    batch: int = 16,
    looks: int = 8,
    progress: Callable[[str], object] | None = None,
    **options: Any,
) -> DecodingPlan:
    """The rule of fewest forwards whose texts differ from slow decoding's in at most the share `budget`.

    `prompts`, 32 to 64 of them and without answers, are decoded one token a forward, and then by each candidate. A
    text's risk is the model's own doubt in what it committed; that of all texts and candidates gives a curve from
    risk to disagreement (logistic in log risk), which is steadier than the count of one candidate's few texts. A rule
    goes by the larger of the two, its disagreement on these prompts and the curve's: the choice is the luckiest of
    many, and either alone would promise too much. On the bundled model plans from 64 prompts promised 0.3 to 0.8
    points too much on average; a single one may be off by two, as 64 texts say no more (benchmarks/decoding).
    Where no candidate keeps within the budget, the reference itself is the choice.

    model: a :class:`fastsample.MaskedDiffusionPipeline` with prompts as texts, or as of
        :func:`fastsample.decode_masked` with prompts int64 [B, P] and their attention_mask.
    candidates: rules by name; those whose checks the model cannot make are left out.
    batch: texts decoded at once. looks: positions a text from which the information is estimated; 0 is none.
    progress: called with the name of what has been decoded.
    gen_length, eos_token_id, options: of :func:`fastsample.decode_masked`.

    Raises ValueError for wrong input, before any forward.
    """
    if not 0 <= budget < 1:
        raise ValueError(f"budget = {budget}: give the share of texts that may differ, from 0 to 1")
    if batch < 1 or looks < 0:
        raise ValueError(f"batch = {batch}, looks = {looks}: give at least 1 and 0")
    adapter = options.pop("adapter", None)
    if not isinstance(prompts, Tensor):
        from fastsample.decoding.pipeline import MaskedDiffusionPipeline  # diffusers: tokens do without

        if not isinstance(model, MaskedDiffusionPipeline) or model.tokenizer is None:
            raise ValueError("prompts are texts: give a MaskedDiffusionPipeline with a tokenizer, or int64 tokens")
        if isinstance(prompts, str) or not prompts:
            raise ValueError(f"prompts = {prompts!r}: give a list of 32 to 64 texts")
        known = {"attention_mask": attention_mask, "mask_token_id": mask_token_id, "adapter": adapter}
        for name, value in known.items():
            if value is not None:
                raise ValueError(f"{name} is given: prompts are texts, for which the pipeline knows it; leave it out")
        prompts, attention_mask = (each.to(model.device) for each in encode(model.tokenizer, prompts, chat=True))
        eos_token_id = model.tokenizer.eos_token_id if eos_token_id is None else eos_token_id
        mask_token_id, adapter, model = model.config.mask_token_id, model.adapter, model.model
    adapter = adapter_of(model) if adapter is None else adapter
    mask_token_id = mask_token_of(model) if mask_token_id is None else mask_token_id
    if mask_token_id is None:
        raise ValueError("mask_token_id = None, and the model's config has none: give it")
    if not len(prompts):
        raise ValueError("prompts has no rows: give 32 to 64")
    attention = torch.ones_like(prompts) if attention_mask is None else attention_mask

    def run(rule: CommitRule) -> Texts:
        return _decoded(
            model, prompts, attention, batch, rule=rule, gen_length=gen_length, mask_token_id=mask_token_id,
            eos_token_id=eos_token_id, adapter=adapter, **options,
        )  # fmt: skip

    possible = {
        name: rule
        for name, rule in candidates.items()
        if not isinstance(rule, Checking) or (rule.form == "rows") != adapter.shadows
    }
    slow = run(LowConfidence())
    found = {}
    for name, rule in possible.items():
        found[name] = run(rule)
        if progress is not None:
            progress(name)
    chosen, reference, trials = weigh(slow, found, possible, budget)
    information = math.nan
    if looks:
        information = _information(model, adapter, slow, prompts, attention, mask_token_id, batch, looks)
    return DecodingPlan(chosen, reference, trials, budget, len(prompts), information)


@dataclass(frozen=True)
class Texts:
    """What a rule wrote: tokens int64 [N, G], the end token behind the first one; risk float64 [N]; means a text."""

    tokens: Tensor
    risk: Tensor
    forwards: float
    evaluated: float


def weigh(
    slow: Texts, found: Mapping[str, Texts], rules: Mapping[str, CommitRule], budget: float
) -> tuple[Trial, Trial, tuple[Trial, ...]]:
    """The choice, the reference and the trials by rising risk, from texts of the slow way and of candidates."""
    differs = {name: (texts.tokens != slow.tokens).any(-1) for name, texts in found.items()}
    everyone = range(len(slow.tokens))
    reference = Trial(
        "low-confidence", LowConfidence(), 1.0, wilson(len(everyone), len(everyone)), 1.0, float(slow.risk.mean()),
        slow.forwards, slow.evaluated,
    )  # fmt: skip
    if not found:
        return reference, reference, ()
    curve = fit_curve(torch.cat([texts.risk for texts in found.values()]), torch.cat(list(differs.values())))
    trials = []
    for name, texts in found.items():
        same = int((~differs[name]).sum())
        trials.append(
            Trial(
                name,
                rules[name],
                same / len(everyone),
                wilson(same, len(everyone)),
                min(same / len(everyone), 1 - float(curve(texts.risk).mean())),
                float(texts.risk.mean()),
                texts.forwards,
                texts.evaluated,
            )
        )
    trials.sort(key=lambda one: one.risk)
    within = [one for one in trials if 1 - one.predicted <= budget]
    return min(within, key=lambda one: (one.forwards, one.risk), default=reference), reference, tuple(trials)


def _decoded(model: Any, prompts: Tensor, attention: Tensor, batch: int, **options: Any) -> Texts:
    tokens, risk, forwards, positions = [], [], 0, 0
    for begin in range(0, len(prompts), batch):
        ids, mask = prompts[begin : begin + batch], attention[begin : begin + batch]
        text, ledger = decode_masked(model, ids, attention_mask=mask, **options)
        tokens.append(text[:, ids.shape[1] :])
        risk.append(ledger.risk.cpu().double())
        forwards += sum(ledger.row_forwards)
        positions += ledger.positions
    count, length = len(prompts), prompts.shape[1] + options["gen_length"]
    return Texts(torch.cat(tokens).cpu(), torch.cat(risk), forwards / count, positions / (count * length))


def fit_curve(risk: Tensor, differs: Tensor) -> Callable[[Tensor], Tensor]:
    """The probability that a text differs, by its risk: sigmoid(a + b log risk) of largest likelihood, b >= 0.

    A weak prior (half a text that differs at the largest risk, half one that does not at the smallest) keeps it
    finite where all agree or all differ. Newton's method.
    """

    def of(values: Tensor) -> Tensor:
        return torch.stack([torch.ones_like(values), values.clamp(min=1e-6).log()], -1)

    ends = torch.stack([risk.max().clamp(min=1e-3), risk.min()])
    x = torch.cat([of(risk), of(ends)])
    y = torch.cat([differs.double(), torch.tensor([1.0, 0.0], dtype=torch.float64)])
    weight = torch.cat([torch.ones_like(risk), torch.full_like(ends, 0.5)])
    slope = torch.zeros(2, dtype=torch.float64)
    ridge = 1e-3 * torch.eye(2, dtype=torch.float64)
    for _ in range(50):
        p = (x @ slope).sigmoid()
        step = torch.linalg.solve(
            (x * (weight * p * (1 - p))[:, None]).T @ x + ridge, x.T @ (weight * (y - p)) - ridge @ slope
        )
        slope = slope + step * min(1.0, 2.0 / float(step.abs().max().clamp(min=1e-12)))
    if slope[1] < 0:  # no risk to go by
        mean = (weight * y).sum() / weight.sum()
        return lambda values: mean.expand(values.shape)
    return lambda values: (of(values.double()) @ slope).sigmoid()


def wilson(right: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """The interval of a share of which `right` of `count` were seen, at z standard errors (Wilson 1927)."""
    share, n = right / count, count
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def _information(
    model: Any, adapter: Adapter, slow: Texts, prompts: Tensor, attention: Tensor, mask_token_id: int, batch: int,
    looks: int,
) -> float:  # fmt: skip
    """Sum over positions of H(X_i) - H(X_i | the rest), from `looks` random positions of each text."""
    length, prompt = slow.tokens.shape[1], prompts.shape[1]
    full = torch.nn.functional.pad(attention, (0, length), value=1)
    places = torch.rand(len(prompts), length, generator=torch.Generator().manual_seed(0)).argsort(-1)
    total, count = 0.0, 0

    def entropy(texts: Tensor, mask: Tensor) -> Tensor:
        read = Denoiser(model, adapter, mask, prompt, mask_token_id, 0.0)
        logits = read(texts, 0, length).logits
        found: Tensor = statistics_of(logits, needs={"entropy"}, excluded=mask_token_id).entropy
        return found.double()

    for begin in range(0, len(prompts), batch):
        rows = slice(begin, begin + batch)
        ids, mask = prompts[rows], full[rows]
        text = torch.cat([ids, slow.tokens[rows].to(ids)], 1)
        alone = text.clone()
        alone[:, prompt:] = mask_token_id
        before = entropy(alone, mask)
        for column in places[rows, : min(looks, length)].to(ids.device).unbind(-1):
            hidden = text.scatter(1, prompt + column[:, None], mask_token_id)
            after = entropy(hidden, mask)
            total += float((before - after).gather(1, column[:, None]).sum())
            count += len(ids)
    return max(total / count * length, 0.0)
