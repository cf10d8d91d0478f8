"""Metrics, plots, the report page and the gate."""
