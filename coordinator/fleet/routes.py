"""HTTP of the fleet: the operator's routes, and enrolment, which is open to whoever holds a one-time token."""

import base64
from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Depends, Header, HTTPException, Response
from pydantic import Field

from contract import signatures
from coordinator.answers import Body, answer
from coordinator.fleet.device_commands import Commands
from coordinator.fleet.service import RENEWAL, Fleet
from coordinator.signing.service import Signing
from coordinator.storage import Storage


class NewDevice(Body):
    """POST /v1/devices."""

    name: str
    tags: dict[str, str] = Field(default_factory=dict)
    hardware_class: str = ""
    again: bool = False


class NewRevocation(Body):
    """POST /v1/devices/NAME/revoke."""

    reason: str = ""


class NewLogLevel(Body):
    """POST /v1/devices/NAME/log-level."""

    level: str
    seconds: float


class NewBench(Body):
    """POST /v1/devices/NAME/bench."""

    bundle_sha256: str = Field(max_length=64)


class EnrolmentRequest(Body):
    """POST /v1/enrol; `csr` is PKCS#10 in PEM."""

    token: str = Field(max_length=256)
    csr: str = Field(max_length=16_384)
    hardware_class: str = ""


def signed_by_device(fleet: Fleet, audience: str) -> Callable[..., str]:
    """A dependency for routes that devices call: the name of the device that signed the request for `audience`."""

    def check(authorization: Annotated[str | None, Header()] = None) -> str:
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != signatures.SCHEME.lower() or not token:
            wanted = {"WWW-Authenticate": signatures.SCHEME}
            raise HTTPException(401, f"this needs a device's token: Authorization: {signatures.SCHEME} …", wanted)
        return fleet.device_of(token.strip(), audience)

    return check


def router(fleet: Fleet, commands: Commands) -> APIRouter:
    """The operator's routes."""
    routes = APIRouter(prefix="/v1/devices", tags=["fleet"])

    @routes.post("")
    def add_device(body: NewDevice) -> Response:
        return answer(fleet.add(body.name, body.tags, body.hardware_class, again=body.again), status=201)

    @routes.get("")
    def list_devices(cohort: str = "all") -> Response:
        return answer(fleet.find(cohort))

    @routes.get("/{name}")
    def get_device(name: str) -> Response:
        return answer(fleet.get(name))

    @routes.post("/{name}/revoke")
    def revoke_device(name: str, body: NewRevocation) -> Response:
        return answer(fleet.revoke(name, body.reason))

    @routes.post("/{name}/log-level")
    def set_log_level(name: str, body: NewLogLevel) -> Response:
        return answer(commands.set_log_level(name, body.level, body.seconds), status=201)

    @routes.post("/{name}/diagnostics")
    def diagnose(name: str) -> Response:
        return answer(commands.diagnose(name), status=201)

    @routes.post("/{name}/bench")
    def bench(name: str, body: NewBench) -> Response:
        return answer(commands.bench(name, body.bundle_sha256), status=201)

    @routes.get("/{name}/commands")
    def list_commands(name: str) -> Response:
        return answer(commands.history(name))

    @routes.get("/{name}/commands/{id}")
    def get_command(name: str, id: str) -> Response:  # noqa: A002 its name in the path
        return answer(commands.get(name, id))

    @routes.get("/{name}/commands/{id}/archive")
    def get_archive(name: str, id: str) -> Response:  # noqa: A002 its name in the path
        return Response(commands.archive(name, id), media_type="application/zip")

    return routes


def measurements(commands: Commands) -> APIRouter:
    """What devices measured."""
    routes = APIRouter(prefix="/v1/measurements", tags=["fleet"])

    @routes.get("")
    def list_measurements(artifact: str) -> Response:
        return answer(commands.measurements(artifact))

    return routes


def enrolment(fleet: Fleet, signing: Signing, storage: Storage) -> APIRouter:
    """What devices call: enrolment, open to whoever holds a one-time token, and renewal, signed with the key."""
    routes = APIRouter(prefix="/v1", tags=["enrolment"])

    @routes.post("/enrol")
    def enrol(body: EnrolmentRequest) -> Response:
        with storage.engine.begin() as connection:
            root = signing.root(connection)  # before the token is used up
        made = fleet.enrol(body.token, body.csr.encode(), body.hardware_class)
        content = {
            "device": made.device,
            "certificate": made.certificate.decode(),
            "ca": made.ca.decode(),
            "broker_host": made.broker_host,
            "broker_port": made.broker_port,
            "root": base64.b64encode(root).decode(),
        }
        return answer(content, status=201)

    signer = signed_by_device(fleet, RENEWAL)

    @routes.post("/renew")
    def renew(device: Annotated[str, Depends(signer)]) -> Response:
        with storage.engine.begin() as connection:
            return answer({"device": device, "certificate": fleet.renew(connection, device).decode()})

    return routes
