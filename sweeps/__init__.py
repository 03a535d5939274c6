"""A study becomes a graph of runs, and the graph runs on this machine or on SLURM.

Read first: study.py (the YAML file), graph.py (its runs), status.py (their states), local.py and slurm/ (running them).
The commands are in show.py, control.py and clean.py.
"""

import runtime  # noqa: F401  (prepares torchvision if the machine needs it)

STUDIES = "sweeps/studies"  # of the checkout; its files are known by name
