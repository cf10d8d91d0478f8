"""Where the pods of the steps run: nodes, volumes and GPUs."""
