"""What was run, and where, from the results alone."""

from __future__ import annotations

from collections.abc import Sequence

from fastsample.bench.record import Result

TYPED = "Command"


def latest(results: Sequence[Result]) -> tuple[list[Result], list[str]]:
    """The results of the last one's weights, prompts, settings and machine, and a remark on those left out."""
    context = results[-1]["key"].split()[0]
    own = [result for result in results if result["key"].split()[0] == context]
    others = len(results) - len(own)
    if not others:
        return own, []
    return own, [
        f"The folder also holds {others} results of other prompts, weights, settings or machines: left out here."
    ]


def facts_of(results: Sequence[Result]) -> dict[str, list[str]]:
    """The commands, and the machines with their versions, each once."""
    typed = list(dict.fromkeys(result["command"] for result in results if result.get("command")))
    machines = list(dict.fromkeys(_machine(result["environment"]) for result in results))
    return {
        TYPED: typed or ["not in these results, which an earlier version wrote"],
        "Machine and versions": machines,
    }


def _machine(environment: Result) -> str:
    told = dict(environment)
    device, threads = told.pop("device", "unknown"), told.pop("threads", None)
    versions = ", ".join(f"{name} {value}" for name, value in told.items())
    return f"{device}, {threads} threads; {versions}" if threads else f"{device}; {versions}"
