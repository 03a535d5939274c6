"""Statistics of views by which the tests compare distributions, and the views that they compare."""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import ks_2samp

SIZE = 48  # pixels of the large views
SMALL_SIZE, SMALL_SCALE = 24, (0.08, 0.4)
VIEWS = 600  # of each kind
KINDS = {"even": 0, "odd": 1, "small": 2}  # kind -> its number among the views of a config with two large ones


def statistics(view: np.ndarray) -> list[float]:
    """Return fourteen numbers of a view (H, W, 3) that colour, contrast, sharpness and inversion change."""
    levels = view.astype(np.float32)
    gray = levels.mean(axis=2)
    saturation = levels.max(axis=2) - levels.min(axis=2)
    red_green, yellow_blue = levels[..., 0] - levels[..., 1], levels[..., :2].mean(axis=2) - levels[..., 2]
    return [
        *levels.mean(axis=(0, 1)),
        *levels.std(axis=(0, 1)),
        float(saturation.mean()),
        math.log1p(float(np.abs(np.diff(gray, axis=0)).mean())),
        math.log1p(float(np.abs(np.diff(gray, axis=1)).mean())),
        math.log1p(float(np.abs(np.diff(gray, n=2, axis=1)).mean())),
        _sharpness(gray),
        float((gray >= 128).mean()),
        float(red_green.mean()),
        float(yellow_blue.mean()),
    ]


def _sharpness(gray: np.ndarray) -> float:
    """Compare second differences with first ones, which depends on filters more than on what is shown."""
    first, second = (sum(np.abs(np.diff(gray, n=n, axis=axis)).mean() for axis in (0, 1)) for n in (1, 2))
    return math.log((second + 0.1) / (first + 0.1))


def smallest_p(a: np.ndarray, b: np.ndarray) -> float:
    """Return the smallest p of two-sample Kolmogorov-Smirnov tests, one for each statistic (column of a and b)."""
    return min(ks_2samp(a[:, k], b[:, k]).pvalue for k in range(a.shape[1]))
