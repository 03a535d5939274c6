"""Speed and memory, measured side by side on the same machine."""

import runtime as runtime  # prepares torchvision on a CPU-only torch
