"""`arcloop leaderboard`: what the jobs of a sweep came to. Nothing here imports torch."""
