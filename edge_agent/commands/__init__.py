"""The sub-commands of `edge-agent`, one module each with `add(commands)`.

Nothing heavy at module level: `edge-agent --help` imports them all. What a command needs is imported by the function
that runs it.
"""
