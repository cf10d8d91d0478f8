"""A head."""

from arcloop.models import ArcFace


class Shoe(ArcFace):
    """ArcFace under another name."""
