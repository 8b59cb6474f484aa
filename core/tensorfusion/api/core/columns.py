"""What ``kubectl get`` prints of the core kinds, as the real server does."""

from typing import Any, Final

from tensorfusion.api.resource import JsonObject, PrinterColumn

_AGE: Final = PrinterColumn("Age", ".metadata.creationTimestamp", "date", 0, "Time since creation.")
_NONE: Final = "<none>"


def _path(name: str, path: str, *, kind: str = "string", wide: bool = False) -> PrinterColumn:
    return PrinterColumn(name, path, kind, int(wide))


def _statuses(pod: JsonObject, key: str = "containerStatuses") -> list[JsonObject]:
    return (pod.get("status") or {}).get(key) or []


def pod_ready(pod: JsonObject) -> str:
    """Ready containers of all, such as ``1/2``; sidecars count."""
    spec = pod.get("spec") or {}
    sidecars = {
        item.get("name")
        for item in spec.get("initContainers") or []
        if item.get("restartPolicy") == "Always"
    }
    running = sum(1 for item in _statuses(pod) if item.get("ready"))
    running += sum(
        1
        for item in _statuses(pod, "initContainerStatuses")
        if item.get("ready") and item.get("name") in sidecars
    )
    return f"{running}/{len(spec.get('containers') or []) + len(sidecars)}"


def _initializing(pod: JsonObject) -> str:
    """The STATUS word of a pod whose init containers are not through, else an empty string."""
    spec = pod.get("spec") or {}
    inits = spec.get("initContainers") or []
    always = {item.get("name") for item in inits if item.get("restartPolicy") == "Always"}
    for done, item in enumerate(_statuses(pod, "initContainerStatuses")):
        state = item.get("state") or {}
        ended = state.get("terminated")
        if ended and not ended.get("exitCode"):
            continue
        if item.get("name") in always and item.get("started"):
            continue
        if ended:
            return f"Init:{ended.get('reason') or 'ExitCode:' + str(ended.get('exitCode'))}"
        waiting = (state.get("waiting") or {}).get("reason")
        if waiting and waiting != "PodInitializing":
            return f"Init:{waiting}"
        return f"Init:{done}/{len(inits)}"
    return ""


def pod_status(pod: JsonObject) -> str:
    """The STATUS word: the pod's phase, or what its containers say more precisely."""
    status = pod.get("status") or {}
    word = str(status.get("reason") or status.get("phase") or "")
    for condition in status.get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("reason") == "SchedulingGated":
            word = "SchedulingGated"
    initializing = _initializing(pod)
    if initializing:
        word = initializing
    else:
        running = False
        for item in reversed(_statuses(pod)):
            state = item.get("state") or {}
            waiting, ended = state.get("waiting") or {}, state.get("terminated")
            if waiting.get("reason"):
                word = waiting["reason"]
            elif ended is not None:
                word = ended.get("reason") or f"ExitCode:{ended.get('exitCode')}"
            elif item.get("ready") and "running" in state:
                running = True
        if word == "Completed" and running:
            word = "Running"
    if (pod.get("metadata") or {}).get("deletionTimestamp"):
        word = "Unknown" if status.get("reason") == "NodeLost" else "Terminating"
    return word


def pod_restarts(pod: JsonObject) -> int:
    """Restarts of all containers."""
    return sum(int(item.get("restartCount") or 0) for item in _statuses(pod))


def _or_none(*path: str) -> Any:
    def cell(obj: JsonObject) -> str:
        value: Any = obj
        for key in path:
            value = (value or {}).get(key)
        return str(value) if value not in (None, "") else _NONE

    return cell


def _readiness_gates(pod: JsonObject) -> str:
    gates = (pod.get("spec") or {}).get("readinessGates") or []
    if not gates:
        return _NONE
    conditions = (pod.get("status") or {}).get("conditions") or []
    true = {item.get("type") for item in conditions if item.get("status") == "True"}
    return f"{sum(1 for gate in gates if gate.get('conditionType') in true)}/{len(gates)}"


