"""The figures of a report, one file each. A new one is a file that ends in a `PLOT`, and its line here.

Read first: base.py (the contract), tradeoff.py (the figure that the suite is for).
"""

from analysis.figures import cost, diagnostics, published, scores, tradeoff, training
from analysis.figures.base import Plot, write

FIGURES: tuple[Plot, ...] = (
    tradeoff.PLOT,
    scores.PLOT,
    published.PLOT,
    training.PLOT,
    diagnostics.PLOT,
    cost.PLOT,
)

__all__ = ["FIGURES", "Plot", "write"]
