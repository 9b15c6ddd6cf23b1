"""Sweeps on SLURM: submit, execute, requeue, look, cancel; docs/slurm.md."""
