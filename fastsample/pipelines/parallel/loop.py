"""What a pipeline's sampling loop decides by the number of the step or the timestep, read from its source.

In parallel the loop's index counts sweeps, not steps, and one pass through its body serves many timesteps; a pipeline
that does more with either than report progress would silently do the wrong thing.
"""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback

REPORTING = ("callback", "progress_bar", "xm.", "set_state", "cache_context")
"""What statements may hand the index to: callbacks and progress are counted by committed steps; guiders and caches
that act on it are refused."""

NEUTRAL: dict[str, dict[str, Any]] = {
    "controlnet_keep": {"control_guidance_start": 0.0, "control_guidance_end": 1.0},
    "cfg_trunc_ratio": {"cfg_trunc_ratio": 1.0},
    "adapter_conditioning_factor": {"adapter_conditioning_factor": 1.0},
    "should_skip_layers": {"skip_guidance_layers": None},
    "old_pred_original_sample": {},  # of CogVideoX's own scheduler, whose steps show that they differ
}
"""Decisions by the index that do nothing as long as these arguments of the call have these values."""


def step_decision(pipeline: type, arguments: Mapping[str, Any]) -> str:
    """What the loop of `pipeline.__call__` decides by the step, for a call with `arguments`; "" when nothing."""
    callback = arguments.get("callback_on_step_end")
    if isinstance(callback, (PipelineCallback, MultiPipelineCallbacks)):
        return f"{type(callback).__name__} changes the pipeline at a step of its own"
    if arguments.get("callback") is not None:
        return "callback= is called with the number of a pass of the loop: use callback_on_step_end="
    source = _source(pipeline)
    if source is None:
        return f"the source of {pipeline.__name__}.__call__ cannot be read, so its loop cannot be checked"
    for statement in _decisions(source):
        names = [name for name in NEUTRAL if name in statement]
        if not any(_neutral(NEUTRAL[name], arguments) for name in names):
            return f"{pipeline.__name__} decides by the step: {statement.splitlines()[0][:80]}"
    return ""


def _neutral(wanted: Mapping[str, Any], arguments: Mapping[str, Any]) -> bool:
    def holds(value: Any, neutral: Any) -> bool:
        return all(part == neutral for part in value) if isinstance(value, (list, tuple)) else value == neutral

    return all(holds(arguments.get(name, neutral), neutral) for name, neutral in wanted.items())


def _source(pipeline: type) -> str | None:
    try:
        return textwrap.dedent(inspect.getsource(inspect.unwrap(pipeline.__call__)))  # type: ignore[operator]
    except (OSError, TypeError):
        return None


@functools.lru_cache(maxsize=64)
def _decisions(source: str) -> tuple[str, ...]:
    """The statements and conditions of the loops around `scheduler.step` that read the loop's index."""
    found: list[str] = []
    for loop in ast.walk(ast.parse(source)):
        if not isinstance(loop, ast.For) or not _steps(loop):
            continue
        target = loop.target
        if isinstance(target, ast.Tuple) and isinstance(target.elts[0], ast.Name):
            found += [ast.unparse(node) for node in _readers(loop.body, target.elts[0].id)]
    return tuple(found)


def _steps(loop: ast.For) -> bool:
    """Whether the loop itself, and no loop inside it, calls the scheduler's step."""
    inner = [node for child in loop.body for node in ast.walk(child) if isinstance(node, ast.For)]
    return "scheduler.step(" in ast.unparse(loop) and not any(
        "scheduler.step(" in ast.unparse(node) for node in inner
    )


def _readers(body: list[ast.stmt], index: str) -> Iterator[ast.AST]:
    """Statements and conditions of `body` that read `index` for more than reporting."""
    for statement in body:
        if not any(isinstance(node, ast.Name) and node.id == index for node in ast.walk(statement)):
            continue
        if isinstance(statement, ast.If):
            if _reads(statement.test, index) and not all(_reports(child) for child in statement.body):
                yield statement
            else:
                yield from _readers([*statement.body, *statement.orelse], index)
        elif isinstance(statement, (ast.With, ast.For)):
            yield from _readers(statement.body, index)
        elif not _reports(statement):
            yield statement


def _reads(node: ast.AST, name: str) -> bool:
    return any(isinstance(part, ast.Name) and part.id == name for part in ast.walk(node))


def _reports(statement: ast.stmt) -> bool:
    """Whether a statement only tells callbacks, guiders or the progress bar."""
    if isinstance(statement, ast.If):
        return all(_reports(child) for child in [*statement.body, *statement.orelse])
    text = ast.unparse(statement)
    return any(word in text for word in REPORTING) or text.startswith("step_idx = ")
