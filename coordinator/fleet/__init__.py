"""Who is enrolled: devices, their one-time tokens and certificates, what they say of themselves, cohorts."""
