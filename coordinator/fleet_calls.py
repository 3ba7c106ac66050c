"""What the API offers of the fleet: devices, what is asked of them, and what they measured."""

import time
from collections.abc import Mapping

from coordinator.records import Device, DeviceCommand, DeviceToken, Measurement
from coordinator.transport import Transport, UnreachableError


class FleetCalls(Transport):
    """Part of `coordinator.client.Client`."""

    def add_device(
        self, name: str, tags: Mapping[str, str] | None = None, *, hardware_class: str = "", again: bool = False
    ) -> DeviceToken:
        """Expect a device, or one that is enrolled or revoked `again`.

        Its one-time token comes back, and replaces one that was not used.
        """
        body = {"name": name, "tags": tags or {}, "hardware_class": hardware_class, "again": again}
        return self.post("/v1/devices", DeviceToken, body)

    def devices(self, cohort: str = "all") -> list[Device]:
        """Devices of a cohort (`all`, `name=a,b`, `tag:site=north`, `class=x86-64`), by name."""
        return self.get("/v1/devices", list[Device], cohort=cohort)

    def device(self, name: str) -> Device:
        """One device."""
        return self.get(f"/v1/devices/{name}", Device)

    def revoke_device(self, name: str, reason: str = "") -> Device:
        """End what a device may do; the broker cuts it off within seconds."""
        return self.post(f"/v1/devices/{name}/revoke", Device, {"reason": reason})

    def set_log_level(self, name: str, level: str, seconds: float) -> DeviceCommand:
        """Ask a device to log from this level on for so long."""
        return self.post(f"/v1/devices/{name}/log-level", DeviceCommand, {"level": level, "seconds": seconds})

    def diagnose(self, name: str) -> DeviceCommand:
        """Ask a device for a diagnostics archive; `wait_command`, then `diagnostics`."""
        return self.post(f"/v1/devices/{name}/diagnostics", DeviceCommand)

    def bench(self, name: str, bundle_sha256: str) -> DeviceCommand:
        """Ask a device to measure a signed bundle; `wait_command`, then `measurements`."""
        return self.post(f"/v1/devices/{name}/bench", DeviceCommand, {"bundle_sha256": bundle_sha256})

    def measurements(self, artifact_sha256: str) -> list[Measurement]:
        """What devices measured of an artifact, newest first."""
        return self.get("/v1/measurements", list[Measurement], artifact=artifact_sha256)

    def commands(self, name: str) -> list[DeviceCommand]:
        """What was asked of a device, newest first."""
        return self.get(f"/v1/devices/{name}/commands", list[DeviceCommand])

    def wait_command(self, command: DeviceCommand, *, timeout_s: float, poll_s: float = 0.2) -> DeviceCommand:
        """Wait for a device's answer.

        Raises:
            UnreachableError: it did not come in time; it may come later.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            found = self.get(f"/v1/devices/{command.device}/commands/{command.id}", DeviceCommand)
            if found.answered_at is not None:
                return found
            if time.monotonic() > deadline:
                raise UnreachableError(
                    f"{command.device} has not answered in {timeout_s:g} s; it will once it is connected: "
                    f"fieldfare devices commands {command.device}"
                )
            time.sleep(poll_s)

    def diagnostics(self, command: DeviceCommand) -> bytes:
        """The archive that came in answer: a zip."""
        return self.send("GET", f"/v1/devices/{command.device}/commands/{command.id}/archive").content
