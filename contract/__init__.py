"""What device and cloud must agree on to the byte.

The coordinator and the agent share only this package. It imports numpy, msgspec, safetensors and
cryptography and nothing of ours; it opens no socket and no file. Read `topics`, then `messages`, then `codec`.
"""
