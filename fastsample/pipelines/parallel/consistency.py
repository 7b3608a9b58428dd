"""A Picard consistency model (So et al. 2025, arXiv:2503.19731): changed weights of a denoiser, for the first sweeps.

From rough states the changed denoiser is to give the outputs of the sequential run. Its share in the weights falls
from 1 to 0 over the sweeps (the paper's model switching, section 4.3), so that the last ones are the denoiser's own,
and have its fixed point.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fastsample.fixed_point.updates import Increment, Secant, Update, make_update
from fastsample.sampling.replay import GraphedForward

FILE = "consistency.safetensors"
"""The weights in a folder."""

SWEEPS, NORMS, SLOPES = "sweeps", "norms", "slopes"
"""Beside the changes: the sweeps over which they fade, what identifies the weights that they are of, and [2, n]
lambdas with the slopes of the denoiser's outputs there, for its own first sweep."""

UP, DOWN, CHANGE = ".up", ".down", ".change"
"""After a parameter's name: the factors of its change, [out, r] and [r, in ..], or all of it."""

HOOKS = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
)


def delta(state: Mapping[str, Tensor], name: str, like: Tensor) -> Tensor:
    """The whole change of parameter `name`, of the shape of `like`, in the dtype that it is held in."""
    if name + CHANGE in state:
        return state[name + CHANGE].reshape(like.shape)
    return (state[name + UP] @ state[name + DOWN]).reshape(like.shape)


def changed_names(state: Mapping[str, Tensor]) -> list[str]:
    """The parameters that `state` changes, sorted."""
    return sorted({key.removesuffix(end) for key in state for end in (UP, CHANGE) if key.endswith(end)})


def norms(module: nn.Module, names: list[str]) -> Tensor:
    """The norms of these parameters, by which a model is told from others: casts leave them nearly as they are."""
    own = dict(module.named_parameters())
    return torch.stack([own[name].detach().float().norm() for name in names]).cpu()


def share_of(sweep: int, sweeps: int) -> float:
    """The changes' weight in sweep 0, 1, ..: lambda(k) = clip(1 - s k / K, 0, 1) of the paper, K / s = `sweeps`."""
    return max(0.0, 1.0 - sweep / sweeps)


class FromGuess(Increment):
    """Picard's sweeps, from the first guess of the system: what a consistency model's sweeps are."""

    copies = False


@dataclass(frozen=True)
class Consistency:
    """Changes of a denoiser's parameters by name, float32, and the sweeps over which their share falls to 0."""

    changes: dict[str, Tensor]
    sweeps: int
    slopes: Tensor | None = None

    def __post_init__(self) -> None:
        if self.sweeps < 1:
            raise ValueError(f"consistency_sweeps = {self.sweeps}: give 1 or more, or None for what the model says")

    def share(self, sweep: int) -> float:
        """The weight of the changes in sweep 0, 1, ..."""
        return share_of(sweep, self.sweeps)

    def own_update(self, iteration: str, lams: Sequence[float] | None) -> Update:
        """The rule of the denoiser's own sweeps, at steps of these lambdas: `iteration`, secant with known slopes."""
        if iteration != "secant" or self.slopes is None or lams is None:
            return make_update(iteration)
        at, slopes = self.slopes.double().numpy()
        return Secant(known=np.interp(lams, at, slopes))

    @classmethod
    def of(cls, source: Any, module: nn.Module, sweeps: int | None = None) -> Consistency:
        """Those of `source` for `module`: a folder or file, its tensors by name, or a whole model as `module` is.

        `sweeps`: instead of what the source says, and 2 where it does not. Raises ValueError where the source is
        none, or not for this module.
        """
        if sweeps is not None and (not isinstance(sweeps, int) or sweeps < 1):
            raise ValueError(f"consistency_sweeps = {sweeps!r}: give 1 or more, or None for what the model says")
        own = dict(module.named_parameters())
        if any(value.is_meta for value in own.values()):
            raise ValueError(f"consistency needs the weights of {type(module).__name__}, which are offloaded")
        if isinstance(source, nn.Module):
            return cls(_differences(own, dict(source.named_parameters())), sweeps or 2)
        state = source if isinstance(source, Mapping) else _read(source)
        names = changed_names(state)
        if not names:
            raise ValueError(f"consistency = {_named(source)} holds no changes of weights, as train_picard.py writes")
        if missing := [name for name in names if name not in own]:
            raise ValueError(f"consistency is for another model: {type(module).__name__} has no {missing[0]}")
        try:
            changes = {name: delta(state, name, own[name]).float() for name in names}
        except (RuntimeError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"consistency is for another model: {str(error).splitlines()[0]}") from None
        here, there = norms(module, names), state.get(NORMS)
        if there is not None and not (
            here.shape == there.shape and torch.allclose(here, there.float(), rtol=1e-2, atol=1e-3)
        ):
            raise ValueError(f"consistency is for another {type(module).__name__}, whose weights have other norms")
        return cls(changes, sweeps or int(state.get(SWEEPS, torch.tensor(2))), state.get(SLOPES))


def _differences(own: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if own.keys() != other.keys():
        name = min(own.keys() ^ other.keys())
        raise ValueError(f"consistency is another kind of model: only one of them has {name}")
    for name, value in own.items():
        if value.shape != other[name].shape:
            shapes = f"{tuple(other[name].shape)} instead of {tuple(value.shape)}"
            raise ValueError(f"consistency is another kind of model: {name} has shape {shapes}")
    return {name: (other[name].detach().to(value.device) - value.detach()).float() for name, value in own.items()}


def _read(source: Any) -> dict[str, Tensor]:
    if not isinstance(source, (str, Path)):
        raise ValueError(f"consistency = {_named(source)}: give a folder, its tensors by name, or a model")
    path = Path(source)
    path = path / FILE if path.is_dir() else path
    try:
        state: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError):
        raise ValueError(f"consistency = {str(source)!r}: no folder with a {FILE}, and no such file") from None
    return state


def _named(source: Any) -> str:
    return repr(source) if isinstance(source, (str, Path)) else type(source).__name__


class Twin:
    """Computes as `module` does with `consistency`'s share of change, and leaves it alone; its hooks are its own too.

    Parameters that are not changed are shared, and it is not compiled, nor made of graphs.
    """

    def __init__(self, module: nn.Module, consistency: Consistency) -> None:
        self._share = 0.0
        self._changes = []
        memo: dict[int, Any] = {id(value): value for value in (*module.parameters(), *module.buffers())}
        for name, value in module.named_parameters():
            if name in consistency.changes:
                twin = nn.Parameter(value.detach().clone(), requires_grad=False)
                memo[id(value)] = twin
                self._changes.append((value, twin, consistency.changes[name].to(value.device)))
        for hooks in _hooks(module):
            memo[id(hooks)] = hooks
        graphs = vars(module).get("forward")
        if isinstance(graphs, GraphedForward):
            memo[id(graphs)] = graphs
        self._module = copy.deepcopy(module, memo)
        if isinstance(graphs, GraphedForward):  # they are of the weights that they were made with
            del vars(self._module)["forward"]

    @torch.no_grad()
    def at(self, share: float) -> nn.Module:
        """The module with this share of the changes; until the next call."""
        if share != self._share:
            for value, twin, change in self._changes:
                twin.copy_(value.float() + share * change)
            self._share = share
        return self._module


def _hooks(module: nn.Module) -> Iterator[Any]:
    for part in module.modules():
        yield from (vars(part)[name] for name in HOOKS)
