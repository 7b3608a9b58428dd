"""What a model output says, written once: data and noise predictions as `a sample + b output`.

`v = (alpha noise - sigma data) / n` with `n = sqrt(alpha^2 + sigma^2)`, which is 1 on VP models (arXiv:2202.00512),
and `flow = noise - data`. Two families of models are trained on their negatives: "minus_v" is the network F of EDM
(arXiv:2206.00364, eq. 7: data = c_skip x + c_out F), "minus_flow" that of Mochi. "flow_v" is what diffusers reads a
v prediction as on flow-matching models: data = alpha sample - sigma output. None of the forms subtracts nearly
equal numbers, and each is finite wherever the prediction type says anything.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

from fastsample.schedules.base import Node

PredictionType = Literal["epsilon", "sample", "v_prediction", "flow_prediction", "minus_v", "minus_flow", "flow_v"]
Space = Literal["data", "noise"]
PREDICTION_TYPES: tuple[str, ...] = get_args(PredictionType)


def check_prediction_type(prediction_type: str) -> None:
    """Raise ValueError unless `prediction_type` is one of PREDICTION_TYPES."""
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(
            f"prediction_type = {prediction_type!r} is unknown: use one of {', '.join(PREDICTION_TYPES)}"
        )


def output_axes(alpha: Any, sigma: Any, prediction_type: str) -> tuple[Any, Any]:
    """`(p, q)` such that an exact output of a v or flow model is `p noise - q data`; of numbers or tensors."""
    sign = -1.0 if prediction_type.startswith("minus_") else 1.0
    if prediction_type in ("flow_prediction", "minus_flow"):
        return sign, sign
    if prediction_type == "flow_v":
        return alpha, 1.0 + alpha
    norm = (alpha**2 + sigma**2) ** 0.5
    return sign * alpha / norm, sign * sigma / norm


def prediction_weights(node: Node, prediction_type: str, space: Space) -> tuple[float, float]:
    """`(a, b)` such that the prediction of data (or noise) at `node` is `a * sample + b * output`.

    Raises ValueError where there is none: noise predictions at zero SNR for data, data predictions on
    clean data for noise.
    """
    check_prediction_type(prediction_type)
    alpha, sigma = node.alpha, node.sigma
    if prediction_type not in ("epsilon", "sample"):
        # Solve sample = alpha data + sigma noise, output = p noise - q data.
        p, q = output_axes(alpha, sigma, prediction_type)
        norm = alpha * p + sigma * q
        return (p / norm, -sigma / norm) if space == "data" else (q / norm, alpha / norm)
    if (prediction_type == "sample") == (space == "data"):
        return 0.0, 1.0
    if space == "data":
        if alpha == 0:
            raise ValueError(
                f"prediction_type = 'epsilon' at time {node.time:g}: alpha is 0 there (zero-terminal SNR), so a "
                "noise prediction says nothing about the data; use a v_prediction model or a 'leading' grid"
            )
        return 1.0 / alpha, -sigma / alpha
    if sigma == 0:
        raise ValueError(
            f"prediction_type = 'sample' at time {node.time:g}: sigma is 0 there, so a data prediction says nothing "
            "about the noise; end the grid above sigma = 0"
        )
    return 1.0 / sigma, -alpha / sigma
