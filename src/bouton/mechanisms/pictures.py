"""Pictures: what a mechanism's sequence state looks like while one sequence is read.

A mechanism declares them by overriding :meth:`bouton.mechanisms.Mechanism.pictures`; the callback ``media``, the
loggers and the dashboard show whatever is declared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

State = Mapping[str, Any]


@dataclass(frozen=True)
class Picture:
    """A heat map, or one per panel.

    Attributes:
        values: (rows, columns) or (panels, rows, columns); NaN where there is nothing to see.
        rows, columns: what runs down and across, e.g. "query" and "key".
        panels: what the panels are, e.g. "head"; they are numbered from 0.
        unit: of the values, for the colour bar.
    """

    values: Tensor
    rows: str
    columns: str
    panels: str = "head"
    unit: str = ""

    def __post_init__(self) -> None:
        if self.values.dim() not in (2, 3) or 0 in self.values.shape:
            raise ValueError(
                f"a picture is (rows, columns) or (panels, rows, columns), not empty; got {tuple(self.values.shape)}"
            )

    def numpy(self) -> Any:
        """(panels, rows, columns) float32 on the host; one panel where there are none."""
        values = self.values.detach().float().cpu()
        return (values if values.dim() == 3 else values[None]).numpy()

    def _repr_png_(self) -> bytes:
        """How a notebook shows it."""
        from bouton.mechanisms.drawing import png

        return png(self)


@torch.no_grad()
def collect(body: Any, tokens: Tensor, starts: Tensor | None = None) -> dict[str, Picture]:
    """Read one sequence token by token and return what its mechanisms show of it: ``mechanism/name`` -> picture.

    Args:
        body: a model with ``mechanisms``, in the mode (training or evaluation) that is wanted.
        tokens: (1, T) int64.
        starts: (1, T) bool, True where a document begins.
    """
    from bouton.mechanisms.base import Mechanism

    mechanisms = [m for m in body.mechanisms.values() if type(m).pictures is not Mechanism.pictures]
    states: list[State] = []
    state = None
    for t in range(tokens.shape[1] if mechanisms else 0):
        _, state = body(tokens[:, t : t + 1], state, starts=None if starts is None else starts[:, t : t + 1])
        states.append(state)
    return {f"{m.name}/{name}": picture for m in mechanisms for name, picture in m.pictures(states).items()}


def find(states: Sequence[State], *names: str) -> Iterator[tuple[str, list[dict[str, Tensor]]]]:
    """Every place in a body's state that holds all of ``names``, and what it held after each token.

    Args:
        states: the state after each token of one sequence, as the body returns it, batch first with one row.

    Yields:
        A label (``layer0``; with the place inside the layer where a layer has several), and per token the tensors
        ``names`` of that place, without the batch dimension. Places that are not there from the first token on are
        left out.
    """
    if not states:
        return
    places = [path for path, leaf in _leaves(states[-1], ()) if all(name in leaf for name in names)]
    labels = [_layer(path) for path in places]
    for path, label in zip(places, labels, strict=True):
        held = [_follow(state, path) for state in states]
        if any(leaf is None for leaf in held):
            continue
        unique = label if labels.count(label) == 1 else f"{label}_{'_'.join(path[2:])}"
        yield unique, [{name: leaf[name][0] for name in names} for leaf in held if leaf is not None]


def over_time(rows: Sequence[Tensor]) -> Tensor:
    """Per-key vectors (H, n_t), the last n_t of t + 1 keys, as maps (H, T, T): row t after token t, NaN elsewhere."""
    heads, total = rows[0].shape[0], len(rows)
    maps = torch.full((heads, total, total), torch.nan)
    for t, row in enumerate(rows):
        held = min(row.shape[-1], t + 1)
        if held:
            maps[:, t, t + 1 - held : t + 1] = row[:, -held:].detach().float().cpu()
    return maps


def _leaves(node: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """Every mapping that holds tensors, with the keys that lead to it."""
    if not isinstance(node, Mapping):
        return
    if any(isinstance(value, Tensor) for value in node.values()):
        yield path, node
    for key, value in node.items():
        yield from _leaves(value, (*path, str(key)))


def _follow(node: Any, path: tuple[str, ...]) -> Mapping[str, Any] | None:
    for key in path:
        if not isinstance(node, Mapping) or key not in node:
            return None
        node = node[key]
    return node if isinstance(node, Mapping) else None


def _layer(path: tuple[str, ...]) -> str:
    return f"layer{path[1]}" if len(path) > 1 and path[0] == "layers" else "_".join(path) or "body"
