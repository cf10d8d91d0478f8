"""Heads: training losses that map features and labels to a scalar."""
