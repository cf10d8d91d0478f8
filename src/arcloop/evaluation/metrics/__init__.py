"""Metrics as pure functions with thin accumulators."""
