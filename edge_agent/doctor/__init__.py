"""What is wrong with this device, and what to do: `edge-agent doctor`.

Each check looks at one thing and gives a `Finding`; a check that fails itself is a finding too, so that the doctor
works in any broken folder. `machine` looks at clock, disk, memory and permissions, `identity` at key and certificate,
`network` at broker and coordinator, `content` at the configuration, the agent's memory, slots and runtime.
"""

from edge_agent.doctor.examination import Finding, Patient, examine

__all__ = ["Finding", "Patient", "examine"]
