"""Records to HTTP answers, and the request bodies' common base."""

import msgspec
from fastapi import Response
from pydantic import BaseModel, ConfigDict


class Body(BaseModel):
    """A request body; a field that does not belong is refused, so that a misspelt one is noticed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def answer(value: object, *, status: int = 200) -> Response:
    """JSON of a record, a list of them, or plain values."""
    return Response(msgspec.json.encode(value), status_code=status, media_type="application/json")
