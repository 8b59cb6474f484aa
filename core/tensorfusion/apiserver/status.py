"""``Status`` objects: how every error and some successes look on the wire."""

from typing import Any

from tensorfusion.api.resource import JsonObject
from tensorfusion.errors import ApiError


def failure(error: ApiError) -> JsonObject:
    """Return the ``Status`` of a refused request."""
    details: dict[str, Any] = dict(error.details)
    if error.causes:
        details["causes"] = [
            {"reason": cause.reason, "message": cause.message, "field": cause.field}
            for cause in error.causes
        ]
    if error.retry_after_seconds is not None:
        details["retryAfterSeconds"] = error.retry_after_seconds
    status: JsonObject = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": str(error),
        "reason": error.reason,
    }
    if details:
        status["details"] = details
    status["code"] = error.code
    return status


def success(details: JsonObject) -> JsonObject:
    """Return the ``Status`` of a request that worked and has no object to return."""
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "details": details,
    }
