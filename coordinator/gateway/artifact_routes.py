"""Where devices fetch artifacts over HTTPS, from any byte on; who may have what is as over MQTT."""

import re
from collections.abc import Callable, Iterator
from typing import Annotated

from fastapi import APIRouter, Depends, Header, HTTPException
from fastapi.responses import StreamingResponse

from coordinator.errors import NotFoundError
from coordinator.storage import Blobs

_RANGE = re.compile(r"bytes=(\d{1,12})-(\d{0,12})")
_PIECE_BYTES = 128 * 1024

MayFetch = Callable[[str, str], bool]
"""Device and digest to whether it may have that."""


def router(blobs: Blobs, may_fetch: MayFetch, device: Callable[..., str]) -> APIRouter:
    """Routes over blobs; `device` is the dependency that gives the name of the enrolled device that asks."""
    routes = APIRouter(prefix="/v1/artifacts", tags=["gateway"])

    @routes.get("/{sha256}")
    def get_artifact(
        sha256: str,
        device: Annotated[str, Depends(device)],
        wanted: Annotated[str | None, Header(alias="Range")] = None,
    ) -> StreamingResponse:
        if not may_fetch(device, sha256):  # says nothing of what is there
            raise NotFoundError(f"no artifact {sha256[:64]} for this device")
        size = blobs.size(sha256)
        begin, end = _range(wanted, size)
        headers = {"Content-Length": str(end - begin), "Accept-Ranges": "bytes", "ETag": f'"{sha256}"'}
        if wanted is not None:
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{size}"
        return StreamingResponse(
            _pieces(blobs, sha256, begin, end),
            status_code=200 if wanted is None else 206,
            media_type="application/octet-stream",
            headers=headers,
        )

    return routes


def _range(text: str | None, size: int) -> tuple[int, int]:
    """First byte and the one after the last (RFC 9110, section 14); one range from a first byte on is enough here."""
    if text is None:
        return 0, size
    found = _RANGE.fullmatch(text)
    begin = int(found[1]) if found else size
    end = min(size, int(found[2]) + 1) if found and found[2] else size
    if not begin < end:
        raise HTTPException(416, f"no such bytes: {text[:80]}", {"Content-Range": f"bytes */{size}"})
    return begin, end


def _pieces(blobs: Blobs, sha256: str, begin: int, end: int) -> Iterator[bytes]:
    """The bytes, piece by piece; called in a thread, so that a slow store or device holds nobody up."""
    with blobs.open(sha256) as file:
        file.seek(begin)
        while begin < end:
            piece = file.read(min(_PIECE_BYTES, end - begin))
            if not piece:
                return
            begin += len(piece)
            yield piece
