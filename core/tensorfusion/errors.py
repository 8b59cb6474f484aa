"""The exception tree: what callers can catch, and what each error carries as data.

Messages name the object, the field, the value and what is allowed. Errors of third-party
libraries are translated where they enter (``raise ... from``); callers never see them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


class TensorFusionError(Exception):
    """Root of every error this project raises on purpose."""


class ConfigError(TensorFusionError):
    """A setting, manifest or command line is wrong. Never retried."""


class PluginError(TensorFusionError):
    """A plugin failed; ``plugin`` and ``hook`` say which and where, ``__cause__`` says why."""

    def __init__(self, plugin: str, hook: str, message: str) -> None:
        super().__init__(f"plugin {plugin!r}, hook {hook}: {message}")
        self.plugin = plugin
        self.hook = hook


class BackendError(TensorFusionError):
    """A vendor backend or driver failed; ``vendor`` and ``code`` are the vendor's own words."""

    def __init__(self, vendor: str, message: str, *, code: str = "") -> None:
        super().__init__(f"{vendor}: {message}" + (f" ({code})" if code else ""))
        self.vendor = vendor
        self.code = code


class DeviceLost(BackendError):
    """The device fell off the bus or stopped answering."""


class Terminal(TensorFusionError):
    """A reconcile can never succeed as things stand; becomes the ``Stalled`` condition."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Cause:
    """One finding of a validation.

    Attributes:
        field: JSON path without the leading dot, such as ``spec.gpuCount``.
        reason: A ``metav1.CauseType``, such as ``FieldValueInvalid``.
        message: What is wrong with which value and what is allowed.
    """

    field: str
    reason: str
    message: str


class ApiError(TensorFusionError):
    """A resource store refused a request, in the terms of a Kubernetes ``Status``.

    Attributes:
        code: HTTP status code.
        reason: ``metav1.StatusReason``.
        causes: Findings of a validation, for ``details.causes``.
        details: ``group``, ``kind``, ``name`` of the object, where known.
        retry_after_seconds: Set when the caller should try again later.
    """

    code = 500
    reason = "InternalError"

    def __init__(
        self,
        message: str,
        *,
        causes: Sequence[Cause] = (),
        details: Mapping[str, str] | None = None,
        retry_after_seconds: int | None = None,
    ) -> None:
        super().__init__(message)
        self.causes = tuple(causes)
        self.details = dict(details or {})
        self.retry_after_seconds = retry_after_seconds


class BadRequest(ApiError):
    """The request cannot be read: bad JSON, bad selector, unknown field under Strict."""

    code, reason = 400, "BadRequest"


class Unauthorized(ApiError):
    """No credentials, or wrong ones."""

    code, reason = 401, "Unauthorized"


class Forbidden(ApiError):
    """Admission or authorization refused the request."""

    code, reason = 403, "Forbidden"


class NotFound(ApiError):
    """The object or the resource kind does not exist."""

    code, reason = 404, "NotFound"


class MethodNotAllowed(ApiError):
    """The resource does not support the verb."""

    code, reason = 405, "MethodNotAllowed"


class NotAcceptable(ApiError):
    """The server cannot answer in any of the media types asked for."""

    code, reason = 406, "NotAcceptable"


class AlreadyExists(ApiError):
    """An object of that name exists."""

    code, reason = 409, "AlreadyExists"


class Conflict(ApiError):
    """The object changed since it was read, or another field manager owns the field."""

    code, reason = 409, "Conflict"


class Gone(ApiError):
    """The requested resourceVersion is no longer kept; list again."""

    code, reason = 410, "Expired"


class TooLarge(ApiError):
    """The request body is larger than the server accepts."""

    code, reason = 413, "RequestEntityTooLarge"


class UnsupportedMediaType(ApiError):
    """The body's media type cannot be read here."""

    code, reason = 415, "UnsupportedMediaType"


class Invalid(ApiError):
    """The object breaks its schema or a validation rule; ``causes`` names the fields."""

    code, reason = 422, "Invalid"


class TooManyRequests(ApiError):
    """The server asks to slow down."""

    code, reason = 429, "TooManyRequests"


class Unavailable(ApiError):
    """The server cannot be reached or is shutting down. Retried with backoff."""

    code, reason = 503, "ServiceUnavailable"
