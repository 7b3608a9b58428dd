"""Ways to decode by name: `threshold:confidence=0.9`, `prophet:region=82/4+entropy:steps=48`, `lrd+margin`."""

from __future__ import annotations

import difflib
import inspect
from dataclasses import dataclass
from typing import Any

from fastsample.decoding import (
    KLASS,
    PUNT,
    WINO,
    After,
    Caching,
    Checked,
    CommitRule,
    Credit,
    Entropy,
    EntropyBounded,
    Factor,
    Hierarchy,
    LatentRefinement,
    LowConfidence,
    Margin,
    Origin,
    Prophet,
    Random,
    Risk,
    Threshold,
)
from fastsample.names.options import parse_options

RULES: dict[str, type[CommitRule]] = {
    "low-confidence": LowConfidence,
    "margin": Margin,
    "entropy": Entropy,
    "random": Random,
    "origin": Origin,
    "threshold": Threshold,
    "factor": Factor,
    "entropy-bounded": EntropyBounded,
    "hierarchy": Hierarchy,
    "risk": Risk,
    "klass": KLASS,
    "credit": Credit,
    "punt": PUNT,
    "wino": WINO,
}
"""What decides alone, with the options of its class."""
ADDED = {"checked": Checked, "prophet": Prophet, "lrd": LatentRefinement, "prefix": Caching, "dual": Caching}
"""What a rule can be combined with: it stands before the rule, with a +."""
RUN_OPTIONS = ("steps", "block")


@dataclass(frozen=True)
class Method:
    """A way to decode, as `label` says it; `steps` and `block` (length) None for one token a step, one block."""

    label: str
    rule: CommitRule
    refinement: LatentRefinement | None = None
    cache: Caching | None = None
    steps: int | None = None
    block: int | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments of :func:`fastsample.decode_masked`."""
        return {
            "rule": self.rule,
            "refinement": self.refinement,
            "cache": self.cache,
            "steps": self.steps,
            "block_length": self.block,
        }

    @property
    def pipeline_settings(self) -> dict[str, Any]:
        """The same as :class:`fastsample.MaskedDiffusionPipeline` names them."""
        settings = self.settings
        return {"num_inference_steps": settings.pop("steps"), **settings}


def parse_method(text: str) -> Method:
    """A method from `rule` or `added+..+rule`, each `name` or `name:key=value,key=value`; several values with /.

    Any part takes steps= and block=. Without a rule, prophet stands on low-confidence and lrd on entropy, as in the
    papers, and checked on threshold. Raises ValueError that names the part.
    """
    rule: CommitRule | None = None
    parts = [_read(part, text) for part in text.strip().split("+")]
    run = {key: value for _, options in parts for key, value in options.items() if key in RUN_OPTIONS}
    parts = [(name, {key: value for key, value in own.items() if key not in RUN_OPTIONS}) for name, own in parts]
    names = [name for name, _ in parts]
    if names[-1] not in RULES:
        rule = Entropy() if "lrd" in names else LowConfidence() if "prophet" in names else Checked().base
    if len(set(names)) < len(names) or any(name in RULES for name in names[:-1]):
        raise ValueError(f"rule = {text!r}: write what is added before one rule, each once, as in prophet+threshold")
    made: dict[str, Any] = {}
    for name, options in reversed(parts):
        if name in RULES:
            rule = _make(RULES[name], options, name)
        elif name in ("prophet", "checked"):
            assert rule is not None
            rule = _make(ADDED[name], {"base": rule, **options}, name)
        elif name == "lrd":
            made["refinement"] = _make(LatentRefinement, options, name)
        else:
            made["cache"] = _make(Caching, {"kind": name, **options}, name)
    for key, value in run.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{key} = {value} in {text!r}: give an integer of at least 1")
    assert rule is not None
    return Method(text.strip(), rule, **made, **run)


def _read(part: str, text: str) -> tuple[str, dict[str, Any]]:
    """Name and options of a part; ValueError for an unknown name."""
    name, colon, tail = part.strip().partition(":")
    known = [*RULES, *ADDED]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.3) or known
        raise ValueError(f"rule = {text!r}: {name!r} is none; did you mean {', '.join(near)}?")
    options = {key: _value(key, value) for key, value in parse_options(tail.split(",") if colon else [], part)}
    for key in {"base", "kind"} & options.keys():
        raise ValueError(f"option {key} = {options[key]} of {name}: the name says it; write a rule after a +")
    return name, options


def _value(key: str, value: Any) -> Any:
    """Several numbers with /; `after/13/4` is the region of 4 tokens after token 13."""
    if not isinstance(value, str) or "/" not in value:
        return value
    head, *numbers = value.split("/")
    try:
        if key == "region" and head == "after":
            *separator, length = map(int, numbers)
            return After(tuple(separator), length)
        kind = int if key == "region" else float
        return tuple(map(kind, [head, *numbers]))
    except ValueError:
        raise ValueError(f"{key} = {value!r}: give numbers with / between them") from None


def _make(cls: type, options: dict[str, Any], name: str) -> Any:
    known = inspect.signature(cls).parameters
    for key, value in options.items():
        if key in known and str(known[key].annotation).startswith("int") and not isinstance(value, int):
            raise ValueError(f"option {key} = {value} of {name}: give an integer")
        if key not in known:
            own = ", ".join(key for key in known if key not in ("base", "kind")) or "none"
            raise ValueError(
                f"option {key} = {value} of {name}: its options are {own} (and {', '.join(RUN_OPTIONS)})"
            )
    try:
        return cls(**options)
    except TypeError as error:
        raise ValueError(f"options of {name}: {error}") from None
