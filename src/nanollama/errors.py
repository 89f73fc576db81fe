"""The error tree: every failure a user can meet, with its exit code and HTTP status.

    NanollamaError
    |-- UsageError               the command line or an argument is wrong
    |-- ModelNotFoundError       no model of that name or path
    |-- DownloadError            a model could not be fetched or did not match its digest
    |-- FormatError              a model file is malformed
    |-- UnsupportedError         well formed, but something we do not run
    |-- TemplateError            a chat template failed, or overran its budget
    |-- ContextOverflowError     the prompt does not fit the context window
    |-- OverloadedError          too many requests are waiting already
    `-- BackendError             the device or backend asked for cannot be used

A message is one sentence that says what happened, what was expected and what to do. It is shown as it
stands: never with a traceback.
"""

from typing import ClassVar


class NanollamaError(Exception):
    """Base of all errors that are the caller's, the file's or the machine's fault, not ours."""

    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500


class UsageError(NanollamaError):
    """An argument, option or parameter is missing, unknown or out of range."""

    exit_code = 2
    http_status = 400


class ModelNotFoundError(NanollamaError):
    """The model name is not in the catalogue and no such file exists."""

    http_status = 404


class DownloadError(NanollamaError):
    """A model could not be fetched from any of its sources, or what came did not match its digest."""

    http_status = 502


class FormatError(NanollamaError):
    """A model file is malformed: truncated, inconsistent, or with a value outside its format's rules."""

    exit_code = 2


class UnsupportedError(NanollamaError):
    """The file is well formed but uses an architecture, tensor type or feature that is not supported."""

    exit_code = 2
    http_status = 400


class TemplateError(NanollamaError):
    """A chat template could not be parsed, raised, or overran its time or output budget."""

    exit_code = 2
    http_status = 400


class ContextOverflowError(NanollamaError):
    """The prompt needs more tokens than the context window has."""

    http_status = 400


class OverloadedError(NanollamaError):
    """The queue of waiting requests is full; the same request may be sent again later."""

    http_status = 429


class BackendError(NanollamaError):
    """The device, data type or backend asked for is not available on this machine."""
