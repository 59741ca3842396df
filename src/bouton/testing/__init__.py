"""The contract suite: what every mechanism must satisfy, alone and composed, without anyone writing a test for it.

``bouton.testing.arms`` builds the small models, ``bouton.testing.clauses`` holds the clauses. The test module of this
repository runs them over the whole registry; a mechanism of another package is checked with::

    from bouton.testing import check
    check("my_mechanism")
"""

from __future__ import annotations

from bouton.testing.arms import Arm, arms
from bouton.testing.clauses import CLAUSES, Clause
from bouton.testing.run import check, skip_reason

__all__ = ["CLAUSES", "Arm", "Clause", "arms", "check", "skip_reason"]
