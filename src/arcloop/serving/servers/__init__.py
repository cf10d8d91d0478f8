"""TorchServe and the FastAPI server."""
