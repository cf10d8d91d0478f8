"""The steps of the pipeline, the chain of steps of each verb, and sweeps."""
