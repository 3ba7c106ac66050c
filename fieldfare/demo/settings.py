"""What a person may choose for the demonstration, and what it chooses for them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

MODEL = "digits"
SMALLEST_COHORT = 2  # so that three of five devices may be reported; the default of a real fleet is 10
DRIFT = {
    "alpha": 0.01,
    "materiality": 0.25,
    "baseline_samples": 60,  # every camera has at least so many images
    "window_samples": 60,
    "interval_s": 0.5,
}
POLICY = {"action": "run", "rounds": 6, "epochs": 5, "learning_rate": 0.005, "momentum": 0.9, "round_timeout_s": 60.0}
AGENT = {"window_samples": 30, "window_idle_s": 1.0, "poll_s": 0.1, "hello_s": 5.0}
RECOVERED_POINTS = 5.0  # version 2 must beat version 1 by this much on the drifted images


@dataclass(frozen=True)
class Settings:
    """One demonstration.

    Attributes:
        folder: of its own; everything but the report lies there.
        devices: how many agents; at least 4, so that some drift and some do not.
        broker: `embedded` needs nothing installed, `mosquitto` the program.
        report: HTML file to write.
        seed: of shares and drift.
    """

    folder: Path
    devices: int = 5
    broker: Literal["embedded", "mosquitto"] = "embedded"
    report: Path = Path("demo-report.html")
    seed: int = 0

    @property
    def state(self) -> Path:
        """The coordinator's state folder."""
        return self.folder / "coordinator"

    @property
    def drifting(self) -> list[str]:
        """The devices whose cameras drift: three of five, rounded up."""
        return [f"meter-{number}" for number in range(1, -(-3 * self.devices // 5) + 1)]

    def agent(self, device: str) -> Path:
        """State folder of a device's agent."""
        return self.folder / device

    def coordinator(self) -> dict[str, Any]:
        """What the demonstration sets in `coordinator.toml`."""
        return {"smallest_cohort": SMALLEST_COHORT, "drift": DRIFT, "policy": POLICY}
