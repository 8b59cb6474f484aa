"""Autoscaling settings of a pod, from annotations of both dialects, profile and pool rules. Pure."""

from collections.abc import Mapping
from typing import Any

from tensorfusion import names
from tensorfusion.admission import values
from tensorfusion.admission.migration import selector_matches
from tensorfusion.admission.raw import mapping
from tensorfusion.admission.refusal import RefusedValue, annotation_field
from tensorfusion.api.autoscaling import AutoScalingConfig
from tensorfusion.api.decode import to_json
from tensorfusion.api.resource import JsonObject
from tensorfusion.api.scheduling_config import SchedulingConfigTemplate
from tensorfusion.model.demand import Amount
from tensorfusion.units import parse_bytes, parse_gflops

TARGETS = ("all", "compute", "tflops", "vram")
COMPUTE_TARGETS = frozenset({"all", "compute", "tflops"})
VRAM_TARGETS = frozenset({"all", "vram"})


def scaling_config(
    annotations: Mapping[str, str],
    profile: AutoScalingConfig | None,
    rule: AutoScalingConfig | None,
) -> JsonObject:
    """Merge the settings, field by field; empty when nobody asks for any.

    Cron rules of the pool come after the profile's; a rule of the same name is the profile's.

    Raises:
        RefusedValue: An annotation cannot be read, or the two dialects contradict each other.
    """
    enable, target, all_by_default = _annotated(annotations)
    own: JsonObject = {}
    if enable is not None:
        own["enable"] = enable
    if target is not None:
        own["targetResource"] = target
    blocks = [to_json(block) for block in (profile, rule) if block is not None]
    merged: JsonObject = {}
    resources = _filled([own, *(mapping(b.get("autoSetResources")) for b in blocks)])
    if enable and all_by_default and not resources.get("targetResource") and target is None:
        resources["targetResource"] = "all"
    if resources:
        merged["autoSetResources"] = resources
    replicas_own: JsonObject = {}
    if names.AUTO_REPLICAS in annotations:
        replicas_own["enable"] = values.boolean(
            annotation_field(names.AUTO_REPLICAS), annotations[names.AUTO_REPLICAS]
        )
    replicas = _filled([replicas_own, *(mapping(b.get("autoSetReplicas")) for b in blocks)])
    if replicas:
        merged["autoSetReplicas"] = replicas
    crons: list[JsonObject] = []
    for block in blocks:
        taken = {c.get("name") for c in crons}
        crons += [c for c in block.get("cronScalingRules", ()) if c.get("name") not in taken]
        if "externalScaler" in block:
            merged.setdefault("externalScaler", block["externalScaler"])
    if crons:
        merged["cronScalingRules"] = crons
    return merged


def _filled(blocks: list[JsonObject]) -> JsonObject:
    """Lay blocks over each other, the first on top."""
    result: JsonObject = {}
    for block in blocks:
        for key, value in block.items():
            result.setdefault(key, value)
    return result


def _annotated(annotations: Mapping[str, str]) -> tuple[bool | None, str | None, bool]:
    enable = _one_of(annotations, names.AUTOSCALE, names.AUTO_RESOURCES, values.boolean)
    target = _one_of(annotations, names.AUTOSCALE_TARGET, names.AUTO_SCALE_TARGET_RESOURCE, _target)
    return enable, target, names.AUTOSCALE in annotations


def _target(field: str, text: str) -> str:
    return values.choice(field, text, TARGETS) if text.strip() else ""


def _one_of(annotations: Mapping[str, str], code: str, documented: str, read: Any) -> Any:
    """Read a setting that has two names; both may be given when they agree."""
    found = [
        (k, read(annotation_field(k), annotations[k]))
        for k in (code, documented)
        if k in annotations
    ]
    if not found:
        return None
    if len(found) == 2 and not _agree(found[0][1], found[1][1]):
        raise RefusedValue(
            annotation_field(documented),
            annotations[documented],
            f"contradicts {annotation_field(code)}, another name of the same setting",
        )
    return found[0][1]


def _agree(one: Any, other: Any) -> bool:
    return one == other or {one, other} == {"compute", "tflops"}


def pool_rule(
    template: SchedulingConfigTemplate | None, labels: Mapping[str, str]
) -> AutoScalingConfig | None:
    """The first rule of a pool's template that selects the pod."""
    spec = template.spec if template is not None else None
    for rule in spec.vertical_scaling_rules if spec else ():
        if rule.selector is None or selector_matches(rule.selector, labels):
            return rule.auto_scaling
    return None


def recommended(
    workload: JsonObject | None, scaling: JsonObject, request: Amount, limit: Amount
) -> tuple[Amount, Amount]:
    """Lay a workload's latest recommendation over the amounts of a new pod of it.

    Only where recommendations are applied at all, and only the targeted resource; the same rule
    as for running workers.
    """
    block = mapping(scaling.get("autoSetResources"))
    target = block.get("targetResource", "")
    status = mapping(workload.get("status")) if workload is not None else {}
    proposal = mapping(status.get("recommendation"))
    if not block.get("enable") or not target or not proposal:
        return request, limit
    request = _overlaid(request, mapping(proposal.get("requests")), target)
    limit = _overlaid(limit, mapping(proposal.get("limits")), target)
    if request.gflops and limit.gflops:
        limit = Amount(max(limit.gflops, request.gflops), limit.vram_bytes)
    vram = max(limit.vram_bytes, request.vram_bytes)
    return request, Amount(limit.gflops, vram, limit.milli_percent)


def _overlaid(amount: Amount, wanted: JsonObject, target: str) -> Amount:
    gflops = parse_gflops(wanted.get("tflops") or 0) if target in COMPUTE_TARGETS else 0
    vram = parse_bytes(wanted.get("vram") or 0) if target in VRAM_TARGETS else 0
    return Amount(
        gflops or amount.gflops,
        vram or amount.vram_bytes,
        0 if gflops else amount.milli_percent,
    )
