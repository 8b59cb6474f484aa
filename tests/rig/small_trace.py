"""A small synthetic cluster and list of tasks in the columns of the openb trace."""

import random
from pathlib import Path

MODELS = (("T4", 2), ("G2", 8), ("V100M16", 4), ("P100", 1))


def write_trace(folder: Path, *, nodes: int = 12, tasks: int = 120, seed: int = 1) -> list[str]:
    """Write ``nodes.csv`` and ``pods.csv``; return the options that name them.

    A few shapes make most of the tasks, as in real lists, and a tenth ask for no GPU.
    """
    rng = random.Random(seed)
    lines = ["sn,cpu_milli,memory_mib,gpu,model"]
    for number in range(nodes):
        model, gpus = MODELS[number % len(MODELS)]
        lines.append(f"node-{number:03d},{16_000 * gpus},{65_536 * gpus},{gpus},{model}")
    (folder / "nodes.csv").write_text("\n".join(lines) + "\n")
    lines = ["name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,qos"]
    for number in range(tasks):
        kind = rng.random()
        count, milli = (0, 0) if kind < 0.1 else (1, rng.choice((100, 300, 460, 500, 1000)))
        if kind > 0.92:
            count, milli = rng.choice((2, 4, 8)), 1000
        spec = rng.choice(("", "", "", "T4|G2", "V100M16")) if count else ""
        cpu = rng.choice((1000, 4000, 8000)) * max(count, 1)
        lines.append(
            f"pod-{number:03d},{cpu},{rng.choice((2048, 16384))},{count},{milli},{spec},LS"
        )
    (folder / "pods.csv").write_text("\n".join(lines) + "\n")
    return ["--nodes", str(folder / "nodes.csv"), "--pods", str(folder / "pods.csv")]
