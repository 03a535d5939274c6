"""The figures of a report. A new figure is a file that ends in a `PLOT`, and a line each in FIGURES and report.md.j2.

Read first: base.py (what a figure is, and what all share), tradeoff.py (the figure that the suite exists for).
"""

from analysis.figures import cost, diagnostics, scores, tradeoff, training
from analysis.figures.base import Plot, write

FIGURES: tuple[Plot, ...] = (
    tradeoff.PLOT,
    scores.PLOT,
    tradeoff.PUBLISHED,
    training.PLOT,
    diagnostics.PLOT,
    cost.PLOT,
)

__all__ = ["FIGURES", "Plot", "write"]
