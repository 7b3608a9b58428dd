"""The training of the bundled flow-matching model: it goes on as if it had not stopped, and reports what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytestmark = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="trained with torch.optim.Muon of torch 2.9")
IDS = 33


@pytest.fixture
def flow(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`scripts/train_flow.py` as a module."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "scripts")
    import train_flow

    return train_flow


def rows(generator: torch.Generator, count: int = 6) -> dict[str, Tensor]:
    return {
        "ids": torch.randint(IDS, (count, 16), generator=generator),
        "mean": torch.randn(count, 4, 8, 8, generator=generator),
        "std": torch.full((count, 4, 8, 8), 0.03),
        "empty": torch.ones(1, 16, dtype=torch.int64),
    }


def go_on(flow: Any, run: Any, until: int) -> None:
    while run.step < until:
        batch = rows(run.generator)
        run.descend(flow.flow_loss(run.model, run.model[1], batch, run.generator), flow.cosine(run.step, 4, 1))


@pytest.mark.parametrize("stop", [0, 1, 3])
def test_a_run_resumed_reaches_the_same_weights(flow: Any, tmp_path: Path, stop: int) -> None:
    whole = flow.Run.start(IDS, seed=5)
    go_on(flow, whole, 4)
    part = flow.Run.start(IDS, seed=5)
    go_on(flow, part, stop)
    part.save(tmp_path / "checkpoint.pt")
    again = flow.Run.start(IDS, seed=6)
    again.load(tmp_path / "checkpoint.pt")
    go_on(flow, again, 4)
    assert again.step == whole.step
    for name in ("model", "average"):
        ours, theirs = getattr(again, name).state_dict(), getattr(whole, name).state_dict()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs), name


def test_every_parameter_has_one_optimiser(flow: Any) -> None:
    run = flow.Run.start(IDS, seed=0)
    held = [id(p) for own in run.optimisers for group in own.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in run.model.parameters())


def test_a_fresh_model_says_zero(flow: Any) -> None:
    """So the first loss is the variance of noise and data together."""
    run, generator = flow.Run.start(IDS, seed=0), torch.Generator().manual_seed(1)
    loss = flow.flow_loss(run.model, run.model[1], rows(generator, 64), generator)
    assert abs(loss.item() - 2.0) < 5 * 2 * (2 / (64 * 256)) ** 0.5


@pytest.mark.parametrize("count", [5, 64])
def test_noise_levels_cover_the_whole_range_and_counts_keep_the_default(flow: Any, count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    levels = torch.cat([flow.sigmas_of(count, generator) for _ in range(4000 // count)])
    counts = torch.cat([flow.counts_of(count, generator) for _ in range(4000 // count)])
    assert 0 < float(levels.min()) < 0.02
    assert 0.98 < float(levels.max()) < 1
    assert float(levels.median()) > 0.5  # the shift moves them to noise
    assert float(counts.min()) >= 1
    assert float(counts.max()) <= 512
    assert abs(float((counts == flow.ZEROS).float().mean()) - 0.75) < 0.05
