"""Sweeps: checks before the first job, the jobs and their records, and search with Optuna."""
