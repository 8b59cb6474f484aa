"""Create, update, patch, bind and delete inside an open transaction."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from tensorfusion.api.registry import NAMESPACES
from tensorfusion.api.resource import JsonObject, Resource
from tensorfusion.api.validation import prune_and_default, validate
from tensorfusion.clock import Clock, format_timestamp
from tensorfusion.errors import (
    AlreadyExists,
    BadRequest,
    Cause,
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    UnsupportedMediaType,
)
from tensorfusion.names import FIELD_MANAGER
from tensorfusion.sqlite.deletion import Collector, ready_to_go
from tensorfusion.sqlite.journal import Journal
from tensorfusion.sqlite.preparation import (
    check_metadata_types,
    check_preconditions,
    details_of,
    envelope,
    generated_name,
    has_generation,
    invalid,
    name_causes,
    new_object,
    same_content,
    specification_changed,
    updated_object,
)
from tensorfusion.sqlite.records import Key, Record, encode_object
from tensorfusion.sqlite.subresources import bound, scale_of, scaled
from tensorfusion.store.admission import Admission, AdmissionRequest, FurtherWrite, Operation, warn
from tensorfusion.store.interface import PatchType
from tensorfusion.store.managed_fields import (
    apply_configuration,
    check_manager,
    track_create,
    track_update,
)
from tensorfusion.store.merge_rules import merge_rules
from tensorfusion.store.patches import json_patch, merge_patch, require_object, strategic_merge

_NAME_ATTEMPTS: Final = 8
_SERVER_METADATA: Final = (
    "name",
    "namespace",
    "uid",
    "creationTimestamp",
    "generation",
    "resourceVersion",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
)

Tracker = Callable[[JsonObject], JsonObject]
"""Puts the field owners of a write on its object."""


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """What a request says about how to write.

    Attributes:
        dry_run: Do everything but store.
        field_manager: Who owns the fields; ours when empty.
        field_validation: ``Strict``, ``Warn`` or ``Ignore``: what unknown fields lead to.
        is_patch: The object is the result of a patch; unknown fields then make it invalid, where
            they make a whole object unreadable (the real server's distinction).
        subresource: ``status``, ``scale`` or empty.
        admit: Ask admission; off for admission's own further writes.
    """

    dry_run: bool = False
    field_manager: str = ""
    field_validation: str = "Warn"
    subresource: str = ""
    admit: bool = True
    is_patch: bool = False

    @property
    def manager(self) -> str:
        """Who owns the fields."""
        return self.field_manager or FIELD_MANAGER


def refuse_unknown(paths: list[str], *, is_patch: bool = False) -> None:
    """Refuse an object with fields that its kind does not have.

    Raises:
        BadRequest: There are some; the message names them.
        Invalid: There are some, and a patch brought them.
    """
    if not paths:
        return
    listed = ", ".join(f'unknown field "{path}"' for path in paths)
    if is_patch:
        causes = [Cause(p, "FieldValueInvalid", f'unknown field "{p}"') for p in paths]
        raise Invalid(f"patch: strict decoding error: {listed}", causes=causes)
    raise BadRequest(f"strict decoding error: {listed}")


OWN_MANAGERS: Final = "tensorfusion-"
"""Prefix of the field managers of our own controllers."""


class Writes:
    """The write path. Concurrency: every method runs inside a transaction of the journal."""

    def __init__(
        self,
        journal: Journal,
        collector: Collector,
        clock: Clock,
        admission: Admission | None,
    ) -> None:
        self._journal = journal
        self._collector = collector
        self._clock = clock
        self.admission = admission

    def create(
        self, resource: Resource, obj: Any, namespace: str, options: WriteOptions
    ) -> JsonObject:
        """Store a new object owned by the manager."""
        new = envelope(resource, obj, namespace)
        if new["metadata"].get("resourceVersion"):
            raise BadRequest("resourceVersion should not be set on objects to be created")

        def track(created: JsonObject) -> JsonObject:
            now = created["metadata"]["creationTimestamp"]
            return track_create(resource, created, options.manager, now)

        return self._create(resource, new, options, track)

    def _create(
        self, resource: Resource, new: JsonObject, options: WriteOptions, track: Tracker
    ) -> JsonObject:
        check_manager(options.manager)
        metadata = new["metadata"]
        namespace = metadata.get("namespace", "")
        if not metadata.get("name") and metadata.get("generateName"):
            metadata["name"] = self._free_name(resource, namespace, metadata["generateName"])
        name = metadata.get("name", "")
        causes = name_causes(resource, metadata)
        if causes:
            raise invalid(resource, name, causes)
        if options.field_validation == "Strict":
            # What cannot be decoded is refused before anything is looked up.
            refuse_unknown(prune_and_default(resource, new)[1])
        key = Key(resource.qualified, namespace, name)
        self._check_namespace(resource, name, namespace)
        if self._journal.current(key) is not None:
            raise AlreadyExists(
                f'{resource.qualified} "{name}" already exists', details=details_of(resource, name)
            )
        new = new_object(resource, new, format_timestamp(self._clock.now()))
        new = self._admit("CREATE", resource, new, None, options)
        new = self._checked(resource, new, None, options)
        new = track(new)
        if options.dry_run:
            encode_object(new)
            return new
        record = self._journal.put(key, new, None)
        if new["metadata"].get("ownerReferences"):
            self._collector.note_owners(new)
        return record.obj

    def _free_name(self, resource: Resource, namespace: str, base: str) -> str:
        for _ in range(_NAME_ATTEMPTS):
            name = generated_name(base)
            if self._journal.current(Key(resource.qualified, namespace, name)) is None:
                return name
        raise AlreadyExists(f"no free name starts with {base!r}; try again", retry_after_seconds=1)

    def _check_namespace(self, resource: Resource, name: str, namespace: str) -> None:
        if not resource.namespaced:
            return
        found = self._journal.current(Key(NAMESPACES.qualified, "", namespace))
        if found is None:
            raise NotFound(
                f'namespaces "{namespace}" not found', details=details_of(NAMESPACES, namespace)
            )
        if "deletionTimestamp" in found.obj["metadata"]:
            raise Forbidden(
                f'{resource.qualified} "{name}" is forbidden: unable to create new content in '
                f"namespace {namespace} because it is being terminated",
                causes=[
                    Cause(
                        "metadata.namespace",
                        "NamespaceTerminating",
                        f"namespace {namespace} is being terminated",
                    )
                ],
                details=details_of(resource, name),
            )

    def _admit(
        self,
        operation: Operation,
        resource: Resource,
        obj: JsonObject,
        old: JsonObject | None,
        options: WriteOptions,
    ) -> JsonObject:
        admission = self.admission
        if admission is None or not options.admit or not admission.handles(resource, operation):
            return obj
        metadata = obj["metadata"]
        result = admission.admit(
            AdmissionRequest(
                operation=operation,
                resource=resource,
                namespace=metadata.get("namespace", ""),
                name=metadata["name"],
                obj=obj,
                old=old,
                dry_run=options.dry_run,
                user=options.manager,
            )
        )
        for text in result.warnings:
            warn(text)
        if not options.dry_run:
            for further in result.also:
                self._write_further(further)
        if result.obj is None:
            return obj
        admitted = result.obj.get("metadata") or {}
        check_metadata_types(admitted)
        # Whatever admission built, the server's own fields stay as they are.
        server = {key: metadata[key] for key in _SERVER_METADATA if key in metadata}
        return {**obj, **result.obj, "metadata": {**admitted, **server}}

    def _write_further(self, further: FurtherWrite) -> None:
        resource, obj = further.resource, further.obj
        namespace = obj["metadata"].get("namespace", "") if resource.namespaced else ""
        key = Key(resource.qualified, namespace, obj["metadata"]["name"])
        options = WriteOptions(admit=False)
        exists = self._journal.current(key) is not None
        if further.verb == "create" or (further.verb == "upsert" and not exists):
            self.create(resource, obj, namespace, options)
        elif further.verb == "update_status":
            self.update(resource, obj, replace(options, subresource="status"))
        else:
            self.update(resource, obj, options)

    def _checked(
        self, resource: Resource, new: JsonObject, old: JsonObject | None, options: WriteOptions
    ) -> JsonObject:
        """Prune, default and validate; parts that are the stored ones were checked before."""
        if old is None:
            new, unknown = prune_and_default(resource, new)
        else:
            fresh = {k: v for k, v in new.items() if type(v) is not dict or v is not old.get(k)}
            pruned, unknown = prune_and_default(resource, fresh)
            dropped = fresh.keys() - pruned.keys()
            new = {k: v for k, v in {**new, **pruned}.items() if k not in dropped}
        if options.field_validation == "Strict":
            refuse_unknown(unknown, is_patch=options.is_patch)
        if options.field_validation == "Warn":
            for path in unknown:
                warn(f'unknown field "{path}"')
        causes = validate(resource, new, old)
        if causes:
            raise invalid(resource, new["metadata"].get("name", ""), list(causes))
        return new

    def _existing(self, resource: Resource, key: Key) -> Record:
        record = self._journal.current(key)
        if record is None:
            raise NotFound(
                f'{resource.qualified} "{key.name}" not found',
                details=details_of(resource, key.name),
            )
        return record

    def update(self, resource: Resource, obj: Any, options: WriteOptions) -> JsonObject:
        """Replace an object, its status or its scale."""
        if options.subresource == "scale":
            return self._update_scale(resource, obj, options)
        new = envelope(resource, obj, "")
        metadata = new["metadata"]
        if not metadata.get("name"):
            raise BadRequest("metadata.name is needed to update an object")
        key = Key(resource.qualified, metadata.get("namespace", ""), metadata["name"])
        return self._replace(resource, key, self._existing(resource, key), new, options)

    def _update_scale(self, resource: Resource, scale: Any, options: WriteOptions) -> JsonObject:
        metadata = require_object(scale, "a Scale").get("metadata") or {}
        check_metadata_types(metadata)
        name = metadata.get("name")
        if not name:
            raise BadRequest("metadata.name is needed to update a Scale")
        key = Key(
            resource.qualified, metadata.get("namespace") or "" if resource.namespaced else "", name
        )
        return self._rescale(resource, key, scale, options)

    def _rescale(
        self, resource: Resource, key: Key, scale: JsonObject, options: WriteOptions
    ) -> JsonObject:
        record = self._existing(resource, key)
        new = scaled(resource, record.obj, scale)
        sent = scale.get("metadata") or {}
        metadata = {k: v for k, v in record.obj["metadata"].items() if k != "managedFields"}
        if sent.get("resourceVersion"):
            metadata["resourceVersion"] = sent["resourceVersion"]
        if sent.get("uid"):
            metadata["uid"] = sent["uid"]
        return scale_of(
            self._replace(resource, key, record, {**new, "metadata": metadata}, options)
        )

    def _replace(
        self,
        resource: Resource,
        key: Key,
        record: Record,
        obj: JsonObject,
        options: WriteOptions,
        *,
        track: Tracker | None = None,
    ) -> JsonObject:
        """Write ``obj`` over a stored object, if it makes a difference."""
        check_manager(options.manager)
        current = record.obj
        sent = obj["metadata"]
        check_preconditions(
            resource,
            current,
            uid=sent.get("uid") or "",
            resource_version=sent.get("resourceVersion") or "",
        )
        new = updated_object(resource, current, obj, options.subresource)
        managed = new["metadata"].pop("managedFields", None)
        if not options.subresource:
            new = self._admit("UPDATE", resource, new, current, options)
        new = self._checked(resource, new, current, options)
        if has_generation(resource) and specification_changed(current, new):
            metadata = {**new["metadata"]}
            metadata["generation"] = current["metadata"].get("generation", 0) + 1
            new = {**new, "metadata": metadata}
        if track is not None:
            new = track(new)
        else:
            new = self._tracked(resource, current, new, managed, options)
        if same_content(current, new):
            return current
        if options.dry_run:
            encode_object(new)
            return new
        return self._store(key, new, record)

    def _tracked(
        self,
        resource: Resource,
        current: JsonObject,
        new: JsonObject,
        managed: Any,
        options: WriteOptions,
    ) -> JsonObject:
        if managed is not None:
            new = {**new, "metadata": {**new["metadata"], "managedFields": managed}}
        if options.subresource == "status" and options.manager.startswith(OWN_MANAGERS):
            # Nobody but our controllers writes these fields, and they write them all the time:
            # a third of the cost of a status write for an ownership that nobody disputes.
            return new
        return track_update(
            resource,
            current,
            new,
            manager=options.manager,
            subresource=options.subresource,
            now=format_timestamp(self._clock.now()),
        )

    def _store(self, key: Key, new: JsonObject, record: Record) -> JsonObject:
        if ready_to_go(new):
            return self._collector.remove(key, new, record).obj
        stored = self._journal.put(key, new, record)
        owners = new["metadata"].get("ownerReferences")
        if owners and owners != record.obj["metadata"].get("ownerReferences"):
            self._collector.note_owners(new)
        return stored.obj

    def patch(
        self,
        resource: Resource,
        key: Key,
        patch: Any,
        patch_type: PatchType,
        options: WriteOptions,
        *,
        force: bool,
    ) -> tuple[JsonObject, bool]:
        """Patch an object; True when an apply created it."""
        if patch_type is PatchType.APPLY:
            return self._apply(resource, key, patch, options, force=force)
        options = replace(options, is_patch=True)
        record = self._existing(resource, key)
        scale = options.subresource == "scale"
        current = scale_of(record.obj) if scale else record.obj
        patched: Any
        if patch_type is PatchType.JSON:
            patched = json_patch(current, patch)
        elif patch_type is PatchType.MERGE:
            patched = merge_patch(current, require_object(patch, "a merge patch"))
        elif resource.is_custom:
            raise UnsupportedMediaType(
                "the body of the request was in an unknown format - accepted media types include: "
                "application/json-patch+json, application/merge-patch+json, "
                "application/apply-patch+yaml"
            )
        else:
            body = require_object(patch, "a strategic merge patch")
            patched = strategic_merge(current, body, merge_rules(resource))
        patched = require_object(patched, "the patched object")
        if scale:
            check_metadata_types(patched.get("metadata"))
            return self._rescale(resource, key, patched, options), False
        return self._replace_patched(resource, key, record, patched, options), False

    def _replace_patched(
        self,
        resource: Resource,
        key: Key,
        record: Record,
        patched: JsonObject,
        options: WriteOptions,
    ) -> JsonObject:
        new = envelope(resource, patched, key.namespace)
        if new["metadata"].get("name") != key.name:
            message = f'Invalid value: "{new["metadata"].get("name")}": field is immutable'
            raise invalid(
                resource, key.name, [Cause("metadata.name", "FieldValueInvalid", message)]
            )
        return self._replace(resource, key, record, new, options)

    def _apply(
        self, resource: Resource, key: Key, patch: Any, options: WriteOptions, *, force: bool
    ) -> tuple[JsonObject, bool]:
        if not options.field_manager:
            message = "Required value: is required for apply patch"
            raise Invalid(
                f'PatchOptions.meta.k8s.io "" is invalid: fieldManager: {message}',
                causes=[Cause("fieldManager", "FieldValueRequired", message)],
            )
        if options.subresource == "scale":
            raise BadRequest("server-side apply of a scale is not supported; patch spec.replicas")
        config = envelope(resource, patch, key.namespace)
        if not (isinstance(patch, dict) and patch.get("apiVersion") and patch.get("kind")):
            raise BadRequest("an applied configuration needs apiVersion and kind")
        given_name = config["metadata"].setdefault("name", key.name)
        if given_name != key.name:
            raise BadRequest(
                f"the name of the object ({given_name}) does not match the name on the URL ({key.name})"
            )
        if options.subresource == "status":
            config = {k: v for k, v in config.items() if k in ("apiVersion", "kind", "status")}
            config["metadata"] = dict(patch.get("metadata") or {})
            for name in ("labels", "annotations", "finalizers", "ownerReferences"):
                config["metadata"].pop(name, None)
        elif resource.has_status:
            config = {name: value for name, value in config.items() if name != "status"}
        record = self._journal.current(key)
        now = format_timestamp(self._clock.now())

        def applied_to(live: JsonObject, *, forced: bool) -> JsonObject:
            return apply_configuration(
                resource,
                live,
                config,
                manager=options.manager,
                subresource=options.subresource,
                force=forced,
                now=now,
            )

        if record is None:
            return self._apply_new(resource, key, config, options, applied_to)
        desired = applied_to(record.obj, forced=force)
        managers = desired["metadata"].get("managedFields")
        given = config["metadata"]
        desired["metadata"] = {**desired["metadata"]}
        for name in ("uid", "resourceVersion"):
            if given.get(name):
                desired["metadata"][name] = given[name]

        def track(new: JsonObject) -> JsonObject:
            return {**new, "metadata": {**new["metadata"], "managedFields": managers}}

        return self._replace(resource, key, record, desired, options, track=track), False

    def _apply_new(
        self,
        resource: Resource,
        key: Key,
        config: JsonObject,
        options: WriteOptions,
        applied_to: Callable[..., JsonObject],
    ) -> tuple[JsonObject, bool]:
        if options.subresource:
            self._existing(resource, key)
        metadata = config["metadata"]
        if metadata.get("uid") or metadata.get("resourceVersion"):
            raise Conflict(
                f'Operation cannot be fulfilled on {resource.qualified} "{key.name}": the object '
                "does not exist, but a uid or resourceVersion was given",
                details=details_of(resource, key.name),
            )
        empty = {"apiVersion": config["apiVersion"], "kind": config["kind"], "metadata": {}}
        managers = applied_to(empty, forced=True)["metadata"].get("managedFields")

        def track(new: JsonObject) -> JsonObject:
            if not managers:
                return new
            return {**new, "metadata": {**new["metadata"], "managedFields": managers}}

        return self._create(resource, {**config, "metadata": dict(metadata)}, options, track), True

    def bind(
        self, resource: Resource, key: Key, binding: JsonObject, options: WriteOptions
    ) -> JsonObject:
        """Write a binding; validation and admission do not apply to what it sets."""
        record = self._existing(resource, key)
        sent = binding.get("metadata") if isinstance(binding, dict) else None
        if isinstance(sent, dict):
            check_metadata_types(sent)
            check_preconditions(
                resource, record.obj, uid=sent.get("uid") or "", resource_version=""
            )
        new = bound(resource, record.obj, binding, format_timestamp(self._clock.now()))
        if options.dry_run:
            return new
        return self._journal.put(key, new, record).obj

    def delete(
        self,
        resource: Resource,
        key: Key,
        record: Record,
        propagation: str,
        grace: int | None,
        options: WriteOptions,
    ) -> tuple[JsonObject, bool]:
        """Delete an object or mark it; True when it is gone."""
        self._admit("DELETE", resource, record.obj, record.obj, options)
        if options.dry_run:
            return record.obj, True
        after, gone = self._collector.delete(resource, key, record, propagation, grace)
        return after.obj, gone
