"""Run a graph on SLURM: plan, submit, record, watch and requeue its jobs."""
