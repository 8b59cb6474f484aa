"""What a resource kind is: the facts that a store, a server and a client need about it.

The registry of kinds is `tensorfusion.api.registry`; this module has only the vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

JsonObject = dict[str, Any]
"""One API object as decoded JSON: the form in which stores and the wire pass objects.

Objects that a store, a watch or an informer hands out are shared: never change them in
place, copy what you change.
"""


@dataclass(frozen=True, slots=True)
class PrinterColumn:
    """One column of ``kubectl get``.

    Attributes:
        name: Heading.
        path: JSONPath as CRDs spell it, such as ``.status.phase``.
        type: ``string``, ``integer``, ``number``, ``boolean`` or ``date``.
        priority: 0 is always shown, 1 only with ``-o wide``.
        description: For ``kubectl explain`` and the reference page.
        cell: Computes the cell where a path cannot (core kinds only).
    """

    name: str
    path: str = ""
    type: str = "string"
    priority: int = 0
    description: str = ""
    cell: Callable[[JsonObject], Any] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Resource:
    """A resource kind as the API serves it.

    Attributes:
        group: API group; empty for the core group.
        version: API version, such as ``v1``.
        kind: ``CamelCase`` singular.
        plural: Lower-case plural, as in URLs.
        namespaced: False for cluster-scoped kinds.
        struct: The msgspec struct that validates an object of this kind.
        short_names: For kubectl, such as ``gp``.
        categories: For kubectl, such as ``tensorfusion``.
        columns: What ``kubectl get`` prints after the name.
        has_status: Whether ``/status`` is a subresource (spec writes then ignore status).
        has_scale: Whether ``/scale`` is a subresource.
        is_custom: True for kinds installed by CRD; their patches are merge patches.
        description: One or two sentences for ``kubectl explain``.
    """

    group: str
    version: str
    kind: str
    plural: str
    namespaced: bool
    struct: type[msgspec.Struct]
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    columns: tuple[PrinterColumn, ...] = ()
    has_status: bool = True
    has_scale: bool = False
    is_custom: bool = False
    description: str = ""
    verbs: tuple[str, ...] = field(
        default=("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")
    )

    @property
    def api_version(self) -> str:
        """``group/version``, or the bare version for the core group."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def singular(self) -> str:
        """Lower-case singular, as kubectl accepts it."""
        return self.kind.lower()

    @property
    def qualified(self) -> str:
        """``plural.group``, as error messages name a resource; the bare plural for the core group."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    def __repr__(self) -> str:
        return f"<Resource {self.qualified}/{self.version}>"
