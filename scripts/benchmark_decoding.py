"""Every way to decode the bundled language model on problems of the test split, text by text; then tables of it.

    python scripts/benchmark_decoding.py run --out benchmarks/decoding --device cuda
    python scripts/benchmark_decoding.py report --out benchmarks/decoding

`run` keeps each text with its forwards, its risk and the tokens evaluated in OUT/texts.npz; a rule that is there
already is not run again. `report` needs no model: the tables of both sets, differences problem by problem with their
standard errors, wrong texts over the model's own risk, and what a plan from a few texts predicts of the others.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastsample.bench import style
from fastsample.bench.context import environment
from fastsample.bench.naming import rule_name
from fastsample.bench.report import markdown_table
from fastsample.decoding import decode_masked
from fastsample.decoding.plan import CANDIDATES, Texts, weigh
from fastsample.demo.language.loading import load_language_model
from fastsample.demo.language.sums import PROMPT_LENGTH, RESPONSE_LENGTH, VOCABULARY, Sum, problems
from fastsample.names.rules import parse_method

SETS = {"table": (1, 512), "fresh": (2024, 1024)}
"""Seed and number of problems: of the table that has been looked at while rules were made, and of none."""
SOFT = "lrd:refine_steps=0,settled=0+threshold:confidence="
FRESH = [
    *("low-confidence", "checked", "checked:form=rows", "factor", "factor:factor=0.6", "factor:factor=0.3", "risk"),
    *("risk:budget=0.2", "risk:budget=0.05", "threshold:confidence=0.99", "threshold:confidence=0.95", "threshold"),
    *(f"{SOFT}{confidence}" for confidence in (0.99, 0.95, 0.9)),
    *("checked+factor", "risk:budget=0.02", "risk:budget=0.5", "factor:factor=0.1", "threshold:confidence=0.8"),
    *("punt", "klass", "credit", "wino", "wino:threshold=0.9,threshold_back=0.9", "hierarchy", "entropy-bounded"),
]
TABLE = [
    *FRESH,
    *(f"low-confidence:steps={steps}" for steps in (48, 24, 12)),
    *("margin:steps=24", "entropy:steps=24", "low-confidence:steps=24,alg_temp=0.1", "entropy:steps=24,alg_temp=0.1"),
    *("random:steps=24", "origin:steps=24", "threshold:confidence=0.7", "threshold:confidence=0.5"),
    *("entropy-bounded:gamma=0.01", "entropy-bounded:gamma=0.5", "klass:kl=0.1,history=1", "credit:confidence=0.99"),
    *("punt:epsilon=0.001", "prophet", "prophet:region=81/5", "prophet:thresholds=12/12/12"),
    *("prophet:thresholds=15/15/15", "prophet:thresholds=15/15/15,progress=tokens+threshold:confidence=0.99"),
    *("lrd", "lrd:mixing=0", "threshold:confidence=0.9,block=32", "prefix+threshold:confidence=0.9,block=32"),
    "dual+threshold:confidence=0.9,block=32",
]
RULES = {"table": TABLE, "fresh": FRESH}
TIMED = ["low-confidence", "factor:factor=0.3", "risk", "checked", "checked:form=rows", f"{SOFT}0.99"]


def asked(name: str) -> list[Sum]:
    """The problems of a set."""
    seed, count = SETS[name]
    return list(itertools.islice(problems(seed, test=True), count))


class Bench:
    """Texts by each rule, kept in a file."""

    def __init__(self, out: Path, device: str, model: Path | None, seconds: float) -> None:
        self.file, self.until = out / "texts.npz", time.perf_counter() + seconds
        self.model, self.tokenizer = load_language_model(torch.float32, device, folder=model)
        self.kept = dict(np.load(self.file)) if self.file.exists() else {}
        (out / "environment.json").write_text(json.dumps(environment(self.model.device), indent=2) + "\n")

    def prompts(self, asked: list[Sum]) -> torch.Tensor:
        ids = torch.tensor(self.tokenizer([problem.prompt for problem in asked]).input_ids)
        return ids.to(self.model.device)

    def decode(self, prompts: torch.Tensor, rule: str, first: int = 0) -> Any:
        return decode_masked(
            self.model, prompts, gen_length=RESPONSE_LENGTH, mask_token_id=self.tokenizer.mask_token_id,
            eos_token_id=self.tokenizer.eos_token_id,
            generator=[torch.Generator().manual_seed(first + row) for row in range(len(prompts))],
            **parse_method(rule).settings,
        )  # fmt: skip

    def run(self, name: str, batch: int) -> None:
        """A set by all its rules, while there is time."""
        prompts = self.prompts(asked(name))
        for rule in RULES[name]:
            key = f"{name}|{rule}"
            if f"{key}|texts" in self.kept or time.perf_counter() > self.until:
                continue
            texts, risk, forwards, positions = [], [], [], 0
            for begin in range(0, len(prompts), batch):
                found, ledger = self.decode(prompts[begin : begin + batch], rule, begin)
                texts.append(found[:, PROMPT_LENGTH:].to("cpu", torch.uint8).numpy())
                risk.append(ledger.risk.cpu().numpy())
                forwards += ledger.row_forwards
                positions += ledger.positions
            evaluated = positions / (len(prompts) * (PROMPT_LENGTH + RESPONSE_LENGTH))
            values = {"texts": np.concatenate(texts), "risk": np.concatenate(risk), "forwards": np.array(forwards)}
            self.kept |= {f"{key}|{field}": value for field, value in values.items()}
            self.kept[f"{key}|evaluated"] = np.array(evaluated)
            print(f"{key}: {np.mean(forwards):.2f} forwards", flush=True)

    def time(self, repeats: int = 5) -> None:
        """Milliseconds a text at batch 1 and 8, the median of runs, after one."""
        prompts = self.prompts(asked("table")[: 8 * repeats])
        for rule in TIMED:
            for size in (1, 8):
                if time.perf_counter() > self.until:
                    return
                laps = []
                for turn in range(repeats):
                    _, ledger = self.decode(prompts[turn * size : (turn + 1) * size], rule)
                    laps.append(1e3 * ledger.seconds / size)
                self.kept[f"time|{rule}|{size}"] = np.array(sorted(laps[1:])[(repeats - 1) // 2])


class Kept:
    """What the file has of a set."""

    def __init__(self, kept: dict[str, Any], name: str) -> None:
        self.name, self._kept = name, kept
        self.rules = [rule for rule in RULES[name] if f"{name}|{rule}|texts" in kept]
        self._asked = asked(name)
        self.right = {rule: self._judge(rule) for rule in self.rules}

    def of(self, rule: str, field: str) -> Any:
        return self._kept[f"{self.name}|{rule}|{field}"]

    def texts(self, rule: str, rows: slice = slice(None)) -> Texts:
        """As the planner takes them."""
        tokens, risk = self.of(rule, "texts")[rows], self.of(rule, "risk")[rows]
        return Texts(
            torch.from_numpy(tokens).long(), torch.from_numpy(risk).double(),
            float(self.of(rule, "forwards")[rows].mean()), float(self.of(rule, "evaluated")),
        )  # fmt: skip

    def _judge(self, rule: str) -> Any:
        """bool [2, N]: the answer, and the whole text."""
        written = ("".join(VOCABULARY[token] for token in row) for row in self.of(rule, "texts"))
        return np.array([one.judge(text) for one, text in zip(self._asked, written, strict=True)]).T


def share(values: Any) -> str:
    mean = float(np.mean(values))
    return f"{mean:.1%} ± {math.sqrt(mean * (1 - mean) / len(values)):.1%}"


def table(kept: Kept, times: dict[str, Any]) -> str:
    """A row a rule; forwards are compared with those of the first."""
    rows = []
    for rule in kept.rules:
        forwards, risk = kept.of(rule, "forwards"), kept.of(rule, "risk").mean()
        ms = [f"{float(times[key]):.1f}" if (key := f"time|{rule}|{size}") in times else "" for size in (1, 8)]
        rows.append([
            f"`{rule}`", share(kept.right[rule][0]), share(kept.right[rule][1]),
            f"{forwards.mean():.2f} ± {forwards.std():.2f}", f"{float(kept.of(rule, 'evaluated')):.2f}",
            f"{kept.of(kept.rules[0], 'forwards').mean() / forwards.mean():.1f}x", f"{risk:.3f}",
            *ms,
        ])  # fmt: skip
    head = ["rule", "answers", "whole texts", "forwards", "evaluated", "fewer", "risk", "ms, batch 1", "ms, batch 8"]
    return markdown_table(head, rows)


def differences(kept: Kept, ours: list[str], theirs: list[str]) -> str:
    """Whole texts, problem by problem: points with their standard error."""
    rows = []
    for rule in ours:
        for other in theirs:
            if rule not in kept.rules or other not in kept.rules or rule == other:
                continue
            change = kept.right[rule][1].astype(float) - kept.right[other][1]
            forwards = [kept.of(one, "forwards").mean() for one in (rule, other)]
            rows.append([
                f"`{rule}`", f"`{other}`",
                f"{100 * change.mean():+.2f} ± {100 * change.std() / math.sqrt(len(change)):.2f}",
                f"{forwards[0]:.2f}", f"{forwards[1]:.2f}",
            ])  # fmt: skip
    return markdown_table(["rule", "against", "points", "forwards", "its forwards"], rows)


def plans(kept: Kept, budgets: tuple[float, ...] = (0.005, 0.01, 0.02, 0.05), count: int = 64) -> str:
    """Plans from each part of `count` texts: what they predict, and what is so of the texts of all other parts."""
    rules = {name: rule for name, rule in CANDIDATES.items() if name in kept.rules and name != "checked:form=rows"}
    total, rows = len(kept.of("low-confidence", "texts")), []
    for budget in budgets:
        names, predicted, happened, saved = [], [], [], []
        for begin in range(0, total, count):
            part = slice(begin, begin + count)
            found = {name: kept.texts(name, part) for name in rules}
            chosen, reference, _ = weigh(kept.texts("low-confidence", part), found, rules, budget)
            others = np.ones(total, dtype=bool)
            others[part] = False
            same = (kept.of(chosen.name, "texts") == kept.of("low-confidence", "texts")).all(-1)[others]
            names.append(chosen.name)
            predicted.append(chosen.predicted)
            happened.append(same.mean())
            saved.append(reference.forwards / kept.of(chosen.name, "forwards")[others].mean())
        error = np.array(predicted) - np.array(happened)
        most = max(set(names), key=names.count)
        rows.append([
            f"{budget:.1%}", f"`{most}` ({names.count(most)} of {len(names)})", f"{np.mean(predicted):.2%}",
            f"{np.mean(happened):.2%}", f"{100 * error.mean():+.2f}", f"{100 * np.abs(error).mean():.2f}",
            f"{(np.array(happened) >= 1 - budget).mean():.0%}", f"{np.mean(saved):.1f}x",
        ])  # fmt: skip
    head = ["budget", "chosen most often", "predicted", "on others", "mean error", "mean |error|", "within", "fewer"]
    return markdown_table(head, rows)


@style.applied()
def risk_plot(kept: Kept, file: Path) -> None:
    """Wrong texts over the model's own risk: a line a rule through its settings, the others in grey."""
    figure, (axis,) = style.panels(1, height=5.2, named=0.16)
    points = {
        rule: (float(kept.of(rule, "risk").mean()), float(1 - kept.right[rule][1].mean())) for rule in kept.rules
    }
    families: dict[str, list[str]] = {}
    for rule in kept.rules:
        families.setdefault(" + ".join(part.partition(":")[0] for part in rule.split("+")), []).append(rule)
    count = len(kept.right[kept.rules[0]][1])

    def mark(rule: str, **looks: Any) -> None:
        risk, wrong = points[rule]
        axis.errorbar(risk, wrong, math.sqrt(wrong * (1 - wrong) / count), elinewidth=0.9, **looks)

    full = kept.rules[0]
    several = {name: rules for name, rules in families.items() if len(rules) > 1}
    alone = [rules[0] for rules in families.values() if len(rules) == 1 and rules[0] != full]
    mark(full, fmt="o", color=style.PEERS[0])
    for rule in alone:
        mark(rule, fmt="o", color=style.OTHERS, zorder=1)
    named, lines = [(*points[full], "a token a step", style.PEERS[0])], []
    for index, (name, rules) in enumerate(several.items()):
        line, looks = sorted(points[rule] for rule in rules), style.line(index)
        axis.plot(*zip(*line, strict=True), color=looks["color"], lw=1.0)
        for rule in rules:
            mark(rule, fmt="o", color=looks["color"])
        named.append((*line[-1], f"{name}, {len(rules)} settings", looks["color"]))
        lines += [*line[:-1], *style.between(line)]
    axis.set(xscale="log", yscale="log", ylabel="wrong texts, share (lower is better)")
    axis.set_xlabel("what the model itself expects: mean sum of 1 - confidence over commits")
    style.decimals(axis)
    style.decimals(axis, "x")
    style.name_points(axis, named, [*(points[rule] for rule in alone), *lines])
    style.note(
        figure,
        f"{count} problems; error bars: standard error. Named are the rules that were run with several settings, "
        f"joined by a line, and a token a step. Light grey: {', '.join(map(rule_name, alone))}.",
    )
    style.save(figure, file)


