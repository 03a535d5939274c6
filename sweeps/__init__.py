"""A study -> a graph of runs -> this machine (a cluster is one more executor of the same graph).

Read first: study.py (what a study says), graph.py (the runs it means), local.py (running them).
"""

import runtime  # noqa: F401  (prepares torchvision where the machine needs it)
