"""Errors of the agent, grouped by what is at fault.

AgentError
├── ConfigError              the agent's folder or agent.toml; the owner of the device can mend it
│   └── CorruptStateError    ... because the disk changed the agent's memory; the next start begins a new one
├── EnrolmentError           the coordinator did not enrol this device, or could not be asked
├── RefusedError             a bundle that must not serve here; the message becomes the receipt's reason
│   └── TrustError           ... because its TUF metadata does not vouch for it
├── UnavailableError         nobody answered in time; worth trying again
│   ├── GivenUpError         ... unless nobody wants the answer any more
│   └── HeldError            ... when the owner's rules allow it
├── RuntimeModelError        a .tflite that this runtime cannot run
│   └── NotFiniteError       ... because its output is not finite
├── ApiError                 an app's request that cannot be answered; it has an HTTP status
├── SampleError              a sample file that cannot be read or does not fit the model
└── TrainingError            an instruction that cannot be carried out
    ├── TrainingDivergedError    ... because the result is not finite
    └── TrainingStoppedError     ... because the caller asked to stop
"""


class AgentError(Exception):
    """Root of every error that the agent raises on purpose."""


class ConfigError(AgentError):
    """The agent's folder or `agent.toml` is not usable; the message says what to do."""


class CorruptStateError(ConfigError):
    """The disk changed the agent's memory; `recovery.open_state` begins a new one."""


class EnrolmentError(AgentError):
    """The coordinator did not enrol this device, or could not be asked."""


class RefusedError(AgentError):
    """A bundle that must not serve here."""


class TrustError(RefusedError):
    """The TUF metadata does not vouch for the bundle."""


class UnavailableError(AgentError):
    """Nobody answered in time; worth trying again."""


class GivenUpError(UnavailableError):
    """Nobody wants any more what was waited for."""


class HeldError(UnavailableError):
    """The owner's rules do not allow an update now: maintenance windows, a metered network, a random delay."""


class RuntimeModelError(AgentError):
    """A `.tflite` that this runtime cannot run, or input that does not fit it."""


class ApiError(AgentError):
    """An app's request that cannot be answered.

    Attributes:
        status: of HTTP.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class NotFiniteError(RuntimeModelError):
    """A model gave an output that is not finite."""


class SampleError(AgentError):
    """A sample file that cannot be read or does not fit the model."""


class TrainingError(AgentError):
    """An instruction that cannot be carried out."""


class TrainingDivergedError(TrainingError):
    """Training gave a loss or weights that are not finite."""


class TrainingStoppedError(TrainingError):
    """The caller asked to stop before the last batch."""
