"""The method: tensors in, losses out. No processes, no printing; files only where weights are imported."""

import runtime as runtime  # prepares torchvision beside a CPU-only torch
