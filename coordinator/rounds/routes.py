"""HTTP of the rounds."""

import time
from typing import Any

from fastapi import APIRouter, Response
from pydantic import Field

from coordinator.answers import Body, answer
from coordinator.rounds.service import Rounds
from coordinator.rounds.views import run_record
from coordinator.storage import Storage


class NewRun(Body):
    """POST /v1/rounds."""

    model: str
    cohort: str = "all"
    version: int | None = None
    config: dict[str, Any] = Field(default_factory=dict)


def router(rounds: Rounds, storage: Storage) -> APIRouter:
    """Routes over the rounds."""
    routes = APIRouter(prefix="/v1/rounds", tags=["rounds"])

    @routes.post("")
    def launch_run(body: NewRun) -> Response:
        with storage.engine.begin() as connection:
            run = rounds.launch_query(
                connection,
                model=body.model,
                cohort=body.cohort,
                version=body.version,
                settings=body.config,
                now=time.time(),
            )
        return answer(run_record(run), status=201)

    @routes.get("")
    def list_runs() -> Response:
        with storage.engine.begin() as connection:
            return answer([run_record(run) for run in rounds.every(connection)])

    @routes.get("/{run}")
    def get_run(run: str) -> Response:
        with storage.engine.begin() as connection:
            status = rounds.status(connection, run)
        return answer(run_record(status.run, status.rounds))

    @routes.post("/{run}/cancel")
    def cancel_run(run: str) -> Response:
        with storage.engine.begin() as connection:
            return answer(run_record(rounds.cancel(connection, run, time.time())))

    return routes
