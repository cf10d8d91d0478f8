"""Deploys an archive to Kubernetes, checks its predictions, and rolls back after an error."""
