"""Errors that are shown to a person: one sentence that names the value, the limit and the way out."""

from __future__ import annotations


class MedsegError(ValueError):
    """Bad input. `status` is the HTTP status the server answers with; the command line exits with 2."""

    status = 400


class NotFoundError(MedsegError):
    """Something that was asked for by name does not exist."""

    status = 404


class ConflictError(MedsegError):
    """The request is right, but the present state (a lock, a running job) does not allow it."""

    status = 409


class UnusableInputError(MedsegError):
    """The input was understood and cannot be used: a corrupt volume, an unknown label name, a wrong grid."""

    status = 422
