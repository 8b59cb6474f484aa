"""The status of a pod, as the hypervisor reports it in the embedded mode."""

from collections.abc import Sequence

from tensorfusion.api.core.pod import Pod
from tensorfusion.api.core.pod_status import ContainerStatus
from tensorfusion.api.resource import JsonObject
from tensorfusion.clock import format_timestamp
from tensorfusion.hypervisor.containers import Attempt
from tensorfusion.hypervisor.pods import ContainerState

UNCONDITIONAL = ("PodReadyToStartContainers", "Initialized", "PodScheduled")
IF_READY = ("Ready", "ContainersReady")


def running_status(pod: Pod, now: str) -> JsonObject:
    """The status of a pod whose containers all run, though no process stands for them."""
    containers = [
        {
            "name": c.name,
            "image": c.image or "",
            "imageID": "",
            "ready": True,
            "started": True,
            "restartCount": 0,
            "state": {"running": {"startedAt": now}},
        }
        for c in (pod.spec.containers if pod.spec else ())
    ]
    return _status("Running", containers, now, now, ready=True)


def process_status(states: Sequence[ContainerState], now: str) -> JsonObject:
    """The status of a pod whose containers are processes."""
    ready = all(state.running() for state in states)
    phase = "Running"
    if all(state.over() for state in states):
        failed = any(state.last is not None and state.last.exit_code for state in states)
        phase = "Failed" if failed else "Succeeded"
    started = min(state.last.started for state in states if state.last is not None)
    containers = [_container(state) for state in states]
    return _status(phase, containers, format_timestamp(started), now, ready=ready)


def is_reported(pod: Pod, status: JsonObject) -> bool:
    """Whether a pod's status says already what ``status`` says of phase and containers."""
    if pod.status is None or pod.status.phase != status["phase"]:
        return False
    known = {c.name: _seen(c) for c in pod.status.container_statuses or ()}
    return known == {c["name"]: _told(c) for c in status["containerStatuses"]}


def _seen(status: ContainerStatus) -> tuple[int, str, int | None]:
    state = status.state
    kind = "none"
    code = None
    if state is not None and state.terminated is not None:
        kind, code = "terminated", state.terminated.exit_code
    elif state is not None:
        kind = "running" if state.running is not None else "waiting"
    return status.restart_count or 0, kind, code


def _told(status: JsonObject) -> tuple[int, str, int | None]:
    kind = next(iter(status["state"]))
    return status["restartCount"], kind, status["state"][kind].get("exitCode")


def _container(state: ContainerState) -> JsonObject:
    last = state.last
    number = last.number if last is not None else 0
    result: JsonObject = {
        "name": state.spec.name,
        "image": state.spec.image or "",
        "imageID": "",
        "ready": state.running(),
        "started": state.running(),
        "restartCount": number,
    }
    if last is None:
        result["state"] = {"waiting": {"reason": "ContainerCreating"}}
    elif state.running():
        result["state"] = {"running": {"startedAt": format_timestamp(last.started)}}
    elif state.waits_until:
        until = format_timestamp(state.waits_until)
        waiting = {"reason": "CrashLoopBackOff", "message": f"started again at {until}"}
        result |= {"state": {"waiting": waiting}, "lastState": _terminated(last)}
    else:
        result["state"] = _terminated(last)
    return result


def _terminated(attempt: Attempt) -> JsonObject:
    return {
        "terminated": {
            "exitCode": attempt.exit_code,
            "reason": "Error" if attempt.exit_code else "Completed",
            "startedAt": format_timestamp(attempt.started),
            "finishedAt": format_timestamp(attempt.finished),
        }
    }


def _status(
    phase: str, containers: list[JsonObject], started: str, now: str, *, ready: bool
) -> JsonObject:
    conditions = [{"type": t, "status": "True", "lastTransitionTime": now} for t in UNCONDITIONAL]
    conditions += [
        {"type": t, "status": "True" if ready else "False", "lastTransitionTime": now}
        for t in IF_READY
    ]
    return {
        "phase": phase,
        "startTime": started,
        "hostIP": "127.0.0.1",
        "podIP": "127.0.0.1",
        "podIPs": [{"ip": "127.0.0.1"}],
        "qosClass": "BestEffort",
        "conditions": conditions,
        "containerStatuses": containers,
    }
