"""Archives, model stores, servers and deployments."""
