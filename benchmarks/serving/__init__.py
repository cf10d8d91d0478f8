"""Servers of one archive side by side: requests a second and latency, by number of clients."""
