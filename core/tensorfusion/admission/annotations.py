"""Every label and annotation of ours on a pod: the catalogue behind parsing, hints and reference."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from tensorfusion import names


@dataclass(frozen=True, slots=True)
class Key:
    """One annotation that users write.

    Attributes:
        key: The full key.
        form: What the value looks like.
        meaning: What it does.
        default: What holds without it, after WorkloadProfile, namespace and pool were asked.
    """

    key: str
    form: str
    meaning: str
    default: str = ""


USER_KEYS = (
    Key(names.TFLOPS_REQUEST, '"10"', "FP16 TFLOPS promised, per GPU", "the limit"),
    Key(names.TFLOPS_LIMIT, '"20"', "Most FP16 TFLOPS, per GPU", "the request"),
    Key(names.VRAM_REQUEST, "4Gi", "Video memory promised, per GPU", "the limit"),
    Key(names.VRAM_LIMIT, "4Gi", "Most video memory, per GPU", "the request"),
    Key(
        names.COMPUTE_PERCENT_REQUEST,
        '"0" to "100"',
        "Share of a GPU's compute promised; instead of tflops-request",
        "the limit",
    ),
    Key(
        names.COMPUTE_PERCENT_LIMIT,
        '"0" to "100"',
        "Largest share of a GPU's compute; instead of tflops-limit",
        "the request",
    ),
    Key(names.GPU_COUNT, '"1" to "128"', "GPUs of each worker", "1"),
    Key(
        names.GPU_INDICES,
        '"0,2"',
        "Positions on the node that may be used; without gpu-count, as many GPUs as are listed",
        "any",
    ),
    Key(names.GPU_MODEL, "A100_SXM_80G", "Models allowed, separated by commas or bars", "any"),
    Key(names.VENDOR, "NVIDIA", "Vendor of the GPUs, in any case; MThreads is MooreThreads", "any"),
    Key(names.GPU_POOL, "shared", "GPUPool to run in", "the default pool"),
    Key(names.WORKLOAD_PROFILE, "my-profile", "WorkloadProfile to inherit from", "none"),
    Key(
        names.WORKLOAD,
        "my-workload",
        "TensorFusionWorkload whose workers are shared",
        "a worker for each pod",
    ),
    Key(
        names.QOS,
        "low, medium, high or critical",
        "Quality of service",
        "high when requests equal limits, else medium",
    ),
    Key(names.ISOLATION, "shared, soft, hard or partitioned", "How limits are kept", "soft"),
    Key(names.IS_LOCAL_GPU, '"true" or "false"', "Run on the node that has the GPU", "true"),
    Key(names.SIDECAR_WORKER, '"true" or "false"', "Worker in a container of its own", "false"),
    Key(
        names.STANDALONE_WORKER_MODE,
        '"true" or "false"',
        "The documentation's name of sidecar-worker",
        "false",
    ),
    Key(
        names.INJECT_CONTAINER,
        "name[,name]",
        "Containers that use the GPU; needed when there are several",
        "the only container",
    ),
    Key(
        names.CONTAINER_GPU_COUNT,
        '{"a": 1, "b": 2}',
        "GPUs of each container; gpu-count is their sum",
        "all containers share the same GPUs",
    ),
    Key(
        names.DEDICATED_GPU,
        '"true" or "false"',
        "Whole cards of gpu-model, whatever the amounts say",
        "false",
    ),
    Key(names.PARTITION_ID, "3g.40gb", "Partition template; partitioned isolation only", "any"),
    Key(names.WORKER_POD_TEMPLATE, "YAML", "Template of remote workers", "the pool's"),
    Key(names.ENABLED_REPLICAS, '"1"', "How many pods of a ReplicaSet are enabled", "all"),
    Key(names.AUTOSCALE, '"true" or "false"', "Apply recommended resources", "false"),
    Key(names.AUTOSCALE_TARGET, "all, compute, tflops or vram", "What autoscaling sets", "all"),
    Key(
        names.AUTO_RESOURCES,
        '"true" or "false"',
        "The documentation's name of autoscale; without a target it only recommends",
        "false",
    ),
    Key(
        names.AUTO_SCALE_TARGET_RESOURCE,
        "all, tflops, compute or vram",
        "The documentation's name of autoscale-target",
        "recommend only",
    ),
    Key(
        names.AUTO_REPLICAS, '"true" or "false"', "Horizontal autoscaling (recorded only)", "false"
    ),
    Key(
        names.DISABLE_FEATURES,
        "gpu-limiter, gpu-opt, mem-manager, start-worker",
        "Features to switch off, separated by commas",
        "none",
    ),
    Key(names.EVICTION_PROTECTION, "1h30m", "Time in which the pod is not preempted", "none"),
    Key(names.GANG_ENABLED, '"true" or "false"', "Place all members or none", "false"),
    Key(names.GANG_MIN_MEMBERS, '"0", or "2" and more', "Members that must fit together", "all"),
    Key(names.GANG_TIMEOUT, "5m", "How long members wait for each other", "for ever"),
    Key(
        names.REQUIRE_GPU_TOPOLOGY,
        '"true" or "false"',
        "Refuse GPUs that are connected worse than the tier",
        "false",
    ),
    Key(names.GPU_TOPOLOGY_MAX_TIER, '"0" to "3"', "Worst connection between GPUs", "1"),
    Key(names.GPU_TOPOLOGY_SOURCE, "auto, numa or vendor", "Where connections are read", "auto"),
    Key(names.SIMULATED_LOAD, "sine,min=2,max=9", "Load that simulated workers generate", "sine"),
)

SYSTEM_KEYS = frozenset(
    {
        names.GPU_IDS, names.CONTAINER_GPUS, names.PARTITIONS, names.GPU_TOPOLOGY, names.INDEX, names.PORT_NUMBER, names.WORKER,
        names.SELECTED_WORKLOAD, names.EMBEDDED_WORKER, names.POD_COUNTER_KEY,
        names.WORKLOAD_MODE, names.GANG_DESIRED_MEMBERS, names.GANG_REQUIRED_MEMBERS,
        names.GANG_GROUP_KEY, names.GANG_PHASE, names.ORIGINAL_RESOURCES, names.ENFORCEMENT,
    }
)  # fmt: skip
"""Annotations that we write."""

BIND_KEYS = (names.GPU_IDS, names.CONTAINER_GPUS, names.PARTITIONS, names.WORKER)
"""Annotations that say what a pod holds; only a binding writes them."""

LABELS = frozenset(
    {
        names.ENABLED, names.COMPONENT, names.WORKLOAD, names.GPU_POOL, names.HOST_PORT,
        names.PORT_NAME, names.POD_TEMPLATE_HASH, names.MANAGED_BY, names.DO_NOT_DISRUPT,
    }
)  # fmt: skip
USER_KEY_SET = frozenset(key.key for key in USER_KEYS)
_KNOWN = USER_KEY_SET | SYSTEM_KEYS
_PREFIXES = (names.COUNTER_PREFIX, names.EFFECTIVE_PREFIX)


def hints(labels: Mapping[str, str], annotations: Mapping[str, str]) -> list[str]:
    """Warn about keys under our prefix that nothing reads, and say what was probably meant."""
    found = [
        _hint(key)
        for key in annotations
        if key.startswith(names.PREFIX) and key not in _KNOWN and not key.startswith(_PREFIXES)
    ]
    found += [
        f"label {key} is not known and is ignored; {_meant_label(key)}"
        for key in labels
        if key.startswith(names.PREFIX)
        and key not in LABELS
        and not key.startswith(names.POOL_LABEL_PREFIX)
    ]
    return found


@lru_cache(maxsize=1024)
def _hint(key: str) -> str:
    if key in LABELS:
        return f"annotation {key} is ignored: it is a label"
    return f"annotation {key} is not known and is ignored; {_closest(key, USER_KEY_SET)}"


@lru_cache(maxsize=1024)
def _meant_label(key: str) -> str:
    if key in _KNOWN:
        return "it is an annotation"
    return _closest(key, LABELS)


def _closest(key: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(key.lower(), sorted(known), n=1, cutoff=0.0)
    return f"did you mean {near[0]}?"


def annotation_reference() -> dict[str, str]:
    """Generate the reference page of all annotations: file name to text."""
    lines = [
        "# Annotations of pods",
        "",
        "Write them on the pod, or on the pod template of a Deployment. A value that an",
        "annotation leaves out comes from the WorkloadProfile, then from the namespace's quota,",
        "then from the pool, and last from the default given here. The pod also needs the label",
        f'`{names.ENABLED}: "true"`.',
        "",
        "| Annotation | Value | Meaning | Default |",
        "|---|---|---|---|",
    ]
    for key in USER_KEYS:
        form, meaning = (text.replace("|", "\\|") for text in (key.form, key.meaning))
        lines.append(f"| `{key.key}` | `{form}` | {meaning} | {key.default} |")
    lines += [
        "",
        "An annotation under the same prefix that is not listed is ignored with a warning that",
        "names the closest one; a value that cannot be read is refused.",
        "",
    ]
    return {"annotations.md": "\n".join(lines)}
