"""HTTP of the jobs."""

from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from pydantic import Field

from coordinator.answers import Body, answer
from coordinator.jobs.service import Jobs


class NewJob(Body):
    """POST /v1/jobs."""

    kind: str
    spec: dict[str, Any] = Field(default_factory=dict)
    id: str | None = None


def router(jobs: Jobs) -> APIRouter:
    """Routes over the jobs."""
    routes = APIRouter(prefix="/v1/jobs", tags=["jobs"])

    @routes.post("")
    def create_job(body: NewJob) -> Response:
        return answer(jobs.create(body.kind, body.spec, id=body.id), status=201)

    @routes.get("")
    def list_jobs() -> Response:
        return answer(jobs.all())

    @routes.get("/{job}")
    def get_job(job: str) -> Response:
        return answer(jobs.get(job))

    @routes.get("/{job}/log")
    def get_log(job: str) -> Response:
        return PlainTextResponse(jobs.log(job))

    @routes.post("/{job}/cancel")
    def cancel_job(job: str) -> Response:
        return answer(jobs.cancel(job))

    return routes
