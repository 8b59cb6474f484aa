"""Transport: kubeconfig, authentication and TLS by the official client; bytes in, bytes out.

Two semi-public members of the client are used (its configuration and its pool manager), so the
major version is pinned in ``pyproject.toml`` and the contract suite covers them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import msgspec
import urllib3
from kubernetes import client, config

from tensorfusion.api.resource import JsonObject
from tensorfusion.errors import (
    AlreadyExists,
    ApiError,
    BadRequest,
    Cause,
    ConfigError,
    Conflict,
    Forbidden,
    Gone,
    Invalid,
    MethodNotAllowed,
    NotAcceptable,
    NotFound,
    TooLarge,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    UnsupportedMediaType,
)

CONNECT_SECONDS = 5.0
READ_SECONDS = 60.0

_BY_REASON: dict[str, type[ApiError]] = {
    cls.reason: cls
    for cls in (
        AlreadyExists,
        BadRequest,
        Conflict,
        Forbidden,
        Gone,
        Invalid,
        MethodNotAllowed,
        NotAcceptable,
        NotFound,
        TooLarge,
        TooManyRequests,
        Unauthorized,
        Unavailable,
        UnsupportedMediaType,
    )
}
_BY_CODE: dict[int, type[ApiError]] = {
    400: BadRequest,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    405: MethodNotAllowed,
    406: NotAcceptable,
    409: Conflict,
    410: Gone,
    413: TooLarge,
    415: UnsupportedMediaType,
    422: Invalid,
    429: TooManyRequests,
    503: Unavailable,
}


class Transport:
    """Sends requests to one API server.

    Args:
        kubeconfig: A kubeconfig file; None means in-cluster, else the user's default file.
        context: Context of the file; empty means its current one.

    Raises:
        ConfigError: There is no usable configuration; names the file and the reason.
    """

    def __init__(self, kubeconfig: Path | None = None, context: str = "") -> None:
        settings = client.Configuration()
        try:
            if kubeconfig is None and _in_cluster():
                config.load_incluster_config(  # type: ignore[no-untyped-call]  # the client is untyped here
                    client_configuration=settings
                )
            else:
                config.load_kube_config(  # type: ignore[no-untyped-call]  # the client is untyped here
                    str(kubeconfig) if kubeconfig else None,
                    context or None,
                    client_configuration=settings,
                    persist_config=False,
                )
        except (config.ConfigException, OSError) as error:
            raise ConfigError(f"kubeconfig {kubeconfig or '(default)'}: {error}") from error
        settings.connection_pool_maxsize = 32
        self.server: str = settings.host
        self._client = client.ApiClient(settings)
        self._pool: urllib3.PoolManager = self._client.rest_client.pool_manager

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: bytes | None = None,
        content_type: str = "application/json",
        stream: bool = False,
        read_seconds: float | None = READ_SECONDS,
    ) -> Any:
        """Send one request and return urllib3's response (status not checked when streaming).

        Raises:
            ApiError: The subclass of the Status the server answered with; `Unavailable` when it
                cannot be reached.
        """
        headers = {"Accept": "application/json", "User-Agent": "tensorfusion"}
        # The client fills in the bearer token (or runs its refresh) for this one security scheme.
        self._client.update_params_for_auth(headers, [], ["BearerToken"], path, method, None)
        if body is not None:
            headers["Content-Type"] = content_type
        url = self.server + path + (f"?{urlencode(query)}" if query else "")
        try:
            response = self._pool.request(
                method,
                url,
                body=body,
                headers=headers,
                preload_content=not stream,
                timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=read_seconds),
                retries=False,
            )
        except urllib3.exceptions.HTTPError as error:
            raise Unavailable(f"server {self.server} cannot be reached: {_cause(error)}") from error
        if response.status >= 400:
            data = response.read() if stream else response.data
            raise error_from(response.status, data)
        return response

    def close(self) -> None:
        """Close pooled connections."""
        self._pool.clear()


def error_from(code: int, data: bytes) -> ApiError:
    """Turn an error answer into the exception of its Status reason."""
    try:
        status: JsonObject = msgspec.json.decode(data)
    except msgspec.DecodeError:
        status = {}
    if not isinstance(status, dict) or status.get("kind") != "Status":
        status = {"message": data.decode("utf-8", "replace").strip() or f"HTTP {code}"}
    kind = _BY_REASON.get(status.get("reason", "")) or _BY_CODE.get(code, ApiError)
    details = status.get("details") or {}
    causes = [
        Cause(c.get("field", ""), c.get("reason", ""), c.get("message", ""))
        for c in details.get("causes") or []
    ]
    plain = {k: str(v) for k, v in details.items() if k in ("name", "group", "kind", "uid")}
    return kind(
        status.get("message", ""),
        causes=causes,
        details=plain,
        retry_after_seconds=details.get("retryAfterSeconds"),
    )


def _in_cluster() -> bool:
    return Path("/var/run/secrets/kubernetes.io/serviceaccount/token").exists()


def _cause(error: BaseException) -> str:
    """The innermost reason, such as ``Connection refused``, without the pool's own story."""
    while error.__cause__ is not None or error.__context__ is not None:
        error = error.__cause__ or error.__context__ or error
    return str(error) or type(error).__name__
