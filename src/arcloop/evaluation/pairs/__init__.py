"""Verification on lists of given pairs of images, such as LFW."""

from arcloop.evaluation.pairs.lists import PairList, hash_pair_lists, open_pair_lists
from arcloop.evaluation.pairs.measure import measure_pair_lists

__all__ = ["PairList", "hash_pair_lists", "measure_pair_lists", "open_pair_lists"]
