"""Train, export, index, evaluate and serve ArcFace embedding models from one set of configs."""

__version__ = "0.1.0"