def node_status(node: JsonObject) -> str:
    """Ready, NotReady or Unknown, and whether new pods are kept away."""
    word = "Unknown"
    for condition in (node.get("status") or {}).get("conditions") or []:
        if condition.get("type") == "Ready":
            word = "Ready" if condition.get("status") == "True" else "NotReady"
    if (node.get("spec") or {}).get("unschedulable"):
        word += ",SchedulingDisabled"
    return word


def node_roles(node: JsonObject) -> str:
    """Roles from the node's labels."""
    labels = (node.get("metadata") or {}).get("labels") or {}
    prefix = "node-role.kubernetes.io/"
    roles = {key.removeprefix(prefix) for key in labels if key.startswith(prefix)}
    roles |= {labels["kubernetes.io/role"]} if labels.get("kubernetes.io/role") else set()
    return ",".join(sorted(role for role in roles if role)) or _NONE


def _node_address(kind: str) -> Any:
    def cell(node: JsonObject) -> str:
        for item in (node.get("status") or {}).get("addresses") or []:
            if item.get("type") == kind:
                return str(item.get("address"))
        return _NONE

    return cell


def _number(*path: str) -> Any:
    def cell(obj: JsonObject) -> int:
        value: Any = obj
        for key in path:
            value = (value or {}).get(key)
        return int(value or 0)

    return cell


def _deployment_ready(obj: JsonObject) -> str:
    ready = (obj.get("status") or {}).get("readyReplicas") or 0
    return f"{ready}/{(obj.get('spec') or {}).get('replicas', 1)}"


def _containers(obj: JsonObject) -> list[JsonObject]:
    template = (obj.get("spec") or {}).get("template") or {}
    return (template.get("spec") or {}).get("containers") or []


def _joined(key: str) -> Any:
    return lambda obj: ",".join(str(item.get(key, "")) for item in _containers(obj))


def selector_text(obj: JsonObject) -> str:
    """A label selector as ``kubectl -l`` takes it."""
    selector = (obj.get("spec") or {}).get("selector") or {}
    parts = [f"{key}={value}" for key, value in sorted((selector.get("matchLabels") or {}).items())]
    for item in selector.get("matchExpressions") or []:
        key, operator = item.get("key"), item.get("operator")
        values = ",".join(item.get("values") or [])
        parts.append(
            {
                "In": f"{key} in ({values})",
                "NotIn": f"{key} notin ({values})",
                "Exists": f"{key}",
            }.get(str(operator), f"!{key}")
        )
    return ",".join(parts) or _NONE


def _event_object(event: JsonObject) -> str:
    about = event.get("involvedObject") or {}
    return f"{str(about.get('kind', '')).lower()}/{about.get('name', '')}"


def event_last_seen(event: JsonObject) -> str:
    """Timestamp of an event's latest occurrence."""
    series = event.get("series") or {}
    return str(
        series.get("lastObservedTime")
        or event.get("lastTimestamp")
        or event.get("eventTime")
        or event.get("firstTimestamp")
        or (event.get("metadata") or {}).get("creationTimestamp")
        or ""
    )


def _event_source(event: JsonObject) -> str:
    source = event.get("source") or {}
    parts = (
        source.get("component") or event.get("reportingComponent"),
        source.get("host") or event.get("reportingInstance"),
    )
    return ", ".join(part for part in parts if part)


def _event_count(event: JsonObject) -> int:
    return int((event.get("series") or {}).get("count") or event.get("count") or 1)


def _config_map_data(obj: JsonObject) -> int:
    return len(obj.get("data") or {}) + len(obj.get("binaryData") or {})


def _or_na(key: str) -> Any:
    def cell(obj: JsonObject) -> str:
        value = (obj.get("spec") or {}).get(key)
        return "N/A" if value is None else str(value)

    return cell


