"""What runs inside the pods of a pipeline."""
