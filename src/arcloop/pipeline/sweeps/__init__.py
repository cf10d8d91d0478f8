"""Sweeps: checks before the first job, jobs and their records, search with Optuna, leaderboard."""
