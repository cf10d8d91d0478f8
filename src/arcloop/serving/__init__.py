"""Archive, model store, servers and deployments."""
