"""Deleting: grace, finalizers, and the collection of dependents and namespace content.

What is left to collect is kept in the file as jobs, so that it survives the process. A step of
the collector handles a bounded number of objects.
"""

from typing import Final

from tensorfusion.api.registry import RESOURCES
from tensorfusion.api.resource import JsonObject, Resource
from tensorfusion.clock import Clock, format_timestamp
from tensorfusion.sqlite.database import Database, Garbage
from tensorfusion.sqlite.journal import Journal
from tensorfusion.sqlite.preparation import has_generation, owner_uids
from tensorfusion.sqlite.records import Key, Record

ORPHAN_FINALIZER: Final = "orphan"
FOREGROUND_FINALIZER: Final = "foregroundDeletion"
_DEFAULT_POD_GRACE_SECONDS: Final = 30
_JOBS_PER_STEP: Final = 100


def without_finalizer(obj: JsonObject, finalizer: str) -> JsonObject:
    """Return an object without one finalizer."""
    metadata = dict(obj["metadata"])
    rest = [item for item in metadata.get("finalizers") or () if item != finalizer]
    if rest:
        metadata["finalizers"] = rest
    else:
        metadata.pop("finalizers", None)
    return {**obj, "metadata": metadata}


def without_owner(obj: JsonObject, uids: frozenset[str]) -> JsonObject:
    """Return an object that no longer names any of ``uids`` as an owner."""
    metadata = dict(obj["metadata"])
    rest = [o for o in metadata.get("ownerReferences") or () if o.get("uid") not in uids]
    if rest:
        metadata["ownerReferences"] = rest
    else:
        metadata.pop("ownerReferences", None)
    return {**obj, "metadata": metadata}


def ready_to_go(obj: JsonObject) -> bool:
    """Whether nothing holds an object back that is marked as deleted."""
    metadata = obj["metadata"]
    return (
        "deletionTimestamp" in metadata
        and not metadata.get("finalizers")
        and not metadata.get("deletionGracePeriodSeconds")
        and not (obj["kind"] == "Namespace" and (obj.get("spec") or {}).get("finalizers"))
    )


def grace_seconds(resource: Resource, obj: JsonObject, asked: int | None) -> int:
    """Return how long a deletion waits for the node: pods that run somewhere, nobody else."""
    if resource.kind != "Pod" or resource.group:
        return 0
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    if not spec.get("nodeName") or status.get("phase") in ("Succeeded", "Failed"):
        return 0
    if asked is not None:
        return max(0, asked)
    configured = spec.get("terminationGracePeriodSeconds")
    return configured if isinstance(configured, int) else _DEFAULT_POD_GRACE_SECONDS


def marked(
    resource: Resource, obj: JsonObject, *, now: float, grace: int, finalizer: str
) -> JsonObject:
    """Return an object marked as deleted.

    A second deletion changes nothing, except that it may shorten the grace period.
    """
    metadata = dict(obj["metadata"])
    first = "deletionTimestamp" not in metadata
    if first or grace < metadata.get("deletionGracePeriodSeconds", 0):
        metadata["deletionTimestamp"] = format_timestamp(now + grace)
        metadata["deletionGracePeriodSeconds"] = grace
    if finalizer and finalizer not in (metadata.get("finalizers") or ()):
        metadata["finalizers"] = [*(metadata.get("finalizers") or ()), finalizer]
    if first and has_generation(resource):
        metadata["generation"] = metadata.get("generation", 0) + 1
    result = {**obj, "metadata": metadata}
    if resource.kind == "Namespace":
        result["status"] = {**(obj.get("status") or {}), "phase": "Terminating"}
    return result


