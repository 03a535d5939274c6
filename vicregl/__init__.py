"""The method: tensors in, losses out. No processes, no printing; files only where weights are imported."""

from runtime import compat

compat.prepare_torchvision()
