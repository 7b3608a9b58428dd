"""diffusers' own schedulers for the model that any scheduler's config describes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from fastsample.names.peers import peer_class
from fastsample.schedules import NoiseSchedule

VP = ("DDIM", "DPMSolverMultistep", "UniPCMultistep", "DEISMultistep")
FLOW = ("FlowMatchEulerDiscrete", "DPMSolverMultistep", "UniPCMultistep")
DEFAULT = {"vp": VP, "flow": FLOW, "edm": ()}
"""What a benchmark compares with by the kind of the noise schedule, beside the model's own scheduler."""

SHAPES = ("use_dynamic_shifting", "shift_terminal", "invert_sigmas")
"""What flow configs may say of a model that few classes know."""


def peer_scheduler(name: str, config: Mapping[str, Any], **options: Any) -> Any:
    """diffusers' scheduler `name` for the model of `config`, with `options` of its own.

    `from_config` does that within a kind of model. A multistep class for a flow-matching model has to be told the
    shift and the prediction, as by hand: that is done here. Raises ValueError for a class that does not know the
    model's kind, or something that its config says of it.
    """
    cls, short = peer_class(name), name.removesuffix("Scheduler")
    try:
        kind, matches_flow = NoiseSchedule.from_config(config).kind, short.startswith("FlowMatch")
    except ValueError:  # a consistency model, or another that none of ours is for: diffusers' may be
        return cls.from_config(config, **options)
    keys = inspect.signature(cls.__init__).parameters
    if kind == "edm" and not short.startswith(("EDM", "Cosine", "Euler")):
        raise ValueError(f"peer = {name!r} is for discrete noise levels, and the model has continuous ones (EDM)")
    if kind == "flow" and not matches_flow and "use_flow_sigmas" not in keys:
        raise ValueError(f"peer = {name!r} is not for flow-matching models: use FlowMatchEulerDiscrete")
    if kind != "flow" and matches_flow:
        raise ValueError(f"peer = {name!r} is for flow-matching models: use DPMSolverMultistep")
    said = [key for key in SHAPES if kind == "flow" and config.get(key)]
    said += ["variance_type"] if str(config.get("variance_type")).startswith("learned") else []
    if lost := [key for key in said if key not in keys]:
        raise ValueError(f"peer = {name!r} knows no {', '.join(lost)}, which the model's config has")
    if kind != "flow":
        return cls.from_config(config, **options)
    shift = config.get("flow_shift") or config.get("shift") or 1.0
    told = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": shift}
    return cls.from_config(config, **{**({"shift": shift} if matches_flow else told), **options})
