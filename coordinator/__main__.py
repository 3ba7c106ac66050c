"""`python -m coordinator`: a role as the supervisor starts it; people use `fieldfare serve`."""

import sys

from contract.errors import ContractError
from coordinator.cli import app
from coordinator.errors import CoordinatorError
from coordinator.supervisor import SETUP_STATUS
from coordinator.transport import ClientError

try:
    app()
except (ClientError, ContractError, CoordinatorError) as error:
    sys.stderr.write(f"fieldfare: {error}\n")
    raise SystemExit(SETUP_STATUS) from error
