"""What the server has: ``/version``, ``/api``, ``/apis`` in both forms, and OpenAPI v3."""

import hashlib
import platform
from collections.abc import Iterable
from functools import cached_property
from typing import Final

from tensorfusion.api.openapi import document, group_versions
from tensorfusion.api.registry import RESOURCES
from tensorfusion.api.resource import JsonObject, Resource
from tensorfusion.apiserver.negotiation import encode_json
from tensorfusion.store.interface import PatchType

KUBERNETES_MINOR: Final = 32
"""The minor version of Kubernetes whose wire this is; clients compare it with their own."""

_SUBRESOURCE_VERBS: Final = ["get", "patch", "update"]


def version_document() -> JsonObject:
    """Return the body of ``/version``."""
    return {
        "major": "1",
        "minor": str(KUBERNETES_MINOR),
        "gitVersion": f"v1.{KUBERNETES_MINOR}.0+tensorfusion",
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "",
        "compiler": platform.python_implementation(),
        "platform": f"{platform.system().lower()}/{platform.machine()}",
    }


def _subresources(resource: Resource) -> list[tuple[str, str, str, list[str]]]:
    """Return name, response group/version, response kind and verbs of each subresource."""
    found = []
    if resource.has_status:
        found.append(("status", resource.api_version, resource.kind, _SUBRESOURCE_VERBS))
    if resource.has_scale:
        found.append(("scale", "autoscaling/v1", "Scale", _SUBRESOURCE_VERBS))
    if resource.kind == "Pod" and not resource.group:
        found.append(("binding", "v1", "Binding", ["create"]))
        found.append(("log", "v1", "Pod", ["get"]))
    return found


class Discovery:
    """Discovery documents of the registered kinds, built on first use."""

    def __init__(self, resources: Iterable[Resource] = RESOURCES) -> None:
        self._resources = list(resources)
        self._openapi: dict[str, tuple[bytes, str]] = {}

    @cached_property
    def group_versions(self) -> list[tuple[str, str]]:
        """Group and version pairs, the core group first, ours before the rest."""
        pairs = dict.fromkeys((r.group, r.version) for r in self._resources)
        custom = {r.group for r in self._resources if r.is_custom}
        return sorted(pairs, key=lambda pair: (pair[0] != "", pair[0] not in custom, pair))

    def _of(self, group: str, version: str) -> list[Resource]:
        return [r for r in self._resources if (r.group, r.version) == (group, version)]

    def core_versions(self) -> JsonObject:
        """Return the plain body of ``/api``."""
        return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}

    def groups(self) -> JsonObject:
        """Return the plain body of ``/apis``."""
        groups = [self._group(group, version) for group, version in self.group_versions if group]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}

    def group(self, name: str) -> JsonObject | None:
        """Return the plain body of ``/apis/GROUP``."""
        for group, version in self.group_versions:
            if group and group == name:
                return {"kind": "APIGroup", "apiVersion": "v1", **self._group(group, version)}
        return None

    @staticmethod
    def _group(group: str, version: str) -> JsonObject:
        entry = {"groupVersion": f"{group}/{version}", "version": version}
        return {"name": group, "versions": [entry], "preferredVersion": entry}

    def resources(self, group: str, version: str) -> JsonObject | None:
        """Return the plain body of ``/api/VERSION`` or ``/apis/GROUP/VERSION``."""
        found = self._of(group, version)
        if not found:
            return None
        entries: list[JsonObject] = []
        for resource in found:
            entry: JsonObject = {
                "name": resource.plural,
                "singularName": resource.singular,
                "namespaced": resource.namespaced,
                "kind": resource.kind,
                "verbs": list(resource.verbs),
            }
            if resource.short_names:
                entry["shortNames"] = list(resource.short_names)
            if resource.categories:
                entry["categories"] = list(resource.categories)
            entries.append(entry)
            for name, api_version, kind, verbs in _subresources(resource):
                sub: JsonObject = {
                    "name": f"{resource.plural}/{name}",
                    "singularName": "",
                    "namespaced": resource.namespaced,
                    "kind": kind,
                    "verbs": verbs,
                }
                if api_version != resource.api_version:
                    sub["group"], _, sub["version"] = api_version.rpartition("/")
                entries.append(sub)
        return {
            "kind": "APIResourceList",
            "apiVersion": "v1",
            "groupVersion": f"{group}/{version}" if group else version,
            "resources": entries,
        }

    def aggregated(self, *, core: bool) -> JsonObject:
        """Return the one-document form of ``/api`` (``core``) or ``/apis``."""
        items = [
            {
                "metadata": {"name": group, "creationTimestamp": None},
                "versions": [
                    {
                        "version": version,
                        "freshness": "Current",
                        "resources": [self._aggregate(r) for r in self._of(group, version)],
                    }
                ],
            }
            for group, version in self.group_versions
            if (group == "") is core
        ]
        return {
            "kind": "APIGroupDiscoveryList",
            "apiVersion": "apidiscovery.k8s.io/v2",
            "metadata": {},
            "items": items,
        }

    @staticmethod
    def _aggregate(resource: Resource) -> JsonObject:
        entry: JsonObject = {
            "resource": resource.plural,
            "responseKind": {
                "group": resource.group,
                "version": resource.version,
                "kind": resource.kind,
            },
            "scope": "Namespaced" if resource.namespaced else "Cluster",
            "singularResource": resource.singular,
            "verbs": list(resource.verbs),
        }
        if resource.short_names:
            entry["shortNames"] = list(resource.short_names)
        if resource.categories:
            entry["categories"] = list(resource.categories)
        subresources = []
        for name, api_version, kind, verbs in _subresources(resource):
            group, _, version = api_version.rpartition("/")
            subresources.append(
                {
                    "subresource": name,
                    "responseKind": {"group": group, "version": version, "kind": kind},
                    "verbs": verbs,
                }
            )
        if subresources:
            entry["subresources"] = subresources
        return entry

    def openapi_index(self) -> JsonObject:
        """Return the body of ``/openapi/v3``: a URL with a content hash per group version."""
        paths = {}
        for path in group_versions():
            _, digest = self.openapi(path)
            paths[path] = {"serverRelativeURL": f"/openapi/v3/{path}?hash={digest}"}
        return {"paths": paths}

    def openapi(self, path: str) -> tuple[bytes, str]:
        """Return the encoded OpenAPI v3 document of a path such as ``apis/apps/v1``, and its hash.

        Raises:
            NotFound: Nothing is served there.
        """
        known = self._openapi.get(path)
        if known is None:
            body = encode_json(_servable(document(path)))
            known = (body, hashlib.sha256(body).hexdigest().upper())
            self._openapi[path] = known
        return known


def _servable(openapi: JsonObject) -> JsonObject:
    """Return a document whose custom kinds do not offer strategic merge patches.

    kubectl picks the patch type of ``apply`` from the media types that it finds there.
    """
    custom = {(r.group, r.kind) for r in RESOURCES if r.is_custom}
    paths = {}
    for path, item in openapi.get("paths", {}).items():
        patch = item.get("patch", {})
        kind = patch.get("x-kubernetes-group-version-kind", {})
        if (kind.get("group"), kind.get("kind")) in custom:
            content = patch["requestBody"]["content"]
            kept = {name: value for name, value in content.items() if name != PatchType.STRATEGIC}
            item = {**item, "patch": {**patch, "requestBody": {"content": kept}}}
        paths[path] = item
    return {**openapi, "paths": paths}
