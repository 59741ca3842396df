"""Consolidation on request: the slow fast weights S of one sequence become a lasting increment of the linear maps.

A branch of hebb reads S with queries of length 1, scale * (x P) / |x P| * S. The nearest linear map replaces the length
by its mean over some text:

    x dW,   dW = scale * P S / mean|x P|          per head

It is exact where all queries are equally long; the relative error of what is read is measured on that text. Unlike S,
dW does not fade. It is held beside the trained weights, which are never written: a checkpoint does not contain it, and
taking it back restores the model bit for bit. What hebb writes comes from the trained weights alone, as before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bouton.errors import ConfigError

if TYPE_CHECKING:
    from bouton.models.body import Body

Path = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Consolidation:
    """What was consolidated.

    Attributes:
        increments: module path of a branch -> (out_features, in_features), what is added to its linear map.
        errors: the same paths -> relative error of what is read, |x dW - read of S| / |read of S| over the text; 0 for
            S = 0.
    """

    increments: Mapping[str, Tensor]
    errors: Mapping[str, float]

    @property
    def error(self) -> float:
        """The largest of the errors."""
        return max(self.errors.values(), default=0.0)


def branches(body: nn.Module) -> dict[str, Any]:
    """The fast-weight branches of ``body`` by their module path."""
    from bouton.mechanisms.hebb import FastWeights

    return {path: part for path, part in body.named_modules() if isinstance(part, FastWeights)}


@torch.no_grad()
def extract(body: Body, state: Mapping[str, Any], tokens: Tensor, row: int) -> tuple[dict[str, Any], Consolidation]:
    """The increments of one row's S, and ``state`` with that S at 0; the arguments are those of Hebb.consolidate.

    Raises:
        ConfigError: the body is in training mode, S is turned off, or an argument does not fit.
    """
    if body.training:
        raise ConfigError("consolidate is for inference: call body.eval() first")
    if tokens.dim() != 1 or not len(tokens):
        raise ConfigError(f"consolidate: tokens {tuple(tokens.shape)} must be the (T,) tokens of one text")
    rows = len(next(iter(_tensors(state))))
    if not 0 <= row < rows:
        raise ConfigError(f"consolidate: row = {row} is not valid: the state has the rows 0 to {rows - 1}")
    places: dict[int, Path] = {}
    own = _row(state, row, (), places)
    seen = _observe(body, tokens, own)
    increments, errors, emptied = {}, {}, set()
    for path, (part, x, held) in seen.items():
        if held is None or "slow" not in held:
            raise ConfigError("mechanism.hebb.eta_s = 0 leaves no slow weights that could be consolidated")
        slow = held["slow"]
        queries = part.queries(x).to(slow.dtype)  # (1, heads, T, rank)
        lengths = queries.norm(dim=-1, keepdim=True)
        strength = part.strength().to(slow.dtype).view(1, -1, 1, 1)
        linear = strength * slow / lengths.mean(dim=2, keepdim=True).clamp_min(1e-12)
        increments[path] = part.effective(linear)[0].T.contiguous()
        exact = strength * (queries / lengths.clamp_min(1e-12)) @ slow
        size = exact.norm()
        errors[path] = float((queries @ linear - exact).norm() / size) if size > 0 else 0.0
        emptied.add(places[id(held)])
    return _without_slow(state, row, (), emptied), Consolidation(increments, errors)


def hold(body: nn.Module, consolidations: Sequence[Consolidation]) -> None:
    """Let the branches add the increments of ``consolidations``, and nothing else.

    Raises:
        ConfigError: they belong to another model.
    """
    parts = branches(body)
    for consolidation in consolidations:
        for path, increment in consolidation.increments.items():
            if path not in parts or increment.shape != (parts[path].out_features, parts[path].in_features):
                raise ConfigError(f"consolidated increments of another model: '{path}' {tuple(increment.shape)}")
    for path, part in parts.items():
        terms = [c.increments[path] for c in consolidations if path in c.increments]
        device = part.key.weight.device
        part.increment = torch.stack(terms).sum(0).to(device) if terms else None


def _observe(body: Body, tokens: Tensor, state: dict[str, Any]) -> dict[str, tuple[Any, Tensor, dict[str, Tensor]]]:
    """Per branch: the part, its input (1, T, in_features) when ``tokens`` are read on from ``state``, its own state."""
    seen: dict[str, tuple[Any, Tensor, dict[str, Tensor]]] = {}
    hooks = []
    for path, part in branches(body).items():

        def note(module: nn.Module, inputs: tuple[Any, ...], path: str = path) -> None:
            seen[path] = (module, inputs[0], inputs[3])

        hooks.append(part.register_forward_pre_hook(note))
    try:
        body(tokens[None], state)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _tensors(node: Any) -> list[Tensor]:
    return [node] if isinstance(node, Tensor) else [leaf for value in node.values() for leaf in _tensors(value)]


def _row(node: Any, row: int, path: Path, places: dict[int, Path]) -> Any:
    """One row of a state; ``places`` learns where each of the new mappings is."""
    if isinstance(node, Tensor):
        return node[row : row + 1]
    taken = {key: _row(value, row, (*path, key), places) for key, value in node.items()}
    places[id(taken)] = path
    return taken


def _without_slow(node: Any, row: int, path: Path, emptied: set[Path]) -> Any:
    if isinstance(node, Tensor):
        return node
    after = {key: _without_slow(value, row, (*path, key), emptied) for key, value in node.items()}
    if path in emptied:
        after["slow"] = after["slow"].clone()
        after["slow"][row] = 0.0
    return after
