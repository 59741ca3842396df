"""From the words of a study to its arms: ``[none, each, presyn+hebb, everything]`` and the sweeps beside them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from bouton.config.composition import canonical_terms
from bouton.errors import BoutonError, ConfigError
from bouton.evidence.arms import Arm
from bouton.mechanisms import registry

EACH, PAIRS, EVERYTHING, LEAVE_ONE_OUT = "each", "pairs", "everything", "leave_one_out"

# Whether mechanisms go together on the body of the study: None, or why not.
Refusal = Callable[[Sequence[str]], str | None]


@dataclass(frozen=True)
class Planned:
    """An arm and the override words, as Hydra reads them, that make it."""

    arm: Arm
    words: tuple[str, ...]


def expand(entries: Iterable[str], refusal: Refusal) -> tuple[list[Planned], dict[str, str]]:
    """The arms that ``entries`` mean, without repetition, and those left out with the reason.

    An entry is a sum of mechanisms, with overrides behind blanks (``mechanism.`` may be left away), or one of

    * ``each``: every registered mechanism alone (with what it refines);
    * ``pairs``: every two that go together;
    * ``everything``: the largest set that goes together;
    * ``leave_one_out``: everything without one (and what refines it), for each one.

    Raises:
        ConfigError: an entry that names no mechanism.
    """
    sets: list[tuple[str, Sequence[str]]] = []
    left_out: dict[str, str] = {}
    everything: list[str] | None = None
    for entry in entries:
        if entry in (EVERYTHING, LEAVE_ONE_OUT) and everything is None:
            everything, reasons = largest_set(refusal)
            left_out.update(reasons)
        if entry == EACH:
            sets += [(name, ()) for name in _offered(map(with_refined, single()), refusal, left_out)]
        elif entry == PAIRS:
            candidates = (with_refined(pair) for pair in itertools.combinations(registry.mechanisms(), 2))
            sets += [(name, ()) for name in _offered(candidates, refusal, left_out)]
        elif entry == EVERYTHING:
            assert everything is not None
            sets.append(("+".join(everything) or "none", ()))
        elif entry == LEAVE_ONE_OUT:
            assert everything is not None
            # What refines the one that is left out goes with it.
            rest = ([name for name in everything if left not in with_refined([name])] for left in everything)
            sets += [(name, ()) for name in _offered(filter(None, rest), refusal, left_out)]
        else:
            mechanism, *overrides = entry.split()
            sets.append((mechanism, overrides))
    arms = {planned.arm.label: planned for planned in (_planned(*found) for found in sets)}
    return list(arms.values()), left_out


def cross(arms: Sequence[Planned], sweeps: Mapping[str, Sequence[str]]) -> list[Planned]:
    """Every arm with every combination of the swept values; a parameter of an absent mechanism is not swept there.

    Args:
        sweeps: key -> words ``key=value``.
    """
    found: dict[str, Planned] = {}
    for planned in arms:
        present = planned.arm.mechanism.split("+")
        axes = [words for key, words in sweeps.items() if _applies(key, present)]
        for words in itertools.product(*axes):
            more = _planned(planned.arm.mechanism, [*planned.arm.overrides.split(), *words])
            found.setdefault(more.arm.label, more)
    return list(found.values())


def largest_set(refusal: Refusal) -> tuple[list[str], dict[str, str]]:
    """The most mechanisms that go together (the first in alphabetical order of several), and why others do not."""
    names = list(registry.mechanisms())
    conflicts = {frozenset(pair): reason for pair in itertools.combinations(names, 2)
                 if (reason := refusal(with_refined(pair))) is not None}  # fmt: skip
    reasons = {name: reason for name in names if (reason := refusal(with_refined([name]))) is not None}
    usable = [name for name in names if name not in reasons]
    for size in range(len(usable), 0, -1):
        for chosen in itertools.combinations(usable, size):
            if any(frozenset(pair) in conflicts for pair in itertools.combinations(chosen, 2)):
                continue
            if set(with_refined(chosen)) == set(chosen) and refusal(chosen) is None:
                for name in set(usable) - set(chosen):
                    against = next((f for f in conflicts if name in f and f - {name} <= set(chosen)), None)
                    why = conflicts[against] if against is not None else "does not go with all others"
                    reasons[f"{name} in everything"] = why
                return list(chosen), reasons
    return [], reasons


def with_refined(names: Iterable[str]) -> tuple[str, ...]:
    """``names`` and the mechanisms that they refine, sorted."""
    wanted: set[str] = set()
    todo = list(names)
    while todo:
        name = todo.pop()
        if name not in wanted:
            wanted.add(name)
            todo += registry.get(name).refines
    return tuple(sorted(wanted))


def single() -> list[tuple[str, ...]]:
    """Every registered mechanism alone."""
    return [(name,) for name in registry.mechanisms()]


def builds(model: Mapping[str, object]) -> Refusal:
    """Whether mechanisms plug into the body that ``model`` describes; shapes only, nothing is computed."""
    from bouton.models.build import build

    known: dict[tuple[str, ...], str | None] = {}

    def refusal(names: Sequence[str]) -> str | None:
        key = tuple(sorted(names))
        if key not in known:
            try:
                build({"model": {**model, "vocab_size": 64}, "mechanism": {name: {} for name in key}}, device="meta")
                known[key] = None
            except BoutonError as error:
                known[key] = str(error)
        return known[key]

    return refusal


def _offered(candidates: Iterable[Sequence[str]], refusal: Refusal, left_out: dict[str, str]) -> list[str]:
    found = []
    for names in candidates:
        name = "+".join(sorted(names))
        if (reason := refusal(names)) is None:
            found.append(name)
        else:
            left_out[name] = reason
    return found


def _planned(mechanism: str, overrides: Sequence[str]) -> Planned:
    terms = canonical_terms(mechanism)
    for term in terms:
        registry.get(term)  # an unknown name ends here, before anything is run
    canonical = "+".join(terms) or "none"
    words, shown = [f"mechanism={canonical}"], []
    for word in overrides:
        if "=" not in word:
            raise ConfigError(f"arm '{mechanism} {' '.join(overrides)}': '{word}' is not of the form key=value")
        key = word.partition("=")[0].lstrip("+~")
        full = f"mechanism.{word}" if key.split(".")[0] in terms else word
        words.append(full)
        shown.append(full.removeprefix("mechanism."))
    return Planned(Arm(canonical, " ".join(shown)), tuple(words))


def _applies(key: str, present: Sequence[str]) -> bool:
    parts = key.lstrip("+~").split(".")
    return parts[0] != "mechanism" or len(parts) < 3 or parts[1] in present
