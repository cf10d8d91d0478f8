"""A model store's archive -> a rollout on a Kubernetes cluster that is proven or undone."""
