"""An HTTP request -> a question, never more than so many bytes of it in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator

from fastapi import Request
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from arcloop.runtime.responder import K_HEADER, Question, RefusalError

_IMAGE_FIELDS = ("data", "image")
_MOST_PARTS = 8


async def read_question(request: Request, limit: int) -> Question:
    """Read the image, as the body or a form's field, and k, as a header or a field.

    Args:
        request: The request.
        limit: Most bytes of its body.

    Raises:
        RefusalError: The body is too large, or holds no image, or several.
    """
    body = await _body(request, limit)
    kind = request.headers.get("content-type", "")
    if not kind.startswith("multipart/form-data"):
        return Question(body, request.headers.get(K_HEADER))
    form = await _form(kind, body)
    try:
        images = [value for name in _IMAGE_FIELDS for value in form.getlist(name)]
        if len(images) != 1:
            raise RefusalError(
                400, f"{len(images)} images; send one, as the body or a form's field 'image'"
            )
        k = form.get("k")
        text = None if k is None else (await _bytes(k)).decode(errors="replace")
        return Question(await _bytes(images[0]), text)
    finally:
        await form.close()


async def _body(request: Request, limit: int) -> bytes:
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise RefusalError(413, f"more than {limit:,} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


async def _form(kind: str, body: bytes) -> FormData:
    async def stream() -> AsyncIterator[bytes]:
        yield body
        yield b""

    parser = MultiPartParser(
        # A field without a file name comes as text; in latin-1 no byte of an image is lost.
        Headers({"content-type": f"{kind}; charset=latin-1"}),
        stream(),  # type: ignore[arg-type]
        max_files=_MOST_PARTS,
        max_fields=_MOST_PARTS,
        max_part_size=len(body),
    )
    try:
        return await parser.parse()
    except (MultiPartException, KeyError, ValueError) as cause:
        raise RefusalError(400, f"the form cannot be read: {cause}") from None


async def _bytes(value: str | UploadFile) -> bytes:
    return value.encode("latin-1") if isinstance(value, str) else await value.read()
