"""Every error that stepaudio raises on purpose.

A message says what was wrong and what to do about it; the command line prints it as it is, the HTTP API
sends it as the `message` of an OpenAI-style error. `status` is the HTTP status and `code` the machine-readable
name that the API reports; `exit_code` is what the command line returns.
"""

from __future__ import annotations


class StepAudioError(Exception):
    """Base of all errors raised by stepaudio."""

    status = 500
    code = "internal_error"
    exit_code = 1


class InputError(StepAudioError):
    """The caller's input cannot be used as it is: bad audio, bad text, an unknown name, a field out of range."""

    status = 400
    code = "invalid_input"
    exit_code = 2

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class AudioError(InputError):
    """The audio cannot be decoded, or holds nothing that can be worked on."""

    code = "invalid_audio"


class TextError(InputError):
    """The text cannot be spoken or understood."""

    code = "invalid_text"


class NotFoundError(InputError):
    """A voice, bundle, model or file of that name does not exist."""

    status = 404
    code = "not_found"


class TooLargeError(InputError):
    """The input is over a limit of this server."""

    status = 413
    code = "too_large"


class BusyError(StepAudioError):
    """All slots and the queue are taken; try again after `retry_after` seconds."""

    status = 429
    code = "server_busy"
    exit_code = 5

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class MissingError(StepAudioError):
    """Weights or a package that a bundle needs are not on this machine."""

    status = 503
    code = "missing_weights"
    exit_code = 3


class IntegrityError(StepAudioError):
    """A file does not have the SHA-256 that was promised for it."""

    code = "checksum_mismatch"
    exit_code = 4


class BackendError(StepAudioError):
    """A model or a remote endpoint failed while working."""

    status = 502
    code = "backend_error"


class Cancelled(StepAudioError):
    """The work was cancelled by the caller; nothing went wrong."""

    status = 499
    code = "cancelled"
    exit_code = 130
