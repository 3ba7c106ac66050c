"""HTTP of the monitoring."""

from fastapi import APIRouter, Response

from coordinator.answers import answer
from coordinator.monitoring.service import Monitoring
from coordinator.storage import Storage


def router(monitoring: Monitoring, storage: Storage) -> APIRouter:
    """Routes over the monitoring."""
    routes = APIRouter(prefix="/v1/drift", tags=["drift"])

    @routes.get("")
    def get_report(model: str, version: int | None = None, since: float | None = None, cohort: str = "all") -> Response:
        with storage.engine.begin() as connection:
            found = monitoring.report(connection, model, version=version, since=since, cohort=cohort)
        return answer(found)

    @routes.get("/alerts")
    def list_alerts() -> Response:
        with storage.engine.begin() as connection:
            return answer(monitoring.alerts(connection))

    return routes
