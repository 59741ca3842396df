"""Without the compiled engine there is nothing to test here."""

from __future__ import annotations

import pytest

from bouton.substrate import engine

from .graphs import Pair, random_pair


@pytest.fixture(autouse=True)
def _built() -> None:
    if (reason := engine.why_not()) is not None:
        pytest.skip(reason)


@pytest.fixture
def pair() -> Pair:
    return random_pair()
