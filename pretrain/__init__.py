"""Stage 1: pretrain a network; a config becomes a run directory with a checkpoint and a backbone."""

import runtime as runtime
