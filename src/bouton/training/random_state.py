"""Seeding, saving and restoring the random generators of torch, numpy and Python."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int, rank: int = 0) -> None:
    """Seed all global generators; each rank draws its own numbers, rank 0 those of a single device."""
    value = (seed + 1_000_003 * rank) % 2**32
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)


def get_random_state() -> dict[str, Any]:
    """The state of all generators in plain types, so that a checkpoint loads with ``weights_only=True``."""
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    version, internal, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [str(kind), [int(k) for k in keys], int(position), int(has_gauss), float(cached)],
        "python": [version, list(internal), gauss_next],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Restore what :func:`get_random_state` returned."""
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))


@contextmanager
def preserved_globals() -> Iterator[None]:
    """Undo at exit what a training run changes for the whole process: generators, determinism, matmul precision.

    Several runs may share one process (a sweep with the basic launcher), and so may a search engine that draws its
    candidates from numpy's global generator.
    """
    state = get_random_state()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark)
    precision = torch.get_float32_matmul_precision()
    grad = torch.is_grad_enabled()
    try:
        yield
    finally:
        set_random_state(state)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
        torch.set_float32_matmul_precision(precision)
        torch.set_grad_enabled(grad)
