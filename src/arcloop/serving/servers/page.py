"""The second server's page: drop an image, see its nearest gallery images."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from fastapi import Response

_HTML = Path(__file__).with_name("page.html")
_NEIGHBOURS = 12
# Nothing is fetched from elsewhere, and nobody else's page may frame this one.
_POLICY = (
    "default-src 'none'; connect-src 'self'; img-src 'self' blob: data:; "
    "script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Page:
    """The page of one model, and the small pictures of gallery rows that it shows.

    Args:
        name: Of the model.
        max_k: Most neighbours that may be asked for.
        thumbnails: What thumbnails.py made; no picture is shown where the file is not there.
    """

    def __init__(self, name: str, max_k: int, thumbnails: Path) -> None:
        self._name, self._k = name, min(max_k, _NEIGHBOURS)
        self._ends, self._encoded = np.empty(0, np.int64), np.empty(0, np.uint8)
        if thumbnails.exists():
            with np.load(thumbnails, allow_pickle=False) as stored:
                self._ends, self._encoded = stored["ends"], stored["encoded"]

    @functools.cached_property
    def _text(self) -> str:
        facts = {"name": self._name, "k": self._k, "pictures": len(self._ends)}
        text = _HTML.read_text(encoding="utf-8")
        for key, value in facts.items():
            text = text.replace(f"{{{{{key}}}}}", str(value))
        return text

    async def html(self) -> Response:
        """A page to try the model in a browser."""
        headers = {"Content-Security-Policy": _POLICY}
        return Response(self._text, media_type="text/html", headers=headers)

    async def picture(self, row: int) -> Response:
        """A small picture of a gallery row."""
        if not 0 <= row < len(self._ends):
            return Response(status_code=404)
        start = int(self._ends[row - 1]) if row else 0
        content = self._encoded[start : int(self._ends[row])].tobytes()
        kind = "image/png" if content.startswith(b"\x89PNG") else "image/jpeg"
        return Response(content, media_type=kind, headers={"Cache-Control": "no-cache"})
