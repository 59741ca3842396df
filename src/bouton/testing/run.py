"""Running the contract: which clauses apply to which arm, and the whole of it for one mechanism."""

from __future__ import annotations

from bouton.mechanisms import registry
from bouton.testing import parameters as _parameters  # noqa: F401  (registers its clauses)
from bouton.testing import training as _training
from bouton.testing.arms import Arm, arms
from bouton.testing.clauses import CLAUSES, Clause


def applies(clause: Clause, arm: Arm) -> bool:
    """Clauses about a mechanism itself run once per mechanism, on its defaults; all others on every arm."""
    return clause.scope == "arm" or arm.label in registry.mechanisms()


def skip_reason(clause: Clause, arm: Arm) -> str | None:
    """Why a mechanism of the arm says that it cannot satisfy the clause; None if none says so.

    A mechanism's ``skips`` name a clause, or ``clause[variant]`` where only this variant of it cannot.
    """
    for name in arm.names:
        skips = registry.get(name).skips
        variant = arm.label.removeprefix(name) if arm.label.startswith(f"{name}[") else None
        for key in (clause.name, f"{clause.name}{variant}"):
            if (reason := skips.get(key)) is not None:
                return f"{name}: {reason}"
    return None


def check(name: str, *, pairs: bool = True) -> dict[str, str]:
    """Check the whole contract for one mechanism. Returns the skipped clauses with their reasons.

    Args:
        name: a registered mechanism.
        pairs: also check its compositions with every other mechanism.

    Raises:
        AssertionError: the first broken clause.
        ConfigError: no such mechanism.
    """
    registry.get(name)
    chosen, _ = arms([name])
    skipped: dict[str, str] = {}
    for arm in chosen:
        if "+" in arm.label and not pairs:
            continue
        for clause in CLAUSES.values():
            if not applies(clause, arm):
                continue
            if (reason := skip_reason(clause, arm)) is not None:
                skipped[clause.name] = reason
                continue
            try:
                clause.check(arm)
            except AssertionError as error:
                raise AssertionError(f"{arm.label} breaks '{clause.name}' ({clause.doc}) {error}") from error
    _training.two_ranks_equal_one(chosen)
    return skipped
