"""What a device answers when it was asked to measure a bundle."""

from contract.messages import Measured

MEASURED = Measured(
    runtime="ai-edge-litert 2.3.0",
    calls=100,
    p50_us=10.0,
    p95_us=12.0,
    threads=2,
    p50_threads_us=8.0,
    p95_threads_us=9.0,
    load_us=900.0,
    peak_bytes=30_000_000,
)
