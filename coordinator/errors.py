"""Errors of the coordinator, grouped by who is at fault.

CoordinatorError
├── CallerError              the caller can mend it; HTTP 4xx
│   ├── NotFoundError        no such thing (404)
│   ├── ConflictError        it exists already, or its state does not allow this (409)
│   ├── InvalidError         the request makes no sense (422)
│   └── DeniedError          no or wrong credentials (403)
└── SetupError               this machine lacks something: a program, a folder, a free port
"""


class CoordinatorError(Exception):
    """Root of every error that the coordinator raises on purpose."""


class CallerError(CoordinatorError):
    """The caller can mend it."""


class NotFoundError(CallerError):
    """No such thing."""


class ConflictError(CallerError):
    """It exists already, or its state does not allow this."""


class InvalidError(CallerError):
    """The request makes no sense."""


class DeniedError(CallerError):
    """No or wrong credentials."""


class SetupError(CoordinatorError):
    """This machine lacks something that the coordinator needs; the message says what to do."""
