"""Puts this folder's helpers within reach of its tests; one thread, as tests run side by side."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)
