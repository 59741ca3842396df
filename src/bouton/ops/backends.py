"""Which execution of an op runs: registration, availability, selection, and a record of what was chosen and why.

An op registers each of its backends once, with a check that says why it cannot run on this machine (``None`` if it
can). At a call the op asks :func:`select` for a backend; the op may add reasons that hold for this very call (a dtype,
a device, an option). ``auto`` takes the first of the op's preference order that nothing speaks against; an explicit
choice that cannot be met is a :class:`KernelError`, never a silent fallback.
"""

from __future__ import annotations

import importlib
import logging
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from bouton.errors import KernelError, suggest

log = logging.getLogger("bouton.kernels")

BACKENDS = ("torch", "rust", "triton")
# `auto` prefers the most specialised execution; torch is always there.
PREFERENCE: Mapping[str, tuple[str, ...]] = {"cpu": ("rust", "torch"), "cuda": ("triton", "torch")}


@dataclass(frozen=True)
class Backend:
    """One execution of an op on some device types."""

    op: str
    name: str
    devices: tuple[str, ...]
    why_not: Callable[[], str | None]  # None: usable on this machine; else the reason it is not
    by_name: Callable[[str], str] | None = None  # device -> why `auto` passes over it; None: it does not


@dataclass
class Choice:
    """What was taken for an op on a device, and why each other backend was refused."""

    op: str
    device: str
    backend: str
    refused: dict[str, str] = field(default_factory=dict)


_backends: dict[str, dict[str, Backend]] = {}
_requests: dict[str, str] = {}
_choices: dict[tuple[str, str], Choice] = {}
_ANY = "*"


def register_backend(
    op: str,
    name: str,
    *,
    devices: tuple[str, ...] = ("cpu", "cuda", "mps"),
    why_not: Callable[[], str | None] = lambda: None,
    by_name: Callable[[str], str] | None = None,
) -> None:
    """Declare that ``op`` can be executed by backend ``name`` on ``devices`` unless ``why_not()`` gives a reason.

    Args:
        by_name: for a backend that runs only if it is asked for by name: device -> the reason.
    """
    if name not in BACKENDS:
        raise KernelError(f"backend '{name}' of op '{op}' is unknown; {suggest(name, BACKENDS)}")
    _backends.setdefault(op, {})[name] = Backend(op, name, devices, why_not, by_name)


def configure(backend: str = "auto", **per_op: str) -> None:
    """Set what ``backend='auto'`` at a call means from now on: a default for all ops, and exceptions per op."""
    for op, name in {_ANY: backend, **per_op}.items():
        if name not in ("auto", *BACKENDS):
            where = "kernels.backend" if op == _ANY else f"kernels.{op}"
            raise KernelError(f"{where} = '{name}' is unknown; {suggest(name, ('auto', *BACKENDS))}")
        if op != _ANY and op not in _backends:
            raise KernelError(f"kernels.{op}: there is no such op; {suggest(op, _backends)}")
    _requests.clear()
    _choices.clear()
    _requests.update({_ANY: backend, **per_op})


def requested(op: str) -> str:
    """The configured backend of ``op`` (``auto`` if nothing was configured)."""
    return _requests.get(op, _requests.get(_ANY, "auto"))


def refusals(op: str, device: str, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Backend name -> why it cannot run ``op`` on ``device`` here; backends that can are absent."""
    reasons: dict[str, str] = {}
    known = _backends.get(op, {})
    for name in BACKENDS:
        backend = known.get(name)
        if backend is None:
            reasons[name] = "not written for this op"
        elif device not in backend.devices:
            reasons[name] = f"does not run on {device}"
        elif (reason := backend.why_not()) is not None:
            reasons[name] = reason
    for name, reason in (extra or {}).items():
        reasons.setdefault(name, reason)
    return reasons


def passed_over(op: str, device: str) -> dict[str, str]:
    """Backend name -> why ``auto`` does not take it on ``device``, though it could run."""
    found = _backends.get(op, {}).values()
    return {backend.name: backend.by_name(device) for backend in found if backend.by_name is not None}


def select(op: str, device: torch.device | str, backend: str = "auto", refused: Mapping[str, str] | None = None) -> str:
    """The backend that executes this call of ``op``.

    Args:
        op: name of the op.
        device: where its tensors are.
        backend: what the caller asks for; ``auto`` defers to :func:`configure`.
        refused: reasons that hold for this call only, backend name -> reason.

    Raises:
        KernelError: the backend was asked for by name and is unknown or cannot be used.
    """
    if backend not in ("auto", *BACKENDS):
        raise KernelError(f"op '{op}': backend = '{backend}' is unknown; {suggest(str(backend), ('auto', *BACKENDS))}")
    kind = torch.device(device).type
    asked = requested(op) if backend == "auto" else backend
    reasons = refusals(op, kind, refused)
    # A default for all ops (`kernels=rust`) cannot bind an op for which that backend was never written.
    binding = backend != "auto" or op in _requests or asked in _backends.get(op, {})
    if asked != "auto" and binding:
        if asked in reasons:
            raise KernelError(f"kernels: op '{op}' cannot run on backend '{asked}': {reasons[asked]}")
        return _remember(op, kind, asked, reasons)
    reasons = {**passed_over(op, kind), **reasons}
    chosen = next((name for name in PREFERENCE.get(kind, ("torch",)) if name not in reasons), None)
    if chosen is None:
        raise KernelError(f"kernels: op '{op}' has no backend on {kind}: {reasons}")
    return _remember(op, kind, chosen, reasons)


def _remember(op: str, device: str, backend: str, reasons: Mapping[str, str]) -> str:
    key = (op, device)
    known = _choices.get(key)
    if known is None or known.backend != backend:
        refused = {name: why for name, why in reasons.items() if name != backend}
        _choices[key] = Choice(op, device, backend, refused)
        why = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        log.info("op %s on %s: %s%s", op, device, backend, f" (refused: {why})" if why else "")
    return backend


def report() -> list[Choice]:
    """The choices made since the last :func:`configure`, for the run folder."""
    return [_choices[key] for key in sorted(_choices)]


def register_all() -> None:
    """Import every op of this package, those that no mechanism uses too: each registers its backends."""
    package = importlib.import_module("bouton.ops")
    for module in pkgutil.iter_modules(package.__path__):
        if module.ispkg and module.name != "benchmarks":
            importlib.import_module(f"bouton.ops.{module.name}")


def ops() -> list[str]:
    """Names of the ops registered so far."""
    return sorted(_backends)


def backends_of(op: str) -> list[str]:
    """Names of the backends written for ``op``."""
    return [name for name in BACKENDS if name in _backends.get(op, {})]
