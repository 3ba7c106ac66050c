"""Moving a cohort to a bundle in waves, and the signed receipts that say how it went."""
