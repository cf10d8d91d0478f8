"""Images and labels: sources, the sharded store, its validation, and loading for training."""