def report(out: Path) -> None:
    """OUT/results.md and OUT/risk.png."""
    everything = dict(np.load(out / "texts.npz"))
    sets = {name: Kept(everything, name) for name in SETS}
    best = ["checked", "checked:form=rows", f"{SOFT}0.99", "factor:factor=0.3"]
    others = ["low-confidence", "factor", "factor:factor=0.6", "risk:budget=0.2", "risk", "threshold:confidence=0.99"]
    where = json.loads((out / "environment.json").read_text())
    parts = [
        f"`python scripts/benchmark_decoding.py run`, {where['device']}, torch {where['torch']}.",
        f"## {SETS['table'][1]} problems\n\n{table(sets['table'], everything)}",
        f"## {SETS['fresh'][1]} problems that nothing was tuned on\n\n{table(sets['fresh'], {})}",
        f"## Differences, problem by problem, on these\n\n{differences(sets['fresh'], best, others)}",
        f"## Plans from 64 of these texts, and the texts of the others\n\n{plans(sets['fresh'])}",
    ]
    (out / "results.md").write_text("\n\n".join(part.rstrip() for part in parts) + "\n")
    risk_plot(sets["fresh"], out / "risk.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["run", "report"])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/decoding"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", type=Path, help="a folder of scripts/train_language.py; default: the bundled one")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=math.inf, help="start no rule after so many")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.stage == "report":
        report(args.out)
        return
    bench = Bench(args.out, args.device, args.model, args.seconds)
    for name in reversed(SETS):
        bench.run(name, args.batch)
    bench.time()
    np.savez_compressed(bench.file, **bench.kept)


if __name__ == "__main__":
    main()
