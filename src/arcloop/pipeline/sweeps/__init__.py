"""Sweeps: what is checked before the first job, each job and its record, and who proposes values.

Importing this package imports nothing heavy.
"""
