"""Sweeps on a cluster: combinations, searches and their leaderboard."""
