"""Does the runtime take a `.tflite`? Tried in a process of its own: a file from elsewhere may end the one that runs it.

`python -P -m compression.trial` reads the file from standard input and prints why it is refused, or nothing.
"""

import subprocess
import sys

import numpy as np

SECONDS = 120  # for one inference, start included


def refusal(content: bytes) -> str:
    """Why the agent's runtime refuses an artifact; empty where it runs and answers with numbers."""
    command = [sys.executable, "-P", "-m", "compression.trial"]
    try:
        done = subprocess.run(command, input=content, capture_output=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"one inference takes longer than {SECONDS} s"
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        return f"the runtime ended with status {done.returncode}: {last[:200]}"
    return done.stdout.decode()


def main() -> None:
    """Try it."""
    from edge_agent.errors import RuntimeModelError
    from edge_agent.runtime import Runtime

    try:
        runtime = Runtime(sys.stdin.buffer.read())
        answer = runtime.logits(np.zeros((1, *runtime.input_shape), np.float32))
    except RuntimeModelError as error:
        sys.stdout.write(" ".join(str(error).split())[:300])
        return
    if not np.isfinite(answer).all():
        sys.stdout.write("it answers an input of zeros with values that are not finite")


if __name__ == "__main__":
    main()
