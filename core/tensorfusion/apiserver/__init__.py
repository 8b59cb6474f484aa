"""The Kubernetes REST wire of the embedded store, on an authenticated loopback port over TLS."""

from tensorfusion.apiserver.app import Seams
from tensorfusion.apiserver.exchange import Request, Response, json_response
from tensorfusion.apiserver.logs import PodLogRequest, PodLogs
from tensorfusion.apiserver.server import ApiServer

__all__ = [
    "ApiServer",
    "PodLogRequest",
    "PodLogs",
    "Request",
    "Response",
    "Seams",
    "json_response",
]
