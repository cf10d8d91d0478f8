"""`arcloop leaderboard`: the results of a sweep. No module of this package imports torch."""
