"""The Python API: `load` and `fit` return a `Run`, which embeds, searches, compares and exports."""

from arcloop.api.answers import Answer, Match
from arcloop.api.fitting import fit
from arcloop.api.images import ImageLike
from arcloop.api.run import Run, load

__all__ = ["Answer", "ImageLike", "Match", "Run", "fit", "load"]
