"""Stage 1: a config -> a run directory with a checkpoint and a backbone."""

import runtime as runtime
