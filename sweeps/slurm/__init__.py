"""A graph of runs on SLURM: how its jobs are submitted, recorded, watched and requeued."""
