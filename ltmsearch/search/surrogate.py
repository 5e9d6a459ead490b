"""A model of the scores of schedules, fitted while they are screened."""

from itertools import combinations

import numpy as np
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ltmsearch.schedules.grid import kept_share
from ltmsearch.schedules.space import SearchSpace

LEAST_SCORE = 1e-6
"""Scores are clipped there before their logarithm is taken."""


class Surrogate:
    """Ridge regression of the logarithm of the scores: additive over layers, with products of pairs of layers.

    The input of a layer is how often it halves its tokens, −log2 of the share that it keeps, and one number for each
    further form; that of an image size, how often it halves the pixels. Leave-one-out validation sets the penalty, and
    so decides how much the pairs may say.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.halvings = [
            np.array([-np.log2(kept_share(n, choice.keep_ratio)) for choice in options])
            for n, options in zip(space.layer_tokens, space.choices, strict=True)
        ]
        self.forms = [
            np.array([[float(choice.form == form) for form in space.forms[1:]] for choice in options])
            for options in space.choices
        ]
        self.log_pixels = 2 * np.log2([size / space.img_sizes[0] for size in space.img_sizes])
        self.model = make_pipeline(StandardScaler(), RidgeCV(alphas=np.logspace(-2, 4, 13)))

    def features(self, rows: np.ndarray) -> np.ndarray:
        """(S, F) features of (S, I) choice indices."""
        halvings = np.stack([table[rows[:, place]] for place, table in enumerate(self.halvings)], axis=1)
        forms = [table[rows[:, place]] for place, table in enumerate(self.forms)]
        if len(self.log_pixels):
            halvings = np.concatenate([halvings, self.log_pixels[rows[:, -1], None]], axis=1)
        pairs = [halvings[:, i] * halvings[:, j] for i, j in combinations(range(halvings.shape[1]), 2)]
        columns = [halvings, halvings**2, *forms, *(pair[:, None] for pair in pairs)]
        return np.concatenate(columns, axis=1)

    def fit(self, rows: np.ndarray, scores: np.ndarray) -> None:
        """Fit to (S, I) choice indices and their (S,) scores."""
        self.model.fit(self.features(rows), np.log(np.maximum(scores, LEAST_SCORE)))

    def predict(self, rows: np.ndarray) -> np.ndarray:
        """(S,) logarithms of expected scores of (S, I) choice indices."""
        found: np.ndarray = self.model.predict(self.features(rows))
        return found
