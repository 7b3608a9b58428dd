"""Tuned tables of one model as a JSON file: by evaluations and guidance, with what each was measured to gain."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fastsample.cache import replacing
from fastsample.schedules.base import NoiseSchedule
from fastsample.tables.reading import read_json
from fastsample.tables.table import Table, fields_of, output_of

BUNDLED = Path(__file__).parents[1] / "presets"
"""Where the presets of the bundled models are."""
FORMAT = 1
"""Of the files; another one is refused."""
STAGES = ("untuned", "grid", "rows", "joint")
"""How far an entry's table is tuned: not at all, its grid, then its weights row by row, then all together."""
OWN_WEIGHTS = STAGES[:2]
"""Those at which the weights are the solver's own, so that the grid says all of the table."""
MARGINALS = 1e-6
"""By how much a step may miss the marginals, relative to its weights."""


@dataclass(frozen=True)
class Compared:
    """Errors of the untuned and the tuned table on the same `pairs` of prompt and seed, relative to the spread.

    They are root mean squares of the distance to the converged latents; the medians over the pairs tell whether a few
    samples rule them.
    """

    pairs: int
    untuned: float
    tuned: float
    untuned_median: float
    tuned_median: float


@dataclass(frozen=True)
class Entry:
    """A table of `evaluations` at `guidance`, and how it came about.

    `solver`, `options` and `grid` are the base of the table, `untuned` the best that is not tuned; `stage`, one of
    STAGES, is that of the table, `tried` that of the one checked. It is meant for guidance from `least` to `most`.
    `tune`, `validation` and `final` are errors on the pairs that it was fitted on, chosen on and checked on, None
    where there were too few to tune; `upper` is the upper end of the bootstrap of the final ratio, `teacher_error`
    how far trajectories of half the teacher's steps are off. `calls` are the guided evaluations spent on it alone,
    those of the trajectories not among them; `verdict` says in words what was kept.
    """

    evaluations: int
    guidance: float
    least: float
    most: float
    solver: str
    options: str
    grid: str
    untuned: str
    stage: str
    tried: str
    tune: Compared | None
    validation: Compared | None
    final: Compared | None
    upper: float | None
    teacher_error: float | None
    calls: int
    verdict: str
    table: Table

    def __post_init__(self) -> None:
        if self.stage not in STAGES:
            raise ValueError(f"stage = {self.stage!r}: use one of {', '.join(STAGES)}")
        if self.table.nfe != self.evaluations:
            raise ValueError(f"evaluations = {self.evaluations}: the table makes {self.table.nfe}")
        if self.table.stochastic:
            raise ValueError(f"solver = {self.solver!r}: the table draws noise, which no preset's does")
        check_marginals(self.table)


