"""What a sampling loop does with its denoiser's outputs, read from its source: its guidance branches, and when.

Pipelines of diffusers have their branches in one of two ways. They are copies in one batch, and the output is taken
apart: `if self.do_classifier_free_guidance: noise_pred_uncond, noise_pred_text = noise_pred.chunk(2)`. Or they are
calls: `if do_true_cfg: neg_noise_pred = self.transformer(..)`. The names say which branch is which, and the
conditions around, evaluated where the loop runs, whether there are any at this step.
"""

from __future__ import annotations

import ast
import functools
import itertools
import linecache
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from types import CodeType


class Branch(Enum):
    """What a guidance branch is evaluated for."""

    POSITIVE = "positive"
    NEGATIVE = "negative"
    OTHER = "other"  # perturbed attention, skipped layers, an image without text, ..


NEGATIVE_WORDS = {"neg", "negative", "uncond", "unconditional", "null"}
OTHER_WORDS = {"image", "img", "perturb", "perturbed", "skip", "stg", "modality"}
"""Parts of the names that pipelines give to the outputs of branches."""

BOTH = "cond_uncond"
"""What `cache_context` is given for a call that holds all branches."""

PERTURBED_ATTENTION = "_apply_perturbed_attention_guidance"
"""The method that takes the output apart where attention is perturbed."""

Path = tuple[ast.AST, ...]
"""A statement, after all that it is in, from the outermost on."""


@dataclass(frozen=True)
class Condition:
    """An `if` around a statement, which runs where the expression is `wanted`; and the names that it reads."""

    expression: CodeType
    wanted: bool
    names: frozenset[str]


@dataclass(frozen=True)
class Split:
    """A statement that takes an output apart: into which branches, in the order of the batch.

    Empty where it is not understood; `count` of them where only their names are not.
    """

    line: int
    branches: tuple[Branch, ...]
    conditions: tuple[Condition, ...]
    count: int = 0
    perturbed_attention: bool = False


@dataclass(frozen=True)
class Call:
    """A statement of a loop that calls a denoiser, and the branch that it is named for."""

    line: int
    branch: Branch
    conditions: tuple[Condition, ...]


@dataclass(frozen=True)
class Site:
    """A call of a denoiser, and what its loop does with the output."""

    call: Call
    splits: tuple[Split, ...]
    siblings: tuple[Call, ...]  # the loop's calls of the same denoiser, this one too
    assigned: frozenset[str]  # names whose values change in the loop
    returned: bool  # whether the output leaves the function


@functools.lru_cache(maxsize=128)
def read_site(code: CodeType, line: int) -> Site | None:
    """The call of a denoiser at `line` of a function; None where there is no source to read."""
    tree = _tree(code)
    path = _path_to(tree, line) if tree is not None else ()
    return _site(path) if path else None


def branch_named(name: str) -> Branch:
    """By the words of a variable's name, or of a `cache_context`."""
    words = set(name.lower().split("_"))
    if name == BOTH or not words & (NEGATIVE_WORDS | OTHER_WORDS):
        return Branch.POSITIVE
    return Branch.NEGATIVE if words & NEGATIVE_WORDS else Branch.OTHER


@functools.lru_cache(maxsize=16)
def _tree(code: CodeType) -> ast.AST | None:
    """The syntax tree of a function, with the line numbers of its file; None where there is none."""
    lines = linecache.getlines(code.co_filename)
    if not lines:
        return None
    whole = code.co_name == "<module>"
    first, last = (1, len(lines)) if whole else (code.co_firstlineno, max(_last_lines(code)))
    text = lines[first - 1 : last]
    nested = text[0][:1].isspace()
    try:
        tree = ast.parse("".join(["if True:\n", *text] if nested else text))
    except SyntaxError:  # a part of an expression: a lambda, a comprehension
        return None
    ast.increment_lineno(tree, first - 1 - nested)
    return tree.body[0].body[0] if nested else tree  # type: ignore[attr-defined,no-any-return]


def _last_lines(code: CodeType) -> Iterator[int]:
    yield code.co_firstlineno
    for _, last, _, _ in code.co_positions():
        yield last or 0
    for part in code.co_consts:
        if isinstance(part, CodeType):
            yield from _last_lines(part)


def _path_to(tree: ast.AST, line: int) -> Path:
    """The path to the innermost statement at `line`; empty where there is none."""
    for child in _statements(tree):
        if child.lineno <= line <= (child.end_lineno or child.lineno):
            return (tree, *(_path_to(child, line) or (child,)))
    return ()


