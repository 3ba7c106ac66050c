"""The daemon on a device: pulls signed bundles, infers locally, counts what it sees, trains when asked.

Imports numpy, msgspec, safetensors, cryptography, paho-mqtt, ai-edge-litert and (in a short-lived child) tuf, and
of ours only `contract`. Read `daemon` for the composition, then `updater`, `monitor` and `trainer`.
"""

__version__ = "0.1.0"
RELEASED = 1795392000.0  # this version is not older, seconds since the epoch (2026-11-23); no clock is earlier
