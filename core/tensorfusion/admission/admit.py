"""Admission of a pod as a pure function.

``admit_pod(pod, context)`` returns the pod as it should be stored, its workload when that has to
be written, and warnings; or it refuses and says what is allowed. The same arguments always give
the same result, and admitting an admitted pod changes nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from tensorfusion import names
from tensorfusion.admission import gang as wishes
from tensorfusion.admission import values
from tensorfusion.admission.annotations import BIND_KEYS, USER_KEY_SET, hints
from tensorfusion.admission.claims import claim_port, claimed_index, next_index, with_index
from tensorfusion.admission.context import AdmissionContext
from tensorfusion.admission.gang import Gang
from tensorfusion.admission.injection import injected
from tensorfusion.admission.layers import (
    Layer,
    annotation_layer,
    first,
    pool_layer,
    quota_layer,
    spec_layer,
)
from tensorfusion.admission.models import closest_models, unknown_models
from tensorfusion.admission.native import NativeRequest, native_request, without_native
from tensorfusion.admission.owners import label_safe, replicas_of, root_owner, workload_name
from tensorfusion.admission.patch import gang_annotations, normalised, scheduled, with_metadata
from tensorfusion.admission.quota import check_quota
from tensorfusion.admission.raw import container_names, mapping, metadata_of, spec_of, texts
from tensorfusion.admission.refusal import RefusedValue, annotation_field, label_field
from tensorfusion.admission.resolve import Levels, Resolved, resolve
from tensorfusion.admission.scaling import pool_rule, recommended, scaling_config
from tensorfusion.admission.workload import merged, spec_json, workload_object
from tensorfusion.api.decode import decode
from tensorfusion.api.resource import JsonObject
from tensorfusion.api.validation import is_label_value, is_subdomain
from tensorfusion.api.workload import TensorFusionWorkload
from tensorfusion.api.workload_profile import WorkloadProfileSpec

DEFAULT_SCHEDULER = "default-scheduler"


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """A pod that is allowed.

    Attributes:
        pod: The pod to store; the very same object when nothing changes.
        workload: TensorFusionWorkload to create or update, None when it is fine as it is.
        warnings: Sentences for the client.
        enabled: Whether the pod is a worker of ours.
        resolved: What it gets, when enabled.
    """

    pod: JsonObject
    workload: JsonObject | None = None
    warnings: tuple[str, ...] = ()
    enabled: bool = False
    resolved: Resolved | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Subject:
    """What is known of an enabled pod before anything is decided."""

    pod: JsonObject
    namespace: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    native: NativeRequest | None
    owner: JsonObject | None
    workload: str
    shares: bool
    profile: WorkloadProfileSpec | None
    profile_name: str


def admit_pod(pod: JsonObject, context: AdmissionContext) -> Admitted:
    """Decide about one pod.

    Args:
        pod: The pod as decoded JSON, validated or not; it is not changed.
        context: What the decision may depend on.

    Raises:
        Refused: The pod cannot be admitted; names field, value and what is allowed.
    """
    metadata = metadata_of(pod)
    labels = texts(metadata.get("labels"), "metadata.labels")
    annotations = texts(metadata.get("annotations"), "metadata.annotations")
    enabled = _is_enabled(labels)
    warnings: list[str] = []
    if any(key in annotations for key in BIND_KEYS):
        # What a pod holds is written when it is bound; a copy of an old pod holds nothing.
        annotations = {k: v for k, v in annotations.items() if k not in BIND_KEYS}
        pod = with_metadata(pod, labels, annotations)
        warnings.append(f"removed {', '.join(BIND_KEYS)}: only a binding writes them")
    native = native_request(pod, context.providers)
    if enabled is False:
        return Admitted(pod=_left(pod, native, context), warnings=tuple(warnings))
    if enabled is None:
        migrated, why = _is_migrated(pod, native, labels, context)
        if not migrated:
            warnings += [why] if why else _forgotten_label(annotations)
            return Admitted(pod=_left(pod, native, context), warnings=tuple(warnings))
        labels = {**labels, names.ENABLED: "true"}
    warnings += hints(labels, annotations)
    if _beyond_canary(labels, annotations, context):
        return Admitted(pod=pod, warnings=tuple(warnings))
    subject = _subject(pod, labels, annotations, native, context)
    return _enabled(subject, context, warnings)


def _is_enabled(labels: Mapping[str, str]) -> bool | None:
    text = labels.get(names.ENABLED)
    return None if text is None else values.boolean(label_field(names.ENABLED), text)


def _is_migrated(
    pod: JsonObject,
    native: NativeRequest | None,
    labels: Mapping[str, str],
    context: AdmissionContext,
) -> tuple[bool, str]:
    """Whether a pod that says nothing is taken over; if not, why, when that is worth saying."""
    if native is None:
        return False, ""
    namespace = metadata_of(context.namespace)
    name = str(metadata_of(pod).get("namespace") or namespace.get("name", ""))
    if not context.migration.selects(name, mapping(namespace.get("labels")), labels):
        return False, ""
    if native.slices:
        reason = context.offers.refusal("partitioned", "NVIDIA")
        if reason:
            return False, f"not taken over: {', '.join(native.resources)}: {reason}"
    return True, ""


def _left(pod: JsonObject, native: NativeRequest | None, context: AdmissionContext) -> JsonObject:
    """Return a pod that is not ours; our scheduler keeps native ones off our nodes, if asked to.

    A pod that names a scheduler of its own keeps it.
    """
    own = str(spec_of(pod).get("schedulerName") or DEFAULT_SCHEDULER)
    if native is None or not context.migration.progressive or own != DEFAULT_SCHEDULER:
        return pod
    return {**pod, "spec": {**spec_of(pod), "schedulerName": names.SCHEDULER}}


def _forgotten_label(annotations: Mapping[str, str]) -> list[str]:
    given = [key for key in annotations if key in USER_KEY_SET]
    if not given:
        return []
    return [f'annotation {given[0]} has no effect without the label {names.ENABLED}: "true"']


def _beyond_canary(
    labels: Mapping[str, str], annotations: Mapping[str, str], context: AdmissionContext
) -> bool:
    """Whether as many pods as are wanted are enabled already.

    A pod that was admitted stays so, which makes a second pass harmless.
    """
    text = annotations.get(names.ENABLED_REPLICAS)
    if text is None:
        return False
    wanted = values.integer(annotation_field(names.ENABLED_REPLICAS), text, 0)
    if labels.get(names.COMPONENT) == "worker" and names.WORKLOAD in labels:
        return False
    return context.enabled_pods() >= wanted


def _subject(
    pod: JsonObject,
    labels: Mapping[str, str],
    annotations: Mapping[str, str],
    native: NativeRequest | None,
    context: AdmissionContext,
) -> _Subject:
    owner = root_owner(pod, context)
    shared = annotations.get(names.WORKLOAD, "").strip()
    if shared and not is_subdomain(shared):
        raise RefusedValue(
            annotation_field(names.WORKLOAD),
            shared,
            "must be a name of lower-case letters, digits, '-' and '.'",
        )
    profile_name = annotations.get(names.WORKLOAD_PROFILE, "").strip()
    profile = context.profile(profile_name) if profile_name else None
    if profile_name and profile is None:
        raise RefusedValue(
            annotation_field(names.WORKLOAD_PROFILE),
            profile_name,
            f"there is no WorkloadProfile of that name in namespace {_namespace(pod, context)}",
        )
    if labels.get(names.COMPONENT) != "worker" and names.ORIGINAL_RESOURCES in annotations:
        annotations = {k: v for k, v in annotations.items() if k != names.ORIGINAL_RESOURCES}
    return _Subject(
        pod=pod,
        namespace=_namespace(pod, context),
        labels=labels,
        annotations=annotations,
        native=native,
        owner=owner,
        workload=label_safe(shared) if shared else workload_name(pod, owner),
        shares=bool(shared),
        profile=profile.spec if profile is not None else None,
        profile_name=profile_name,
    )


def _namespace(pod: JsonObject, context: AdmissionContext) -> str:
    own = metadata_of(pod).get("namespace")
    return str(own or metadata_of(context.namespace).get("name") or "default")


def _enabled(subject: _Subject, context: AdmissionContext, warnings: list[str]) -> Admitted:
    existing = context.workload(subject.workload)
    levels, pool = _levels(subject, existing, context)
    resolved = resolve(levels, pool, container_names(subject.pod), context)
    spec = context.pools[pool].spec
    template = context.template(spec.scheduling_config_template) if spec else None
    scaling = scaling_config(
        subject.annotations,
        subject.profile.auto_scaling_config if subject.profile is not None else None,
        pool_rule(template, subject.labels),
    )
    gang = _gang(subject, context)
    features = wishes.disabled_features(subject.annotations)
    _refuse_worker_template(subject)
    if not (subject.shares and context.has_workers(subject.workload)):
        check_quota(resolved, subject.namespace, context)
    request, limit = resolved.request, resolved.limit
    if resolved.isolation == "soft" and not resolved.dedicated:
        request, limit = recommended(existing, scaling, request, limit)
    annotations = normalised(subject.annotations, resolved, request, limit)
    annotations.update(wishes.check_placement_wishes(annotations))
    gang_annotations(annotations, gang, subject.namespace, subject.workload)
    pod = _written(subject, resolved, annotations, features, context)
    warnings += _cautions(resolved, annotations)
    wanted = workload_object(
        subject.workload,
        subject.namespace,
        spec_json(resolved, subject.profile, scaling, gang),
        _owner_reference(subject),
        resolved.container_counts,
        features,
    )
    keep = subject.shares and existing is not None and not _owns(subject, existing)
    return Admitted(
        pod=pod,
        workload=merged(existing, wanted, keep_spec=keep),
        warnings=tuple(dict.fromkeys(warnings)),
        enabled=True,
        resolved=resolved,
    )


def _levels(
    subject: _Subject, existing: JsonObject | None, context: AdmissionContext
) -> tuple[Levels, str]:
    vendors = context.providers.vendors
    layers = [annotation_layer(subject.annotations, vendors)]
    if subject.profile is not None:
        base = f'WorkloadProfile "{subject.profile_name}" spec'
        layers.append(spec_layer(subject.profile, base, vendors))
    if subject.shares and existing is not None:
        shared = decode(TensorFusionWorkload, existing).spec
        if shared is not None:
            base = f'TensorFusionWorkload "{subject.workload}" spec'
            layers.append(spec_layer(shared, base, vendors))
    if subject.native is not None:
        silent = not any(layer.has_amounts for layer in layers)
        layers.append(subject.native.layer(shared=silent and first(layers, "isolation") is None))
    own = len(layers)
    layers += [quota_layer(quota) for quota in context.quota_objects]
    pool = _pool(layers, context)
    layers.append(pool_layer(pool, context.pools[pool]))
    return Levels(all=tuple(layers), own=own), pool


def _pool(layers: list[Layer], context: AdmissionContext) -> str:
    known = ", ".join(sorted(context.pools)) or "none"
    at = first(layers, "pool")
    if at is not None:
        name = str(layers[at].pool)
        if name not in context.pools:
            raise layers[at].refused("pool", f"there is no such GPUPool; there are: {known}")
        return name
    if context.default_pool not in context.pools:
        raise RefusedValue(
            annotation_field(names.GPU_POOL),
            "",
            f"must name a GPUPool, since there is no default one; there are: {known}",
        )
    return context.default_pool


def _gang(subject: _Subject, context: AdmissionContext) -> Gang | None:
    annotations, profile = subject.annotations, subject.profile
    keys = (names.GANG_ENABLED, names.GANG_MIN_MEMBERS, names.GANG_TIMEOUT)
    asked = any(key in annotations for key in keys)
    if not asked and (profile is None or profile.gang_scheduling is None):
        return None
    size: int | None = None
    if names.ENABLED_REPLICAS in annotations:
        size = int(annotations[names.ENABLED_REPLICAS])
    elif profile is not None and profile.replicas is not None:
        size = profile.replicas
    else:
        size = replicas_of(subject.owner, context)
    return wishes.gang_of(annotations, profile, size)


def _refuse_worker_template(subject: _Subject) -> None:
    if names.WORKER_POD_TEMPLATE in subject.annotations:
        raise RefusedValue(
            annotation_field(names.WORKER_POD_TEMPLATE),
            subject.annotations[names.WORKER_POD_TEMPLATE],
            "describes remote workers, which are not available in this release: leave it out",
        )


def _written(
    subject: _Subject,
    resolved: Resolved,
    annotations: dict[str, str],
    features: tuple[str, ...],
    context: AdmissionContext,
) -> JsonObject:
    labels = {
        **subject.labels,
        names.COMPONENT: "worker",
        names.WORKLOAD: subject.workload,
        names.GPU_POOL: resolved.pool,
    }
    if not is_label_value(resolved.pool):
        raise RefusedValue(
            annotation_field(names.GPU_POOL), resolved.pool, "must fit in a label: 63 characters"
        )
    if features:
        annotations[names.DISABLE_FEATURES] = ",".join(features)
    pod = subject.pod
    if subject.native is not None:
        pod = without_native(pod, subject.native.resources)
    pod, port = claim_port(pod, labels, context.claims)
    annotations.pop(names.PORT_NUMBER, None)
    if port:
        annotations[names.PORT_NUMBER] = port
    annotations.pop(names.INDEX, None)
    if context.inject:
        index = claimed_index(pod)
        if index is None:
            index = next_index(context.claims)
            pod = with_index(pod, index, resolved.containers)
        annotations[names.INDEX] = str(index)
        pool = context.pools[resolved.pool]
        image = context.providers.images.get(resolved.vendor or "NVIDIA", "")
        pod = injected(pod, resolved, pool, image, features)
    pod = with_metadata(pod, labels, annotations)
    affinity = subject.profile.node_affinity if subject.profile is not None else None
    return scheduled(pod, resolved.qos, affinity)


def _owner_reference(subject: _Subject) -> JsonObject | None:
    """Who the workload goes away with: the top of the chain, else the pod itself."""
    if subject.owner is not None:
        return {**subject.owner, "controller": True} if subject.owner.get("uid") else None
    metadata = metadata_of(subject.pod)
    if not metadata.get("uid") or not metadata.get("name"):
        return None
    return {"apiVersion": "v1", "kind": "Pod", "name": metadata["name"], "uid": metadata["uid"]}


def _owns(subject: _Subject, existing: JsonObject) -> bool:
    """Whether the workload was made for the controller this pod belongs to."""
    owner = subject.owner
    if owner is None or not owner.get("uid"):
        return False
    owners = metadata_of(existing).get("ownerReferences")
    return any(
        mapping(other).get("uid") == owner["uid"] and mapping(other).get("controller")
        for other in (owners if isinstance(owners, list) else [])
    )


def _cautions(resolved: Resolved, annotations: Mapping[str, str]) -> list[str]:
    """Say what is recorded but not acted on yet, and what looks like a mistake."""
    found = [
        f"GPU model {model!r} is not in the hardware catalogue; close: {closest_models(model)}"
        for model in unknown_models(resolved.gpu_model)
    ]
    if names.AUTO_REPLICAS in annotations:
        found.append("auto-replicas is recorded, but nothing changes the number of replicas yet")
    return found
