"""Errors of the wire contract, grouped by who is at fault.

ContractError
├── WireError                the sender broke the contract
│   ├── TooLargeError        more bytes than the limit allows
│   ├── MalformedError       bytes that do not decode to the declared type
│   ├── TopicError           a topic outside the grammar
│   └── SignatureError       a signature that does not verify
├── BundleError              a bundle whose parts do not agree with its manifest
├── TensorError              arrays of another name, shape, dtype, or not finite
├── TransformError           a transform spec that cannot run, or input that does not fit it
└── ProfileError             counters that do not fit their bins
"""


class ContractError(Exception):
    """Root of every error that `contract` raises on purpose."""


class WireError(ContractError):
    """The sender broke the wire contract; the message must be dropped and counted."""


class TooLargeError(WireError):
    """More bytes than the limit allows.

    Attributes:
        size: bytes received.
        limit: bytes allowed.
    """

    def __init__(self, what: str, *, size: int, limit: int) -> None:
        super().__init__(f"{what} has {size} bytes, the limit is {limit}")
        self.size = size
        self.limit = limit


class MalformedError(WireError):
    """Bytes that do not decode to the declared type."""


class TopicError(WireError):
    """A topic, device name or channel outside the grammar of `contract.topics`."""


class SignatureError(WireError):
    """A signature that does not verify with the given public key."""


class BundleError(ContractError):
    """A bundle whose parts do not agree with its manifest."""


class TensorError(ContractError):
    """Arrays of another name, shape or dtype than expected, or with values that are not finite."""


class TransformError(ContractError):
    """A transform spec that cannot run, or input that does not fit it."""


class ProfileError(ContractError):
    """Counters that do not fit their bins."""