class Collector:
    """Deletes objects and what depends on them.

    Concurrency: every method runs inside a transaction of the journal.
    """

    def __init__(self, database: Database, journal: Journal, clock: Clock) -> None:
        self._database = database
        self._journal = journal
        self._clock = clock
        self._resources = {resource.qualified: resource for resource in RESOURCES}
        self._cursors: dict[tuple[str, str], Key] = {}
        self._blocked: set[tuple[str, str]] = set()
        self._noted: set[str] = set()
        self.pending = True
        """Whether a step may find something to do."""

    def recover(self) -> None:
        """Find dependents whose owner vanished; for the opening of a file."""
        for uid in self._database.dangling_owners():
            self._database.add_garbage(Garbage(uid, "background", Key("", "", "")))
        self.pending = True

    def note_owners(self, obj: JsonObject) -> None:
        """Remember to look whether an object's owners exist: they may be written right after it."""
        self._noted.update(owner_uids(obj["metadata"]))

    def settle_owners(self) -> None:
        """Schedule the collection of noted objects whose owner does not exist; before a commit."""
        while self._noted:
            uid = self._noted.pop()
            if not self._database.uid_exists(uid):
                self._schedule(Garbage(uid, "background", Key("", "", "")))

    def _schedule(self, job: Garbage) -> None:
        self._database.add_garbage(job)
        self._blocked.discard((job.uid, job.mode))
        self._cursors.pop((job.uid, job.mode), None)
        self.pending = True

    def delete(
        self, resource: Resource, key: Key, record: Record, propagation: str, grace: int | None
    ) -> tuple[Record, bool]:
        """Delete an object or mark it as deleted.

        Returns:
            Its last state, and whether it is gone.
        """
        obj, uid = record.obj, record.uid
        finalizer = ""
        if propagation != "Background" and self._database.dependents(uid, "", 1):
            orphan = propagation == "Orphan"
            finalizer = ORPHAN_FINALIZER if orphan else FOREGROUND_FINALIZER
            self._schedule(Garbage(uid, "orphan" if orphan else "foreground", key))
        if resource.kind == "Namespace":
            self._schedule(Garbage(uid, "namespace", key))
        after = marked(
            resource,
            obj,
            now=self._clock.now(),
            grace=grace_seconds(resource, obj, grace),
            finalizer=finalizer,
        )
        if ready_to_go(after):
            return self.remove(key, obj, record), True
        if after["metadata"] == obj["metadata"]:
            return record, False
        return self._journal.put(key, after, record), False

    def remove(self, key: Key, last_state: JsonObject, record: Record) -> Record:
        """Take an object out of the store and schedule what that sets free."""
        gone = self._journal.remove(key, last_state, record)
        if self._database.dependents(record.uid, "", 1):
            self._schedule(Garbage(record.uid, "background", key))
        if self._blocked:
            freed = set(owner_uids(record.obj["metadata"]))
            freed.add(key.namespace)
            unblocked = {job for job in self._blocked if job[0] in freed or job[1] == "namespace"}
            if unblocked:
                self._blocked -= unblocked
                self.pending = True
        return gone

    def step(self, limit: int) -> bool:
        """Handle up to ``limit`` objects; return whether more remain to be done now."""
        left = limit
        jobs = [j for j in self._database.garbage() if (j.uid, j.mode) not in self._blocked]
        for job in jobs[:_JOBS_PER_STEP]:
            if left <= 0:
                return True
            left -= self._advance(job, left)
        self.pending = left <= 0 or any(
            (job.uid, job.mode) not in self._blocked for job in self._database.garbage()
        )
        return self.pending

    def _advance(self, job: Garbage, limit: int) -> int:
        """Move one job on; return how many objects it handled (at least one)."""
        name = (job.uid, job.mode)
        if job.mode == "background" and self._database.uid_exists(job.uid):
            self._finish(job)
            return 1
        if job.mode != "background" and not self._database.uid_exists(job.uid):
            self._finish(job)
            return 1
        after = self._cursors.get(name)
        if job.mode == "namespace":
            keys = self._database.namespace_content(job.key.name, limit, after)
            cursor = keys[-1] if keys else None
        else:
            uids = self._database.dependents(job.uid, after.name if after else "", limit)
            keys = [key for key, _ in uids]
            cursor = Key("", "", uids[-1][1]) if uids else None
        for key in keys:
            self._handle(job, key)
        if len(keys) == limit and cursor is not None:
            self._cursors[name] = cursor
        else:
            self._cursors.pop(name, None)
            self._conclude(job)
        return max(1, len(keys))

    def _handle(self, job: Garbage, key: Key) -> None:
        record = self._journal.current(key)
        resource = self._resources.get(key.resource)
        if record is None or resource is None:
            return
        if job.mode == "orphan":
            released = without_owner(record.obj, frozenset({job.uid}))
            self._journal.put(key, released, record)
            return
        if job.mode == "background":
            owners = owner_uids(record.obj["metadata"])
            dead = frozenset(uid for uid in owners if not self._database.uid_exists(uid))
            if len(dead) < len(owners):
                self._journal.put(key, without_owner(record.obj, dead), record)
                return
        if "deletionTimestamp" not in record.obj["metadata"]:
            propagation = "Foreground" if job.mode == "foreground" else "Background"
            self.delete(resource, key, record, propagation, None)

    def _conclude(self, job: Garbage) -> None:
        """End a job whose objects were all handled, or wait for those that are still there."""
        if job.mode == "background":
            self._finish(job)
            return
        record = self._journal.current(job.key)
        if record is None or record.uid != job.uid:
            self._finish(job)
            return
        if job.mode == "namespace":
            if self._database.namespace_content(job.key.name, 1, None):
                self._blocked.add((job.uid, job.mode))
                return
            spec = {k: v for k, v in (record.obj.get("spec") or {}).items() if k != "finalizers"}
            after: JsonObject = {**record.obj, "spec": spec}
        elif job.mode == "foreground":
            if self._blocking_dependent(job.uid):
                self._blocked.add((job.uid, job.mode))
                return
            after = without_finalizer(record.obj, FOREGROUND_FINALIZER)
        else:
            after = without_finalizer(record.obj, ORPHAN_FINALIZER)
        self._finish(job)
        if ready_to_go(after):
            self.remove(job.key, after, record)
        else:
            self._journal.put(job.key, after, record)

    def _blocking_dependent(self, uid: str) -> bool:
        cursor = ""
        while page := self._database.dependents(uid, cursor, 100):
            for key, cursor in page:  # noqa: B007 (the last cursor starts the next page)
                record = self._journal.current(key)
                owners = record.obj["metadata"].get("ownerReferences", ()) if record else ()
                if any(o.get("uid") == uid and o.get("blockOwnerDeletion") for o in owners):
                    return True
        return False

    def _finish(self, job: Garbage) -> None:
        self._database.remove_garbage(job)
        self._blocked.discard((job.uid, job.mode))
