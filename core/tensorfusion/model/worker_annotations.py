"""The annotations of an admitted pod, read back as amounts.

Admission normalises every dialect into these keys; scheduler, hypervisor, quota and autoscaler
read them here and nowhere else. Amounts are per GPU of one worker.
"""

import json
from collections.abc import Mapping

import msgspec

from tensorfusion import names
from tensorfusion.errors import ConfigError
from tensorfusion.model.demand import Amount
from tensorfusion.model.partitions import Cut
from tensorfusion.units import (
    format_bytes,
    format_percent,
    format_tflops,
    parse_bytes,
    parse_gflops,
    parse_percent,
)

_CUTS = msgspec.json.Decoder(dict[str, Cut])


def request_of(annotations: Mapping[str, str]) -> Amount:
    """Read what the pod is promised."""
    return _amount(
        annotations, names.TFLOPS_REQUEST, names.COMPUTE_PERCENT_REQUEST, names.VRAM_REQUEST
    )


def limit_of(annotations: Mapping[str, str]) -> Amount:
    """Read the most the pod may take."""
    return _amount(annotations, names.TFLOPS_LIMIT, names.COMPUTE_PERCENT_LIMIT, names.VRAM_LIMIT)


def gpu_ids_of(annotations: Mapping[str, str]) -> tuple[str, ...]:
    """Read the GPUs the scheduler gave the pod, in the order its containers see them."""
    return tuple(part for part in annotations.get(names.GPU_IDS, "").split(",") if part)


def cuts_of(annotations: Mapping[str, str]) -> dict[str, Cut]:
    """Read the hardware partitions the scheduler gave the pod, by GPU.

    Raises:
        ConfigError: The annotation is not what we write.
    """
    text = annotations.get(names.PARTITIONS, "")
    try:
        return _CUTS.decode(text) if text else {}
    except msgspec.MsgspecError as error:
        raise ConfigError(f"annotation {names.PARTITIONS} is {text!r}: {error}") from error


def format_cuts(cuts: Mapping[str, Cut]) -> str:
    """Print hardware partitions by GPU as an annotation."""
    return msgspec.json.encode(dict(cuts)).decode()


def gpu_count_of(annotations: Mapping[str, str]) -> int:
    """Read how many GPUs each worker has."""
    return int(annotations.get(names.GPU_COUNT, "1"))


def container_counts_of(annotations: Mapping[str, str]) -> dict[str, int]:
    """Read how many GPUs each container gets; empty when they share the same ones."""
    text = annotations.get(names.CONTAINER_GPU_COUNT, "")
    return {str(k): int(v) for k, v in json.loads(text).items()} if text else {}


def format_amounts(request: Amount, limit: Amount) -> dict[str, str]:
    """Print amounts as annotations; what is zero is left out."""
    result: dict[str, str] = {}
    keys = (
        (request, names.TFLOPS_REQUEST, names.COMPUTE_PERCENT_REQUEST, names.VRAM_REQUEST),
        (limit, names.TFLOPS_LIMIT, names.COMPUTE_PERCENT_LIMIT, names.VRAM_LIMIT),
    )
    for amount, tflops, percent, vram in keys:
        if amount.gflops:
            result[tflops] = format_tflops(amount.gflops)
        if amount.milli_percent:
            result[percent] = format_percent(amount.milli_percent)
        if amount.vram_bytes:
            result[vram] = format_bytes(amount.vram_bytes)
    return result


def _amount(annotations: Mapping[str, str], tflops: str, percent: str, vram: str) -> Amount:
    try:
        return Amount(
            gflops=parse_gflops(annotations.get(tflops, "0")),
            milli_percent=parse_percent(annotations.get(percent, "0")),
            vram_bytes=parse_bytes(annotations.get(vram, "0")),
        )
    except ConfigError as error:
        raise ConfigError(f"annotations {tflops}, {percent}, {vram}: {error}") from error
