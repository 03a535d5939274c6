"""Stage 3: run directories -> one table of results -> tables, figures, a report.

    from analysis import load_results
    frame = load_results("sweeps/studies/quickstart.yaml")   # a pandas DataFrame; works at any time
    frame = load_results("reports/scenes/results.csv")       # what a report was made of, without its run directories

Read first: results.py (the table that everything else is a function of), summary.py (its rows over seeds);
notebooks/alpha.ipynb uses both.
"""

import runtime  # noqa: F401  (prepares torchvision where the machine needs it)
from analysis.report_data import ReportData, load_report_data
from analysis.results import load_results

__all__ = ["ReportData", "load_report_data", "load_results"]
