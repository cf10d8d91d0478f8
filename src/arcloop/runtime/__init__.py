"""Inference runtime: decoding, search and replies.

Every archive holds a copy of this package, so it imports nothing else of arcloop.

"""
