"""The figures of a report. A new figure is one file here that ends in a `PLOT`, which says where it stands on the page.

Read first: base.py (what a figure is, and what all share), tradeoff.py (the figure that the suite exists for).
"""

from __future__ import annotations

import pkgutil
from importlib import import_module

from analysis.figures.base import PLACES, Plot, write


def discover() -> tuple[Plot, ...]:
    """Return the `PLOT` of every module of this package that has one, in the order of the page."""
    modules = [import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    plots = [module.PLOT for module in modules if hasattr(module, "PLOT")]
    return tuple(sorted(plots, key=lambda plot: (PLACES.index(plot.place), plot.order, plot.name)))


FIGURES = discover()

__all__ = ["FIGURES", "Plot", "discover", "write"]
