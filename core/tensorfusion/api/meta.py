"""What every object carries: metadata, conditions, selectors, list metadata and the error body.

Field names and meanings are those of ``meta/v1`` of the Kubernetes API.
"""

from typing import Annotated

from tensorfusion.api.fields import Doc, Int32, Int64, Labels, Raw, Time, Wire, mapping


class OwnerReference(Wire, frozen=True, kw_only=True):
    """An object that this one belongs to and is collected with."""

    __atomic__ = True

    api_version: Annotated[str, Doc("Group and version of the owner.")]
    kind: Annotated[str, Doc("Kind of the owner.")]
    name: Annotated[str, Doc("Name of the owner.")]
    uid: Annotated[str, Doc("Unique id of the owner.")]
    block_owner_deletion: Annotated[
        bool | None, Doc("Foreground deletion of the owner waits for this object.")
    ] = None
    controller: Annotated[bool | None, Doc("True for the one owner that manages this object.")] = (
        None
    )


class ManagedFieldsEntry(Wire, frozen=True, kw_only=True):
    """Which fields one manager wrote by server-side apply or update."""

    api_version: str = ""
    fields_type: str = ""
    fields_v1: Raw | None = None
    manager: str = ""
    operation: str = ""
    subresource: str = ""
    time: Time | None = None


class ObjectMeta(Wire, frozen=True, kw_only=True):
    """Name, labels, owners and bookkeeping of an object."""

    annotations: Annotated[Labels, Doc("Free-form text that tools attach; not for selection.")] = (
        mapping()
    )
    creation_timestamp: Annotated[
        Time | None, Doc("When the object was created; set by the server.")
    ] = None
    deletion_grace_period_seconds: Annotated[
        Int64 | None, Doc("Seconds left to stop gracefully once deletion has begun.")
    ] = None
    deletion_timestamp: Annotated[
        Time | None, Doc("When the object is to be gone; set by a delete request.")
    ] = None
    finalizers: Annotated[
        tuple[str, ...], Doc("Who must finish before the object goes away.", is_set=True)
    ] = ()
    generate_name: Annotated[str, Doc("Prefix of a name that the server completes.")] = ""
    generation: Annotated[Int64 | None, Doc("Counts changes of the desired state.")] = None
    labels: Annotated[Labels, Doc("Keys and values to select objects by.")] = mapping()
    managed_fields: Annotated[tuple[ManagedFieldsEntry, ...], Doc("Who wrote which field.")] = ()
    name: Annotated[str, Doc("Unique within namespace and kind; cannot change.")] = ""
    namespace: Annotated[str, Doc("The scope of the name; empty for cluster-scoped kinds.")] = ""
    owner_references: Annotated[
        tuple[OwnerReference, ...],
        Doc("Objects that this one is collected with.", map_keys=("uid",), merge_key="uid"),
    ] = ()
    resource_version: Annotated[str, Doc("Opaque version for watches and conditional writes.")] = ""
    self_link: Annotated[str, Doc("No longer filled in.")] = ""
    uid: Annotated[str, Doc("Unique over time and space; set by the server.")] = ""


class ShardInfo(Wire, frozen=True, kw_only=True):
    """The part of a list that a sharded request covers."""

    selector: str


class ListMeta(Wire, frozen=True, kw_only=True):
    """Version and paging of a list."""

    continue_: str = ""
    remaining_item_count: Int64 | None = None
    resource_version: str = ""
    self_link: str = ""
    shard_info: ShardInfo | None = None


class LabelSelectorRequirement(Wire, frozen=True, kw_only=True):
    """One set-based condition on labels."""

    key: Annotated[str, Doc("Label key.")]
    operator: Annotated[
        str,
        Doc(
            "How the label is compared with the values.",
            enum=("In", "NotIn", "Exists", "DoesNotExist"),
        ),
    ]
    values: Annotated[tuple[str, ...], Doc("Values for In and NotIn.")] = ()


class LabelSelector(Wire, frozen=True, kw_only=True):
    """A label query; all conditions must hold, an empty one matches everything."""

    __atomic__ = True

    match_expressions: Annotated[
        tuple[LabelSelectorRequirement, ...], Doc("Set-based conditions.")
    ] = ()
    match_labels: Annotated[Labels, Doc("Labels that must have exactly these values.")] = mapping()


class Condition(Wire, frozen=True, kw_only=True):
    """One observed fact about an object, in the form kstatus and ``kubectl wait`` read."""

    last_transition_time: Annotated[Time | None, Doc("When the status last changed.")] = None
    message: Annotated[str, Doc("What happened, for people.")] = ""
    reason: Annotated[str, Doc("One CamelCase word for programs.")] = ""
    status: Annotated[str, Doc("True, False or Unknown.", enum=("True", "False", "Unknown"))]
    type: Annotated[str, Doc("What the condition is about, such as Ready.")]
    observed_generation: Annotated[
        Int64 | None, Doc("The generation of the object that this is about.")
    ] = None


class StatusCause(Wire, frozen=True, kw_only=True):
    """One finding of a refused request."""

    field: str = ""
    message: str = ""
    reason: str = ""


class StatusDetails(Wire, frozen=True, kw_only=True):
    """What a refused request was about."""

    causes: tuple[StatusCause, ...] = ()
    group: str = ""
    kind: str = ""
    name: str = ""
    retry_after_seconds: Int32 | None = None
    uid: str = ""


class Status(Wire, frozen=True, kw_only=True):
    """The answer to a request that returns no object, mostly an error."""

    api_version: str = ""
    code: Int32 | None = None
    details: StatusDetails | None = None
    kind: str = ""
    message: str = ""
    metadata: ListMeta | None = None
    reason: str = ""
    status: str = ""


Conditions = Annotated[
    tuple[Condition, ...],
    Doc("What is known about the object now, one entry per type.", map_keys=("type",)),
]
ObservedGeneration = Annotated[
    Int64 | None, Doc("The generation that the status is about.", added=True)
]
Metadata = Annotated[ObjectMeta, Doc("Name, labels, owners and bookkeeping.")]
