"""A small made-up cluster with tasks, in the columns that `tensorfusion.simulate.trace` reads."""

import random
from pathlib import Path
from typing import Final

MODELS: Final = (("T4", 2), ("G2", 8), ("V100M16", 4), ("P100", 1))
"""Models and cards per node."""
MEAN_PAUSE_SECONDS: Final = 60.0
MEDIAN_RUN_SECONDS: Final = 1800.0


def write_trace(
    folder: Path, *, nodes: int = 12, tasks: int = 400, seed: int = 1
) -> tuple[Path, Path]:
    """Write ``nodes.csv`` and ``pods.csv`` into a folder; return both.

    A few shapes make most of the tasks, as in real lists, and a tenth ask for no GPU. Arrivals
    are a Poisson process; durations are log-normal, so that a few tasks stay very long.
    """
    rng, times = random.Random(seed), random.Random(f"times {seed}")  # noqa: S311 - repeatable
    lines = ["sn,cpu_milli,memory_mib,gpu,model"]
    for number in range(nodes):
        model, gpus = MODELS[number % len(MODELS)]
        lines.append(f"node-{number:03d},{16_000 * gpus},{65_536 * gpus},{gpus},{model}")
    node_file = folder / "nodes.csv"
    node_file.write_text("\n".join(lines) + "\n")
    lines = [
        "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,qos,"
        "creation_time,scheduled_time,deletion_time"
    ]
    clock = 0.0
    for number in range(tasks):
        clock += times.expovariate(1 / MEAN_PAUSE_SECONDS)
        arrives = round(clock)
        ends = arrives + max(1, round(MEDIAN_RUN_SECONDS * times.lognormvariate(0.0, 1.2)))
        lines.append(f"pod-{number:03d},{_request(rng)},LS,{arrives},{arrives},{ends}")
    task_file = folder / "pods.csv"
    task_file.write_text("\n".join(lines) + "\n")
    return node_file, task_file


def _request(rng: random.Random) -> str:
    """Draw CPU, memory, cards, their share and their models."""
    kind = rng.random()
    count, milli = (0, 0) if kind < 0.1 else (1, rng.choice((100, 300, 460, 500, 1000)))
    if kind > 0.92:
        count, milli = rng.choice((2, 4, 8)), 1000
    spec = rng.choice(("", "", "", "T4|G2", "V100M16")) if count else ""
    cpu = rng.choice((1000, 4000, 8000)) * max(count, 1)
    return f"{cpu},{rng.choice((2048, 16384))},{count},{milli},{spec}"
