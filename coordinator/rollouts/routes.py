"""HTTP of the rollouts."""

from fastapi import APIRouter, Response
from pydantic import Field

from coordinator.answers import Body, answer
from coordinator.rollouts.service import Rollouts


class NewRollout(Body):
    """POST /v1/rollouts."""

    bundle_sha256: str
    cohort: str = "all"
    waves: list[float] | None = Field(default=None, max_length=100)
    max_failures: int = 0
    device_timeout_s: float = 300.0
    health_timeout_s: float = 0.0
    seed: int | None = None


def router(rollouts: Rollouts) -> APIRouter:
    """Routes over the rollouts."""
    routes = APIRouter(prefix="/v1/rollouts", tags=["rollouts"])

    @routes.post("")
    def start(body: NewRollout) -> Response:
        return answer(rollouts.start(**body.model_dump()), status=201)

    @routes.get("")
    def every() -> Response:
        return answer(rollouts.every())

    @routes.get("/{id}")
    def get(id: str) -> Response:  # noqa: A002 its name
        return answer(rollouts.get(id))

    @routes.post("/{id}/pause")
    def pause(id: str) -> Response:  # noqa: A002 its name
        return answer(rollouts.pause(id))

    @routes.post("/{id}/resume")
    def resume(id: str) -> Response:  # noqa: A002 its name
        return answer(rollouts.resume(id))

    @routes.post("/{id}/abort")
    def abort(id: str) -> Response:  # noqa: A002 its name
        return answer(rollouts.abort(id))

    return routes
