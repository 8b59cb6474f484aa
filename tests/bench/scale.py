"""Scale: 1,000 nodes, 8,000 GPUs, 10,000 pods on one embedded control plane.

``python tests/bench/scale.py [--nodes N] [--pods N] [--json]``

Starts the program on a fresh data folder, creates the pods through the wire from this process,
waits until all are bound, samples GET latency meanwhile and afterwards, stops it, starts it again
from disk, and prints time, peak memory and rows read per pod beside a run with a tenth of the
pods. The load comes from the same two cores, so the figures are pessimistic. Shared machines
change their speed from hour to hour: the time of a fixed loop of Python is printed with each run.
"""

import argparse
import json
import os
import shutil
import signal
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import timeit
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any

import yaml

MODELS = ("A100_SXM_80G",)


def pod(number: int) -> bytes:
    """A pod of one of many shapes."""
    body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"pod-{number:05d}",
            "labels": {"tensor-fusion.ai/enabled": "true", "app": f"app-{number % 100}"},
            "annotations": {
                "tensor-fusion.ai/tflops-request": str(20 + number % 40),
                "tensor-fusion.ai/tflops-limit": str(80 + number % 40),
                "tensor-fusion.ai/vram-request": f"{4 + number % 8}Gi",
                "tensor-fusion.ai/vram-limit": f"{4 + number % 8}Gi",
            },
        },
        "spec": {"containers": [{"name": "main", "image": "busybox"}]},
    }
    return json.dumps(body).encode()


class Client:
    """One keep-alive connection."""

    def __init__(self, data: Path) -> None:
        config = yaml.safe_load((data / "kubeconfig").read_text())
        server = config["clusters"][0]["cluster"]["server"]
        context = ssl._create_unverified_context()
        host, port = server.removeprefix("https://").split(":")
        self.token = config["users"][0]["user"]["token"]
        self.connection = HTTPSConnection(host, int(port), context=context, timeout=60)

    def request(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Send one request."""
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        self.connection.request(method, path, body, headers)
        response = self.connection.getresponse()
        return response.status, response.read()

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

    def get(self, path: str) -> Any:
        """GET decoded JSON."""
        status, data = self.request("GET", path)
        if status != 200:
            raise RuntimeError(f"GET {path}: {status} {data[:200]!r}")
        return json.loads(data)


def start(data: Path, nodes: int) -> tuple[subprocess.Popen[bytes], float]:
    """Start the program; returns when it is ready, with the seconds it took."""
    config = data / "settings.yaml"
    group = {"model": MODELS[0], "count": 8}
    config.write_text(
        yaml.safe_dump(
            {
                "backend": "simulated",
                "sample_seconds": 15.0,
                "log_level": "warning",
                "plugin_settings": {
                    "simulated": {"nodes": [{"name": "node", "count": nodes, "gpus": [group]}]}
                },
            }
        )
    )
    started = time.monotonic()
    with (data / "log").open("ab") as log:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tensorfusion",
                "up",
                "--data",
                str(data),
                "--config",
                str(config),
            ],
            stdout=log,
            stderr=log,
        )
    while time.monotonic() - started < 300:
        if process.poll() is not None:
            raise RuntimeError((data / "log").read_text()[-2000:])
        try:
            client = Client(data)
            if client.request("GET", "/readyz")[0] == 200:
                return process, time.monotonic() - started
        except (OSError, KeyError, TypeError):
            pass
        time.sleep(0.05)
    raise TimeoutError("the control plane was not ready in 300 s")


def wait_fleet(data: Path, gpus: int) -> None:
    """Wait until the pool has all its GPUs."""
    client = Client(data)
    while True:
        pools = client.get("/apis/tensor-fusion.ai/v1/gpupools")["items"]
        if sum(p.get("status", {}).get("totalGPUs", 0) for p in pools) == gpus:
            return
        time.sleep(0.2)


def create(data: Path, count: int, threads: int) -> None:
    """Create the pods through the wire."""

    def work(part: int) -> None:
        client = Client(data)
        for number in range(part, count, threads):
            status, body = client.request("POST", "/api/v1/namespaces/default/pods", pod(number))
            if status != 201:
                raise RuntimeError(f"create: {status} {body[:300]!r}")

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))


def bound(client: Client) -> int:
    """Count bound pods."""
    return int(client.get("/tensorfusion/counters")["allocations"])


def loop_us() -> float:
    """How fast the machine is just now: microseconds of a fixed loop, the best of five."""
    return min(timeit.repeat("sum(range(1000))", number=2000, repeat=5)) / 2000 * 1e6


def measure(nodes: int, pods: int, threads: int) -> dict[str, float]:
    """Run the whole scenario once."""
    data = Path(tempfile.mkdtemp(prefix="tensorfusion-scale-"))
    loop_before = loop_us()
    process, first_start = start(data, nodes)
    try:
        wait_fleet(data, nodes * 8)
        client = Client(data)
        before = client.get("/tensorfusion/counters")
        latencies: list[float] = []
        stop = threading.Event()
        probe = threading.Thread(target=sample_latency, args=(data, latencies, stop))
        probe.start()
        began = time.monotonic()
        create(data, pods, threads)
        created = time.monotonic() - began
        while bound(client) < pods:
            time.sleep(0.1)
        placed = time.monotonic() - began
        stop.set()
        probe.join()
        after = client.get("/tensorfusion/counters")
        memory = peak_memory(process.pid)
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        process, restart = start(data, nodes)
        restarted_bound = bound(Client(data))
        return {
            "loop_before_us": loop_before,
            "loop_after_us": loop_us(),
            "first_start_s": first_start,
            "created_s": created,
            "bound_s": placed,
            "get_p50_ms": statistics.median(latencies) * 1000,
            "get_p99_ms": sorted(latencies)[int(len(latencies) * 0.99)] * 1000,
            "peak_mib": memory / 1024,
            "restart_s": restart,
            "bound_after_restart": restarted_bound,
            "rows_read_per_pod": (after["records_looked_at"] - before["records_looked_at"]) / pods,
            "rows_written_per_pod": (after["rows_written"] - before["rows_written"]) / pods,
        }
    finally:
        process.kill()
        process.wait(30)
        shutil.rmtree(data, ignore_errors=True)


def sample_latency(data: Path, latencies: list[float], stop: threading.Event) -> None:
    """GET one object 20 times a second."""
    client = Client(data)
    while not stop.wait(0.05):
        began = time.perf_counter()
        client.get("/api/v1/namespaces/default")
        latencies.append(time.perf_counter() - began)


def peak_memory(pid: int) -> int:
    """Peak resident memory of a process in KiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1])
    return 0


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--pods", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=6, help="client connections")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    os.environ.pop("KUBECONFIG", None)
    small = measure(arguments.nodes, arguments.pods // 10, arguments.threads)
    large = measure(arguments.nodes, arguments.pods, arguments.threads)
    ratio = large["rows_read_per_pod"] / max(small["rows_read_per_pod"], 1e-9)
    if arguments.json:
        print(json.dumps({"small": small, "large": large, "rows_read_ratio": ratio}))
        return
    print(f"{'':24}{arguments.pods // 10:>12} pods{arguments.pods:>12} pods")
    for key in small:
        print(f"{key:24}{small[key]:>17.2f}{large[key]:>17.2f}")
    print(f"rows read per pod, large over small: {ratio:.2f}")


if __name__ == "__main__":
    main()
