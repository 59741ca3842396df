"""The small models on which the contract is checked: every mechanism, its variants, pairs, and all together."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bouton.errors import BoutonError
from bouton.mechanisms import registry
from bouton.models.body import Body
from bouton.models.build import build

VOCAB = 29
BATCH, LENGTH = 2, 19  # a length that no block or chunk size divides
# Grouped queries, a window in one of two blocks: what parts must cope with.
MODEL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "num_layers": 2,
    "hidden_size": 16,
    "num_heads": 4,
    "num_kv_heads": 2,
    "mixer_ratio": 2.0,
    "window": 11,
    "full_attention_every": 2,
    "max_seq_len": 64,
}


@dataclass(frozen=True)
class Arm:
    """One composition: mechanism name -> parameter overrides."""

    label: str
    mechanism: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The composed mechanisms, sorted."""
        return sorted(self.mechanism)

    def config(self, seed: int = 0, **model: Any) -> dict[str, Any]:
        """A configuration that ``bouton.build`` takes."""
        return {
            "model": {**MODEL, **model},
            "mechanism": {name: dict(values) for name, values in self.mechanism.items()},
            "kernels": {"backend": "auto"},
            "seed": seed,
        }

    def build(self, seed: int = 0, **model: Any) -> Body:
        """The model in float64, in training mode."""
        return build(self.config(seed, **model)).double()


PLAIN = Arm("none")


def arms(names: list[str] | None = None) -> tuple[list[Arm], dict[str, str]]:
    """All arms over the registry (or over ``names``), and the pairs that do not compose with the reason.

    Every mechanism with its defaults, every declared variant, every pair, and everything that goes together.
    """
    known = registry.mechanisms()
    chosen = sorted(known if names is None else names)
    singles = [Arm(name, _with_refined(name)) for name in chosen]
    singles += [
        Arm(f"{name}[{label}]", with_values(_with_refined(name), name, values))
        for name in chosen
        for label, values in known[name].variants.items()
    ]
    result, refused = list(singles), {}
    for pair in itertools.combinations(sorted(known), 2):
        if names is not None and not set(pair) & set(names):
            continue
        arm = Arm("+".join(pair), _with_refined(*pair))
        if arm.names in (sorted(_with_refined(name)) for name in pair):
            continue  # one refines the other: the arm of that one is the pair
        if (reason := _refusal(arm)) is None:
            result.append(arm)
        else:
            refused[arm.label] = reason
    everything: dict[str, Mapping[str, Any]] = {}
    for name in sorted(known):
        wider = {**everything, **_with_refined(name)}
        if _refusal(Arm("", wider)) is None:
            everything = wider
    if len(everything) > 2:
        result.append(Arm("everything", everything))
    return list({(a.label, *a.names): a for a in result}.values()), refused


def with_values(
    composition: Mapping[str, Mapping[str, Any]], name: str, values: Mapping[str, Any]
) -> dict[str, Mapping[str, Any]]:
    """The composition with these values for ``name``; those under the name of what it refines are that one's."""
    refined = {r: values[r] for r in registry.get(name).refines if r in values}
    return {**composition, **refined, name: {key: v for key, v in values.items() if key not in refined}}


def _with_refined(*names: str) -> dict[str, Mapping[str, Any]]:
    """The mechanisms and what they refine."""
    wanted, todo = {}, list(names)
    while todo:
        name = todo.pop()
        wanted[name] = dict[str, Any]()
        todo += [r for r in registry.get(name).refines if r not in wanted]
    return dict(wanted)


def _refusal(arm: Arm) -> str | None:
    try:
        arm.build()
    except BoutonError as error:
        return str(error)
    return None


def sample_tokens(seed: int = 0, batch: int = BATCH, length: int = LENGTH) -> Tensor:
    """(batch, length) token ids."""
    return torch.randint(VOCAB, (batch, length), generator=torch.Generator().manual_seed(1000 + seed))


def sample_starts(seed: int = 0, batch: int = BATCH, length: int = LENGTH) -> Tensor:
    """(batch, length) bool: documents of a few tokens, borders differing between rows."""
    draw = torch.rand(batch, length, generator=torch.Generator().manual_seed(2000 + seed))
    return draw < 0.15


def leaves(state: Any, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a state by their path."""
    if isinstance(state, Tensor):
        return {prefix: state}
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        found.update(leaves(value, f"{prefix}/{key}"))
    return found


def map_state(state: Any, function: Any) -> Any:
    """The state with ``function`` applied to every tensor."""
    if isinstance(state, Tensor):
        return function(state)
    return {key: map_state(value, function) for key, value in state.items()}
