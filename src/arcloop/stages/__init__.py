"""One function per step: artifacts in, artifact out. Callbacks and steps only adapt them."""

from arcloop.stages.evaluation import evaluate
from arcloop.stages.gallery import embed_gallery
from arcloop.stages.index import build_index

__all__ = ["build_index", "embed_gallery", "evaluate"]
