"""Stage 2: a checkpoint in, a score out. One evaluator a file; none of them trains the backbone unless told to."""

import runtime as runtime  # prepares torchvision beside a CPU-only torch
