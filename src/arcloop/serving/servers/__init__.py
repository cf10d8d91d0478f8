"""TorchServe and the FastAPI server as processes."""
