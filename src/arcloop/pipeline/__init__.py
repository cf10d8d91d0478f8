"""The steps, the chain of steps behind each verb, and sweeps."""
