"""Runs the steps as a Kubeflow pipeline."""
