"""The error of a client's request that does not fit the state of the conversation."""

from __future__ import annotations

from stepaudio.errors import InputError


class RequestError(InputError):
    """A request that cannot be carried out; nothing has changed, and the session goes on.

    `code` is the machine-readable name that the protocol reports.
    """

    def __init__(self, message: str, *, code: str, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.code = code
