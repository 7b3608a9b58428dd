"""A pipeline under a recipe: its calls, what they cost, and the way back."""

from __future__ import annotations

import contextlib
import inspect
import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from fastsample.pipelines.configured import configured
from fastsample.pipelines.counting import count
from fastsample.pipelines.guidance import GuidanceCut
from fastsample.pipelines.layers import unlayered
from fastsample.pipelines.overlay import class_beneath, overlaid
from fastsample.pipelines.request import guidance_argument
from fastsample.pipelines.swap import scheduled, swapped
from fastsample.pipelines.tgate import TGate
from fastsample.sampling.ledger import Ledger
from fastsample.tables.preset import Preset
from fastsample.wording import counted

STEPS = "num_inference_steps"
PLACED = (STEPS, "timesteps", "sigmas")
"""Arguments of a call that say how many steps it makes."""


class Parts(Protocol):
    """What a run reads of its recipe."""

    @property
    def steps(self) -> int | None: ...
    @property
    def guidance_cut(self) -> GuidanceCut | None: ...
    @property
    def tgate(self) -> TGate | None: ...
    @property
    def parallel(self) -> Mapping[str, Any] | None: ...
    @property
    def tables(self) -> Preset | None: ...
    def scheduler(self, pipe: Any) -> Any: ...


@dataclass(frozen=True)
class RecipeSummary:
    """What calls under a recipe cost, all of them together.

    `evaluations` of the denoiser, each row of a batch once; `dropped` with guidance, and not made; `rounds` of them
    one after the other; `plain_seconds` and `plain_evaluations` of one call without the recipe, where
    :meth:`RecipeRun.measure_plain` made one.
    """

    calls: int
    evaluations: int
    dropped: int
    rounds: int
    seconds: float
    plain_seconds: float | None = None
    plain_evaluations: int | None = None

    def __str__(self) -> str:
        text = (
            f"{counted(self.calls, 'call')}: {counted(self.evaluations, 'evaluation')} in "
            f"{counted(self.rounds, 'round')}, {self.dropped} dropped with guidance; {self.seconds:.2f} s"
        )
        if self.plain_seconds is None or not self.calls:
            return text
        each = self.seconds / self.calls
        return (
            f"{text}, {each:.2f} s a call where a plain one took {self.plain_seconds:.2f} s and "
            f"{counted(self.plain_evaluations or 0, 'evaluation')}"
        )


class RecipeRun:
    """A pipeline under a recipe, in every thread; parallel sampling is for the thread that applied it.

    Leave the `with`, or call :meth:`remove`, and the pipeline is what it was, to the last bit: after an exception,
    too, and whatever other recipes are put on it and taken off meanwhile, in any order. A scheduler that was set
    meanwhile goes with the recipe's, with a warning. Networks that pipelines share are cut and gated for all of them.
    """

    def __init__(self, recipe: Parts, pipe: Any) -> None:
        check_pipeline(pipe, recipe.steps)
        self.recipe, self.pipe = recipe, pipe
        self._lock, self._thread = threading.Lock(), threading.current_thread()
        self._costs, self._rounds = Ledger(), 0
        self._calls, self._plain = 0, Plain()
        self._scheduler = recipe.scheduler(pipe)
        self._own = None if self._scheduler is None else scheduled(pipe)[0].scheduler
        with contextlib.ExitStack() as undo:
            if self._scheduler is not None:
                undo.enter_context(swapped(pipe, self._scheduler))
            gate, cut, parallel = recipe.tgate, recipe.guidance_cut, recipe.parallel
            self._setup = undo.enter_context(configured(pipe, gate=gate, cut=cut, parallel=parallel))
            undo.enter_context(overlaid(pipe, everywhere=True, __call__=self._call))
            self._undo = undo.pop_all()

    def remove(self) -> None:
        """Leave the pipeline as it was before."""
        self._undo.close()

    def measure_plain(self, *args: Any, **kwargs: Any) -> Any:
        """What the pipeline returns without the recipe, whose time and evaluations the summary then compares."""
        call: Any = class_beneath(self.pipe).__call__  # type: ignore[operator]
        with configured(self.pipe, self._own), unlayered(), count(self.pipe, 1) as ledger:
            result = call(self.pipe, *args, **kwargs)
        self._plain = Plain(ledger.seconds, ledger.rows)
        return result

    def summary(self) -> RecipeSummary:
        """What the calls since the recipe was applied cost; `str` of it says so in words."""
        costs, plain = self._costs, self._plain
        return RecipeSummary(
            self._calls, costs.rows, costs.dropped, self._rounds, costs.seconds, plain.seconds, plain.rows
        )

    def __enter__(self) -> RecipeRun:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def _call(self, beneath: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The pipeline's call, with the recipe's steps and the tables of its guidance, counted."""
        signature = inspect.signature(beneath)
        given = signature.bind_partial(*args, **kwargs).arguments
        steps = self.recipe.steps
        if steps is not None and not any(given.get(name) is not None for name in PLACED):
            kwargs[STEPS] = steps
        run = self._setup.run if threading.current_thread() is self._thread else None
        rounds = run.rounds if run is not None else 0
        # the call's scheduler stays, whoever removes the recipe meanwhile
        with configured(self.pipe, self._scheduler_for(signature, given)), count(self.pipe, 1) as ledger:
            result = beneath(*args, **kwargs)
        with self._lock:
            self._calls += 1
            self._costs.rows += ledger.rows
            self._costs.dropped += ledger.dropped
            self._costs.seconds += ledger.seconds
            swept = run.rounds - rounds if run is not None else 0
            self._rounds += swept or ledger.forward_calls
        return result

    def _scheduler_for(self, signature: inspect.Signature, given: Mapping[str, Any]) -> Any:
        """The recipe's scheduler, told the call's guidance; warns where the preset is not for it.

        Where another was set since, by hand or by a later recipe, that one; None where the recipe has none.
        """
        if self._scheduler is None:
            return None
        now = scheduled(self.pipe)[0].scheduler
        preset = self.recipe.tables
        name = guidance_argument(self.pipe, given.get("negative_prompt"))
        if now is not self._scheduler or preset is None or name is None:
            return now
        guidance = given.get(name, signature.parameters[name].default)
        guidance = float(guidance) if isinstance(guidance, (int, float)) else 1.0
        if not preset.covers(guidance):
            known = ", ".join(f"{one:g}" for one in preset.guidances)
            warnings.warn(f"preset: guidance {guidance:g} is far from those it was tuned for ({known})", stacklevel=4)
        return self._scheduler.from_config(self._scheduler.config, preset_guidance=guidance)


def check_pipeline(pipe: Any, steps: int | None = None) -> None:
    """Raise ValueError for what is no pipeline, and for steps where its calls take none."""
    parts = getattr(pipe, "components", None)
    if not callable(pipe) or not parts or isinstance(pipe, type) or getattr(pipe, "config", None) is None:
        kind = pipe.__name__ if isinstance(pipe, type) else f"a {type(pipe).__name__}"
        raise ValueError(f"pipe = {kind} is no pipeline of diffusers: load one with from_pretrained")
    if steps is not None and STEPS not in inspect.signature(class_beneath(pipe).__call__).parameters:
        kind = class_beneath(pipe).__name__
        raise ValueError(f"steps = {steps}: {kind} takes no {STEPS}; leave steps out, and say them in its calls")


@dataclass(frozen=True)
class Plain:
    """What a call without the recipe took; None where there was none."""

    seconds: float | None = None
    rows: int | None = None
