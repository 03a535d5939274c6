"""A graph of runs on SLURM: its jobs are planned, submitted, recorded, watched and requeued."""