@dataclass(frozen=True)
class Preset:
    """The entries of one model; made by `fastsample.tune`, read by `fastsample.load_preset`.

    `kind` and `prediction_type` are those of its noise schedule and its network, `schedule` and `model` hashes of
    the one and of the denoisers' weights. Raises ValueError where a table is of another prediction type, or misses
    the marginals.
    """

    format: int
    kind: str
    prediction_type: str
    schedule: str
    model: str
    model_name: str
    versions: Mapping[str, str]
    entries: tuple[Entry, ...]

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise ValueError(f"format = {self.format}: this version reads {FORMAT}; tune again")
        if not self.entries:
            raise ValueError("entries = []: a preset has at least one; tune again")
        keys = [(entry.evaluations, entry.guidance) for entry in self.entries]
        if len(set(keys)) < len(keys):
            raise ValueError(f"entries are of (evaluations, guidance) {keys}: each may be there once")
        for entry in self.entries:
            if entry.table.prediction_type != self.prediction_type:
                raise ValueError(
                    f"entry of {entry.evaluations} evaluations: its table is of {entry.table.prediction_type!r}, the "
                    f"preset of {self.prediction_type!r}"
                )

    @property
    def guidances(self) -> tuple[float, ...]:
        """The guidance scales that there are entries of, rising."""
        return tuple(sorted({entry.guidance for entry in self.entries}))

    def at(self, guidance: float) -> Preset:
        """The entries of one guidance scale: the nearest there is. :meth:`covers` says whether it is meant for it."""
        nearest = min(self.guidances, key=lambda own: abs(own - guidance))
        return replace(self, entries=tuple(entry for entry in self.entries if entry.guidance == nearest))

    def covers(self, guidance: float) -> bool:
        """Whether the entries of the nearest guidance are meant for this one."""
        return all(entry.least <= guidance <= entry.most for entry in self.at(guidance).entries)

    def entry(self, evaluations: int) -> Entry | None:
        """The entry of so many evaluations; None where there is none. ValueError at entries of several guidances."""
        if len(self.guidances) > 1:
            raise ValueError(
                f"preset has tables for guidance {', '.join(f'{one:g}' for one in self.guidances)}: choose one by "
                "preset_guidance=.. or load_preset(.., guidance=..)"
            )
        return next((entry for entry in self.entries if entry.evaluations == evaluations), None)

    def check(self, schedule: NoiseSchedule, prediction_type: str) -> None:
        """Raise ValueError where this is of another noise schedule or prediction type than a network's."""
        if prediction_type != self.prediction_type:
            raise ValueError(
                f"preset is of a network that predicts {self.prediction_type!r}, this one {prediction_type!r}: tune "
                "this one"
            )
        if schedule_digest(schedule) != self.schedule:
            raise ValueError(
                f"preset is of another noise schedule ({self.kind}, {self.schedule[:8]}) than this model "
                f"({schedule.kind}, {schedule_digest(schedule)[:8]}): tune it"
            )

    def to_json(self) -> str:
        """This as JSON text; :meth:`from_json` gives an equal preset back, to the last digit."""
        return json.dumps(self, default=fields_of, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Preset:
        """The preset that :meth:`to_json` wrote; ValueError, in one line, on any other text."""
        return read_json(cls, text)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON file, whole or not at all."""
        with replacing(Path(path)) as partial:
            partial.write_text(self.to_json() + "\n", encoding="utf-8")


def read_preset(source: Preset | str | os.PathLike[str]) -> Preset:
    """A preset, from a path, a bundled model's name, or its JSON text. ValueError, in one line, where it is none."""
    if isinstance(source, Preset):
        return source
    if isinstance(source, str) and source.lstrip().startswith("{"):
        return Preset.from_json(source)
    if not isinstance(source, (str, os.PathLike)):
        raise ValueError(f"preset = {source!r:.60}: give a path, or what load_preset returned")
    bundled = {path.stem: path for path in sorted(BUNDLED.glob("*.json"))}
    path = bundled.get(str(source), Path(source))
    if not path.is_file():
        names = ", ".join(bundled) or "no bundled model has one"
        raise ValueError(f"preset = {str(path)!r} is no file: give one that tune wrote, or a bundled model ({names})")
    try:
        return Preset.from_json(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"preset = {str(path)!r}: {error}") from None


def check_marginals(table: Table) -> None:
    """Raise ValueError unless each step takes constant data, and constant noise, from marginal to marginal."""
    outputs = [output_of(step.node, table.prediction_type, 1.0, 1j) for step in table.steps]
    first = table.steps[0].node
    samples = table.recurrence(complex(first.alpha, first.sigma), outputs, [0.0] * table.nfe)
    for step, sample in zip(table.steps, samples[1:], strict=True):
        weights = [step.next.sample, step.next.output, *step.next.history, *step.next.states.values()]
        miss = abs(sample - complex(step.target.alpha, step.target.sigma))
        if not miss <= MARGINALS * max(1.0, *map(abs, weights)):
            raise ValueError(
                f"step {step.node.time:g} -> {step.target.time:g}: marginal check failed, constant data and noise "
                f"miss theirs by {miss:.3g}; the file was changed, tune again"
            )


def schedule_digest(schedule: NoiseSchedule) -> str:
    """A hash of what a noise schedule is: its kind, and its log-SNR along the times of training, to 6 digits."""
    times = np.linspace(schedule.clean_time, schedule.noise_time, 101)[1:-1]
    lams = [f"{lam:.6g}" for lam in schedule.lam(times)]
    known = (schedule.kind, schedule.train_steps, lams)
    return hashlib.sha256(repr(known).encode()).hexdigest()[:16]
