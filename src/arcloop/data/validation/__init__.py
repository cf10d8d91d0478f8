"""Checks of a store before training."""
