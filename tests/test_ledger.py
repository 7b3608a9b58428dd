"""The ledger against forward calls counted by hand."""

from __future__ import annotations

import pipelines
import pytest
import torch

from fastsample.pipelines.counting import count
from fastsample.sampling import Ledger


@pytest.mark.parametrize(("guidance", "evaluations"), [(1.0, 4), (5.0, 8)])
def test_a_guided_step_counts_twice(guidance: float, evaluations: int) -> None:
    pipe = pipelines.stable_diffusion()
    calls: list[int] = []
    handle = pipe.unet.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    with count(pipe, images=3) as ledger:
        pipe(["a", "red", "circle"], num_inference_steps=4, guidance_scale=guidance, output_type="latent")
    handle.remove()
    assert ledger.forward_calls == len(calls) == 4
    assert ledger.rows == sum(calls)
    assert ledger.model_evaluations == evaluations
    assert ledger.seconds > 0
    assert ledger.peak_memory > 0
    assert not pipe.unet._forward_pre_hooks  # nothing is left behind


def test_hooks_go_when_the_run_breaks() -> None:
    pipe = pipelines.stable_diffusion()
    with pytest.raises(RuntimeError), count(pipe, images=1):
        raise RuntimeError
    assert not pipe.unet._forward_pre_hooks


def test_a_transformer_is_counted_by_its_hidden_states() -> None:
    pipe = pipelines.flux()
    with count(pipe, images=1) as ledger:
        pipe(**pipelines.flux_inputs(), num_inference_steps=3, output_type="latent")
    assert ledger.model_evaluations == 3


def test_something_without_a_denoiser_is_refused() -> None:
    with pytest.raises(ValueError, match="has no unet or transformer"), count(torch.nn.Linear(1, 1), images=1):
        pass
    assert Ledger(images=2, rows=10).model_evaluations == 5
