"""`python -m coordinator`: a role as the supervisor starts it; people use `fieldfare serve`."""

import sys

from coordinator.cli import app
from coordinator.errors import CoordinatorError
from coordinator.supervisor import SETUP_STATUS

try:
    app()
except CoordinatorError as error:
    sys.stderr.write(f"fieldfare: {error}\n")
    raise SystemExit(SETUP_STATUS) from error