POD_COLUMNS: Final = (
    PrinterColumn("Ready", cell=pod_ready),
    PrinterColumn("Status", cell=pod_status),
    PrinterColumn("Restarts", type="integer", cell=pod_restarts),
    _AGE,
    PrinterColumn("IP", priority=1, cell=_or_none("status", "podIP")),
    PrinterColumn("Node", priority=1, cell=_or_none("spec", "nodeName")),
    PrinterColumn("Nominated Node", priority=1, cell=_or_none("status", "nominatedNodeName")),
    PrinterColumn("Readiness Gates", priority=1, cell=_readiness_gates),
)
NODE_COLUMNS: Final = (
    PrinterColumn("Status", cell=node_status),
    PrinterColumn("Roles", cell=node_roles),
    _AGE,
    _path("Version", ".status.nodeInfo.kubeletVersion"),
    PrinterColumn("Internal-IP", priority=1, cell=_node_address("InternalIP")),
    PrinterColumn("External-IP", priority=1, cell=_node_address("ExternalIP")),
    _path("OS-Image", ".status.nodeInfo.osImage", wide=True),
    _path("Kernel-Version", ".status.nodeInfo.kernelVersion", wide=True),
    _path("Container-Runtime", ".status.nodeInfo.containerRuntimeVersion", wide=True),
)
NAMESPACE_COLUMNS: Final = (_path("Status", ".status.phase"), _AGE)
DEPLOYMENT_COLUMNS: Final = (
    PrinterColumn("Ready", cell=_deployment_ready),
    PrinterColumn("Up-to-date", type="integer", cell=_number("status", "updatedReplicas")),
    PrinterColumn("Available", type="integer", cell=_number("status", "availableReplicas")),
    _AGE,
    PrinterColumn("Containers", priority=1, cell=_joined("name")),
    PrinterColumn("Images", priority=1, cell=_joined("image")),
    PrinterColumn("Selector", priority=1, cell=selector_text),
)
REPLICA_SET_COLUMNS: Final = (
    PrinterColumn("Desired", type="integer", cell=_number("spec", "replicas")),
    PrinterColumn("Current", type="integer", cell=_number("status", "replicas")),
    PrinterColumn("Ready", type="integer", cell=_number("status", "readyReplicas")),
    _AGE,
    PrinterColumn("Containers", priority=1, cell=_joined("name")),
    PrinterColumn("Images", priority=1, cell=_joined("image")),
    PrinterColumn("Selector", priority=1, cell=selector_text),
)
EVENT_COLUMNS: Final = (
    PrinterColumn("Last Seen", type="date", cell=event_last_seen),
    _path("Type", ".type"),
    _path("Reason", ".reason"),
    PrinterColumn("Object", cell=_event_object),
    _path("Subobject", ".involvedObject.fieldPath", wide=True),
    PrinterColumn("Source", priority=1, cell=_event_source),
    _path("Message", ".message"),
    PrinterColumn(
        "First Seen", ".firstTimestamp", type="date", priority=1, description="First occurrence."
    ),
    PrinterColumn("Count", type="integer", priority=1, cell=_event_count),
)
LEASE_COLUMNS: Final = (_path("Holder", ".spec.holderIdentity"), _AGE)
SECRET_COLUMNS: Final = (
    _path("Type", ".type"),
    PrinterColumn("Data", type="integer", cell=lambda obj: len(obj.get("data") or {})),
    _AGE,
)
CONFIG_MAP_COLUMNS: Final = (
    PrinterColumn("Data", type="integer", cell=_config_map_data),
    _AGE,
)
PRIORITY_CLASS_COLUMNS: Final = (
    PrinterColumn("Value", type="integer", cell=_number("value")),
    PrinterColumn(
        "Global-Default", type="boolean", cell=lambda obj: bool(obj.get("globalDefault"))
    ),
    _AGE,
    _path("PreemptionPolicy", ".preemptionPolicy"),
)
PDB_COLUMNS: Final = (
    PrinterColumn("Min Available", cell=_or_na("minAvailable")),
    PrinterColumn("Max Unavailable", cell=_or_na("maxUnavailable")),
    PrinterColumn(
        "Allowed Disruptions", type="integer", cell=_number("status", "disruptionsAllowed")
    ),
    _AGE,
)
