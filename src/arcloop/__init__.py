"""Train, script, index, judge and serve embedding models with ArcFace, from one set of configs."""

__version__ = "0.1.0"
