"""Speed and memory, measured side by side on the machine that they run on."""

import runtime as runtime  # prepares torchvision on a CPU-only torch
