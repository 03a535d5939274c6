"""Stage 2: a checkpoint in, a score out. One evaluation a file; none trains the backbone unless its config says so."""

import runtime as runtime  # prepares torchvision beside a CPU-only torch
