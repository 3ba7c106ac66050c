"""The cohort engine: many clients' local training as one batched computation in torch."""
