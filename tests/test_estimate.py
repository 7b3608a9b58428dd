"""The arithmetic of the expected speed-ups, against cases that are plain by hand."""

from __future__ import annotations

import pytest

from fastsample.bench.estimate import RowCost, expected_speedup


def test_rows_cost_what_was_measured_and_between() -> None:
    cost = RowCost({1: 1.0, 4: 1.6, 8: 3.2})
    assert [cost(rows) for rows in (1, 4, 8)] == [1.0, 1.6, 3.2]
    assert cost(2) == pytest.approx(1.2)
    assert cost(16) == pytest.approx(6.4)
    assert [RowCost.saturating(4)(rows) for rows in (1, 3, 4, 8)] == [1, 1, 1, 2]
    assert RowCost.saturating(1)(5) == 5


def test_free_rows_save_all_rounds_and_a_saturated_device_none() -> None:
    free, saturated = RowCost.saturating(64), RowCost.saturating(1)
    assert expected_speedup(50, 10, 50, free) == 5
    assert expected_speedup(50, 11, 16, saturated) < 1
    assert expected_speedup(50, 11, 16, saturated, devices=8) == pytest.approx(50 / 21)
    assert expected_speedup(50, 11, 16, saturated, devices=8, gather=0.5) == pytest.approx(50 / 26)
    assert expected_speedup(50, 11, 16, saturated, devices=1, gather=9.0) == pytest.approx(50 / 161)


def test_wrong_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="rows = 0"):
        expected_speedup(50, 10, 0, RowCost.saturating(1))
    with pytest.raises(ValueError, match="that of 1 row"):
        RowCost({2: 1.0})