def _statements(node: ast.AST) -> Iterator[ast.stmt]:
    """The statements right inside `node`, in order."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt):
            yield child
        elif isinstance(child, (ast.excepthandler, ast.match_case)):
            yield from _statements(child)


def _paths(path: Path) -> Iterator[Path]:
    """The paths to all statements inside the one at the end of `path`, in order."""
    for child in _statements(path[-1]):
        yield (*path, child)
        yield from _paths((*path, child))


def _site(path: Path) -> Site:
    statement = path[-1]
    loops = [place for place, node in enumerate(path[:-1]) if isinstance(node, (ast.For, ast.While))]
    region = path[: loops[-1] + 1] if loops else path[:1]
    inside = list(_paths(region))
    called = _called(statement)
    calls = tuple(_call(other) for other in inside if called and _called(other[-1]) == called)
    returns = [node for node in ast.walk(path[0]) if isinstance(node, ast.Return)]
    return Site(
        _call(path),
        tuple(split for split in _splits(inside, statement) if not _of_calls(split, calls)),
        calls,
        frozenset(name for other in inside for name in _targets(other[-1])) | frozenset(_targets(region[-1])),
        any(node is statement or _names(node) & set(_targets(statement)) for node in returns),
    )


def _of_calls(split: Split, calls: tuple[Call, ...]) -> bool:
    """Whether it takes apart what calls for different branches before it gave, put together."""
    before = {call.branch for call in calls if call.line < split.line}
    return Branch.POSITIVE in before and len(before) > 1


def _call(path: Path) -> Call:
    statement, context = path[-1], _context(path)
    assert isinstance(statement, ast.stmt)
    name = context.value if isinstance(context, ast.Constant) else next(iter(_targets(statement)), "")
    return Call(statement.lineno, branch_named(str(name)), _conditions(path))


def _context(path: Path) -> ast.expr | None:
    """What the `cache_context` around a statement is given."""
    for node in reversed(path):
        for item in node.items if isinstance(node, ast.With) else ():
            called = item.context_expr
            if isinstance(called, ast.Call) and ast.unparse(called.func).endswith("cache_context") and called.args:
                return called.args[0]
    return None


def _conditions(path: Path) -> tuple[Condition, ...]:
    found = []
    for node, child in itertools.pairwise(path):
        if isinstance(node, ast.If):
            found.append(Condition(_compiled(node.test), child not in node.orelse, frozenset(_names(node.test))))
    return tuple(found)


def _splits(inside: list[Path], call: ast.AST) -> Iterator[Split]:
    """The statements after `call` that take its output, or what is made of it, apart along the batch."""
    known = set(_targets(call))
    cuts: dict[str, str] = {}  # what takes the first part of an output, by the output
    for path in inside:
        statement = path[-1]
        if not isinstance(statement, ast.Assign) or statement.lineno < call.lineno:  # type: ignore[attr-defined]
            continue
        names, value = _targets(statement), statement.value
        if statement is not call and not _names(value) & known:
            continue
        known.update(names)
        if isinstance(value, ast.Call) and ast.unparse(value.func).endswith(PERTURBED_ATTENTION):
            yield Split(statement.lineno, (), _conditions(path), perturbed_attention=True)
        elif isinstance(value, ast.Call) and _along_batch(value) and "_" not in names:
            yield _split(names if isinstance(statement.targets[0], ast.Tuple) else [], path)
        elif isinstance(value, ast.Subscript) and isinstance(value.slice, ast.Slice) and len(names) == 1:
            output, part = ast.unparse(value.value), value.slice
            if part.step is None and part.upper is not None and part.lower is None:
                cuts[output] = names[0]
            elif part.step is None and part.upper is None and output in cuts:
                yield _split([cuts.pop(output), names[0]], path)
        elif isinstance(value, ast.Tuple) and any(_strided(part) for part in value.elts):
            yield Split(statement.lineno, (), _conditions(path))


def _split(names: list[str], path: Path) -> Split:
    words = [name.split("_") for name in names]
    common = set(words[0]).intersection(*words[1:]) if names else set()
    branches = tuple(branch_named("_".join(word for word in own if word not in common)) for own in words)
    understood = branches.count(Branch.POSITIVE) == 1 and len(branches) > 1
    line: int = path[-1].lineno  # type: ignore[attr-defined]
    return Split(line, branches if understood else (), _conditions(path), len(branches))


def _along_batch(call: ast.Call) -> bool:
    """Whether it is `x.chunk(2)`, `x.split(n)` or `torch.split(x, n)`, of the first dimension."""
    if not isinstance(call.func, ast.Attribute) or call.func.attr not in ("chunk", "split"):
        return False
    place = 2 if ast.unparse(call.func.value) == "torch" else 1
    dim = next((keyword.value for keyword in call.keywords if keyword.arg == "dim"), None)
    dim = call.args[place] if dim is None and len(call.args) > place else dim
    return dim is None or (isinstance(dim, ast.Constant) and dim.value == 0)


def _strided(value: ast.expr) -> bool:
    return isinstance(value, ast.Subscript) and isinstance(value.slice, ast.Slice) and value.slice.step is not None


def _called(statement: ast.AST) -> str:
    """The function whose result a statement takes, as it is written; "" where it is none."""
    value, found = getattr(statement, "value", None), ""
    while isinstance(value, (ast.Call, ast.Attribute, ast.Subscript)):
        if isinstance(value, ast.Call):
            found, value = ast.unparse(value.func), value.func
        else:
            value = value.value
    return found


def _targets(statement: ast.AST) -> list[str]:
    """The variables that a statement assigns, attributes by their own names."""
    targets = getattr(statement, "targets", None) or [getattr(statement, "target", None)]
    nodes = [node for target in targets if target is not None for node in ast.walk(target)]
    return [
        node.id if isinstance(node, ast.Name) else node.attr
        for node in nodes
        if isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Store)
    ]


def _names(node: ast.AST) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


def _compiled(expression: ast.expr) -> CodeType:
    return compile(ast.Expression(expression), "<condition>", "eval")
