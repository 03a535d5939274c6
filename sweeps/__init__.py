"""A study becomes a graph of runs, and the graph runs on this machine or on SLURM.

Read first: study.py (the YAML file), graph.py (its runs), status.py (how far they are), local.py and slurm/ (running
them); verbs/ has the commands.
"""

import runtime  # noqa: F401  (prepares torchvision where the machine needs it)
