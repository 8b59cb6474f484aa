import pytest

from tensorfusion.api import registry
from tensorfusion.api.table import age_text, cell_text, compile_path, table_columns, table_row
from tensorfusion.clock import parse_timestamp
from tensorfusion.errors import ConfigError

NOW = parse_timestamp("2025-01-31T12:05:00Z")
CREATED = "2025-01-31T12:00:00Z"


def cells(resource, obj):
    names = [column.name for column in table_columns(resource)]
    return dict(zip(names, table_row(resource, obj, NOW), strict=True))


def named(name, **rest):
    return {"metadata": {"name": name, "creationTimestamp": CREATED}, **rest}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"), (119, "119s"), (120, "2m"), (303, "5m3s"), (660, "11m"), (3 * 3600, "3h"),
        (3 * 3600 + 240, "3h4m"), (9 * 3600, "9h"), (76 * 3600, "3d4h"), (30 * 86400, "30d"),
        (900 * 86400, "2y170d"), (9 * 365 * 86400, "9y"), (-5, "<invalid>"), (-1, "0s"),
    ],
)  # fmt: skip
def test_age_reads_as_kubectl_writes_it(seconds, text):
    assert age_text(seconds) == text


def test_json_path_subset():
    obj = {"used": {"requests.tflops": "5"}, "list": [{"type": "A", "v": 1}, {"type": "B", "v": 2}]}
    assert compile_path('.used["requests.tflops"]')(obj) == ["5"]
    assert compile_path("{.list[1].v}")(obj) == [2]
    assert compile_path('.list[?(@.type=="B")].v')(obj) == [2]
    assert compile_path(".list[*].v")(obj) == [1, 2]
    assert compile_path(".missing.deeper")(obj) == []
    assert compile_path(".list[7].v")(obj) == []
    with pytest.raises(ConfigError, match=r"cannot be read at '\[\?bad\]'"):
        compile_path(".list[?bad]")


def test_every_column_path_can_be_compiled_and_every_row_rendered():
    for resource in registry.RESOURCES:
        for column in table_columns(resource):
            if column.path:
                compile_path(column.path)
        assert len(table_row(resource, {"metadata": {"name": "x"}}, NOW)) == len(
            table_columns(resource)
        )


@pytest.mark.parametrize(
    ("status", "deleting", "word"),
    [
        ({"phase": "Pending"}, False, "Pending"),
        ({"phase": "Running", "containerStatuses": [{"ready": True, "state": {"running": {}}}]}, False, "Running"),
        ({"phase": "Running", "containerStatuses": [{"state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}, False, "CrashLoopBackOff"),
        ({"phase": "Failed", "containerStatuses": [{"state": {"terminated": {"exitCode": 3}}}]}, False, "ExitCode:3"),
        ({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"running": {}}}]}, False, "Init:0/1"),
        ({"phase": "Failed", "reason": "Evicted"}, False, "Evicted"),
        ({"phase": "Running"}, True, "Terminating"),
        ({"phase": "Pending", "conditions": [{"type": "PodScheduled", "reason": "SchedulingGated"}]}, False, "SchedulingGated"),
    ],
)  # fmt: skip
def test_pod_status_word(status, deleting, word):
    pod = named(
        "p", spec={"containers": [{"name": "c"}], "initContainers": [{"name": "i"}]}, status=status
    )
    if deleting:
        pod["metadata"]["deletionTimestamp"] = CREATED
    assert cells(registry.PODS, pod)["Status"] == word


def test_pod_row():
    pod = named(
        "p",
        spec={"containers": [{"name": "a"}, {"name": "b"}], "nodeName": "n1"},
        status={
            "phase": "Running",
            "podIP": "10.0.0.1",
            "containerStatuses": [
                {"ready": True, "restartCount": 2},
                {"ready": False, "restartCount": 1},
            ],
        },
    )
    row = cells(registry.PODS, pod)
    assert (row["Name"], row["Ready"], row["Restarts"], row["Age"]) == ("p", "1/2", 3, "5m")
    assert (row["IP"], row["Node"], row["Nominated Node"]) == ("10.0.0.1", "n1", "<none>")


def test_node_row():
    node = {
        "metadata": {"name": "n", "labels": {"node-role.kubernetes.io/control-plane": ""}},
        "spec": {"unschedulable": True},
        "status": {
            "conditions": [{"type": "Ready", "status": "True"}],
            "nodeInfo": {"kubeletVersion": "v1"},
        },
    }
    row = cells(registry.NODES, node)
    assert (row["Status"], row["Roles"], row["Version"], row["Age"]) == (
        "Ready,SchedulingDisabled", "control-plane", "v1", "<unknown>",
    )  # fmt: skip


def test_deployment_and_event_rows():
    row = cells(
        registry.DEPLOYMENTS,
        named("d", spec={"replicas": 3}, status={"readyReplicas": 2, "updatedReplicas": 3}),
    )
    assert (row["Ready"], row["Up-to-date"], row["Available"]) == ("2/3", 3, 0)
    event = named(
        "e",
        type="Warning",
        reason="R",
        message="m",
        lastTimestamp=CREATED,
        involvedObject={"kind": "Pod", "name": "p"},
    )
    row = cells(registry.EVENTS, event)
    assert (row["Last Seen"], row["Type"], row["Object"], row["Message"]) == (
        "5m",
        "Warning",
        "pod/p",
        "m",
    )


def test_our_rows_show_status_and_leave_gaps_empty():
    gpu = named(
        "gpu-1",
        status={
            "phase": "Running",
            "gpuModel": "A100",
            "available": {"tflops": 12},
            "nodeName": "n",
        },
    )
    row = cells(registry.GPUS, gpu)
    assert (row["Model"], row["Phase"], row["Available TFLOPS"], row["Node"]) == (
        "A100",
        "Running",
        "12",
        "n",
    )
    assert row["Used By"] is None
    assert cell_text(row["Used By"]) == "<none>"
    quota = named("q", status={"used": {"requests": {"tflops": "5"}, "workers": 2}})
    row = cells(registry.QUOTAS, quota)
    assert (row["TFLOPS Used"], row["Workers Used"]) == ("5", 2)
    pool = named("p", status={"conditions": [{"type": "Ready", "status": "True"}]})
    assert cells(registry.GPU_POOLS, pool)["Ready"] == "True"
