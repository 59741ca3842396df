"""What a graph is compared with: trivial and linear methods on the same codes.

Each takes training examples and gives a function (examples, nodes) -> (examples,) classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np

from bouton.domains.codes import Matrix
from bouton.domains.recognizer import Labels

Classify = Callable[[Matrix], Labels]
STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)
ROWS = 500


def majority(x: Matrix, y: Labels) -> Classify:
    """Always the most frequent class."""
    most = np.bincount(y).argmax()
    return lambda z: np.full(z.shape[0], most)


def nearest_template(x: Matrix, y: Labels) -> Classify:
    """The class whose mean code is nearest (Euclid)."""
    classes = np.unique(y)
    means = np.stack([np.asarray(x[y == c].mean(axis=0)).ravel() for c in classes])
    squares = (means**2).sum(axis=1)
    return lambda z: classes[(squares - 2 * (z @ means.T)).argmin(axis=1)]


def nearest_example(x: Matrix, y: Labels) -> Classify:
    """The class of the nearest training example (Euclid; the first of equals)."""
    squares = np.asarray(x.multiply(x).sum(axis=1)).ravel()

    def classify(z: Matrix) -> Labels:
        parts = [z[i : i + ROWS] for i in range(0, z.shape[0], ROWS)]
        return np.concatenate([y[(squares - 2 * (part @ x.T).toarray()).argmin(axis=1)] for part in parts])

    return classify


def logistic_regression(x: Matrix, y: Labels, strength: float) -> Classify:
    """Multinomial logistic regression by scikit-learn (L-BFGS); ``strength`` is its C, large: weak L2 penalty."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the iterations suffice for the shares that are compared
        model = LogisticRegression(C=strength, max_iter=300).fit(x, y)
    return lambda z: np.asarray(model.predict(z))


def best_strength(x: Matrix, y: Labels, other: Matrix, answers: Labels) -> float:
    """The strength that is right most often on other examples; of equals the smallest."""
    rights = [float((logistic_regression(x, y, c)(other) == answers).mean()) for c in STRENGTHS]
    return STRENGTHS[int(np.argmax(rights))]
