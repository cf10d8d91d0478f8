"""Inference runtime: image decoding, search and HTTP responses.

Every archive contains a copy of this package, so it imports no other part of arcloop.
"""

ARCHIVED_PACKAGE = "arcloop_runtime"
"""Name of the copy of this package in an archive."""
MANIFEST = "manifest.json"
"""File of an archive that lists its other files, with their hashes."""
