"""Requests to the API server of Kubeflow Pipelines."""
