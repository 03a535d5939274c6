"""Images in, views out: datasets by name, the embedded scenes, multi-crop views, loaders."""

import runtime as runtime  # prepares torchvision on a CPU-only torch
