"""Containers as processes: files, exit codes, adoption, restarts, logs. Real processes, a moved clock."""

import os
import signal
import threading
import time
from pathlib import Path

import msgspec
import pytest

from tensorfusion import names
from tensorfusion.api.core.pod import Pod
from tensorfusion.clock import SystemClock
from tensorfusion.errors import BackendError, BadRequest, NotFound
from tensorfusion.hypervisor.containers import KILLED, MARK, Container
from tensorfusion.hypervisor.environment import process_environment
from tensorfusion.hypervisor.pod_status import is_reported, process_status
from tensorfusion.hypervisor.pods import PodRunner
from tensorfusion.spi.backend import PreparedWorker

PATH = {"PATH": os.environ["PATH"]}


class Ahead(SystemClock):
    """The wall clock, moved on by a test."""

    def __init__(self):
        self.ahead = 0.0

    def now(self):
        return super().now() + self.ahead


@pytest.fixture
def clock():
    return Ahead()


@pytest.fixture
def runner(tmp_path, clock):
    made = PodRunner(tmp_path, clock)
    yield made
    for uid in made.uids("n"):
        finish(lambda uid=uid: made.stop("n", uid, kill_at=0))
        made.remove("n", uid)


@pytest.fixture
def container(tmp_path):
    made = Container(tmp_path / "c", SystemClock())
    yield made
    made.send(signal.SIGKILL)
    made.remove()


def finish(condition, seconds=10):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError("it did not come")


def ended(container):
    return finish(lambda: (last := container.last()).exit_code is not None and last)


def gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def pod(*containers, policy="Always", **annotations):
    body = {
        "metadata": {"name": "p", "namespace": "ns", "uid": "u1", "annotations": annotations},
        "spec": {"containers": list(containers), "restartPolicy": policy},
    }
    return msgspec.convert(body, Pod)


def shell(script, name="c", **changes):
    return {"name": name, "command": ["sh", "-c", script], **changes}


STAND_IN = PreparedWorker(env={"WORKER": "w1"}, command=("echo", "stand-in"))


@pytest.mark.parametrize(
    ("script", "code"),
    [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill -TERM $$", 143), ("no-such", 127)],
)
def test_exit_codes_are_kept(container, tmp_path, script, code):
    container.start(["sh", "-c", script], PATH, tmp_path)
    last = ended(container)
    assert (last.number, last.exit_code) == (0, code)
    assert 0 < last.started <= last.finished + 0.1


def test_output_goes_to_the_log_of_the_attempt(container, tmp_path):
    for word in ("one", "two"):
        container.start(["sh", "-c", f"echo {word}; echo wrong >&2"], PATH, tmp_path)
        ended(container)
    assert container.log(0).read_text() == "one\nwrong\n"
    assert container.log(1).read_text() == "two\nwrong\n"


def test_a_later_process_finds_it_running_and_its_end(container, tmp_path):
    container.start(
        ["sh", "-c", "while ! test -e stop; do sleep 0.02; done; exit 3"], PATH, tmp_path
    )
    finish(lambda: (tmp_path / "c" / "0.pid").exists())
    later = Container(tmp_path / "c", SystemClock())
    assert later.last().exit_code is None
    (tmp_path / "stop").touch()
    assert ended(later).exit_code == 3


def test_a_leader_that_was_killed_is_over(container, tmp_path):
    container.start(["sleep", "60"], PATH, tmp_path)
    pid = int(
        finish(
            lambda: (tmp_path / "c" / "0.pid").exists() and (tmp_path / "c" / "0.pid").read_text()
        )
    )
    os.killpg(pid, signal.SIGKILL)
    assert ended(container).exit_code == KILLED


def test_a_number_that_is_used_again_is_not_taken_for_the_process(tmp_path, container):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "0.log").touch()
    (tmp_path / "c" / "0.pid").write_text(f"{os.getpid()}\n")
    assert container.last().exit_code == KILLED
    container.send(signal.SIGKILL)  # would end the test


def test_a_signal_ends_the_program_and_its_code_is_told(container, tmp_path):
    container.start(
        ["sh", "-c", 'trap "echo bye; exit 5" TERM; echo up; while :; do sleep 0.02; done'],
        PATH,
        tmp_path,
    )
    finish(lambda: container.log(0).read_text() == "up\n")
    container.send(signal.SIGTERM)
    assert ended(container).exit_code == 5
    assert container.log(0).read_text().endswith("bye\n")


def test_what_a_program_started_ends_with_it(container, tmp_path):
    container.start(["sh", "-c", "sleep 60 & echo $!"], PATH, tmp_path)
    ended(container)
    child = int(container.log(0).read_text())
    finish(lambda: gone(child))


@pytest.mark.parametrize(
    ("policy", "script", "phase", "restarts"),
    [
        ("Never", "exit 0", "Succeeded", 0),
        ("Never", "exit 1", "Failed", 0),
        ("OnFailure", "exit 0", "Succeeded", 0),
        ("OnFailure", "test -e again && exit 0; touch again; exit 1", "Succeeded", 1),
        ("Always", "exit 0", "Running", 2),
    ],
)
def test_restart_policies(runner, clock, policy, script, phase, restarts):
    wanted = pod(shell(script), policy=policy)

    def state():
        [found] = runner.step(wanted, "n", STAND_IN)
        clock.ahead += 0.5
        return (found.over() or (found.last.number == restarts and not found.running())) and found

    found = finish(state)
    assert found.last.number == restarts
    assert process_status([found], "2026-01-01T00:00:00Z")["phase"] == phase


def test_pauses_before_restarts_grow(runner, clock):
    wanted = pod(shell("exit 1"))
    pauses = []
    for number in range(5):
        finish(lambda n=number: runner.step(wanted, "n", STAND_IN)[0].last.number == n)
        found = finish(
            lambda: (
                (
                    s := Container(runner._path("n", "u1") / "containers" / "c", clock).last()
                ).exit_code
                is not None
                and s
            )
        )
        pauses.append(runner._due("Always", found) - found.finished)
        clock.ahead = max(clock.ahead, runner._due("Always", found) - time.time() + 0.1)
    assert pauses == [0, 10, 20, 40, 80]


def test_a_crash_loop_is_shown_with_its_last_end(runner, clock):
    wanted = pod(shell("exit 4"))
    found = finish(
        lambda: (
            (s := runner.step(wanted, "n", STAND_IN)[0]).waits_until and s.last.number == 1 and s
        )
    )
    status = process_status([found], "2026-01-01T00:00:00Z")
    [container] = status["containerStatuses"]
    assert container["restartCount"] == 1
    assert container["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    assert container["lastState"]["terminated"]["exitCode"] == 4
    reported = msgspec.convert({**msgspec.to_builtins(wanted), "status": status}, Pod)
    assert is_reported(reported, status)
    assert not is_reported(wanted, status)


@pytest.mark.parametrize(
    ("containers", "annotations", "outputs"),
    [
        ([shell("echo $WORKER $A", env=[{"name": "A", "value": "$(WORKER)-$(HOSTNAME)-$$"}])], {}, ["w1 $(WORKER)-p-$"]),
        ([{"name": "c", "command": ["echo"], "args": ["$(HOSTNAME)"]}], {}, ["p"]),
        ([{"name": "c", "image": "i"}], {}, ["stand-in"]),
        ([shell("echo own")], {names.SIMULATED_LOAD: "constant"}, ["stand-in"]),
        ([shell("echo own"), shell("echo side", "d")], {names.SIMULATED_LOAD: "constant"}, ["stand-in", "side"]),
    ],
)  # fmt: skip
def test_what_runs_in_which_environment(runner, containers, annotations, outputs):
    wanted = pod(*containers, policy="Never", **annotations)
    finish(lambda: all(s.over() for s in runner.step(wanted, "n", STAND_IN)))
    seen = [
        b"".join(runner.logs(wanted, "n", c["name"], previous=False, follow=False))
        for c in containers
    ]
    assert [line.decode().strip() for line in seen] == outputs


def test_secrets_of_the_control_plane_stay_there(runner, monkeypatch):
    monkeypatch.setenv("AWS_SECRET", "x")
    wanted = pod(shell("env"), policy="Never")
    finish(lambda: runner.step(wanted, "n", STAND_IN)[0].over())
    output = b"".join(runner.logs(wanted, "n", "", previous=False, follow=False)).decode()
    assert "AWS_SECRET" not in output
    assert f"{MARK}={runner._path('n', 'u1')}/containers/c/0" in output


def test_stop_asks_once_then_kills(runner):
    wanted = pod(shell('trap "echo asked" TERM; echo up; while :; do sleep 0.02; done'))
    runner.step(wanted, "n", STAND_IN)
    read = lambda: b"".join(runner.logs(wanted, "n", "", previous=False, follow=False))  # noqa: E731
    finish(lambda: read() == b"up\n")
    later = time.time() + 60
    assert not runner.stop("n", "u1", kill_at=later)
    assert not runner.stop("n", "u1", kill_at=later)
    finish(lambda: b"asked" in read())
    time.sleep(0.1)
    assert read().count(b"asked") == 1
    finish(lambda: runner.stop("n", "u1", kill_at=0))
    runner.remove("n", "u1")
    assert runner.uids("n") == []
    assert not runner.has("n", "u1")


@pytest.mark.parametrize(
    "prefix", ["", "setsid "], ids=["in its session", "in a session of its own"]
)
def test_nothing_is_left_that_writes_into_a_removed_pod(runner, prefix):
    loop = "while :; do echo x > file; done"
    wanted = pod(shell(f"{prefix}sh -c '{loop}' & echo $!; exit 0"), policy="Never")
    finish(lambda: runner.step(wanted, "n", STAND_IN)[0].over())
    writer = int(b"".join(runner.logs(wanted, "n", "", previous=False, follow=False)))
    finish(lambda: runner.stop("n", "u1", kill_at=time.time() + 60))
    runner.remove("n", "u1")
    assert runner.uids("n") == []
    assert gone(writer)


def test_a_folder_that_is_not_there_is_named(runner):
    with pytest.raises(BackendError, match="container 'c' of pod ns/p: /no/where: No such file"):
        runner.step(pod(shell("true", workingDir="/no/where")), "n", STAND_IN)


def test_a_followed_log_ends_with_the_process(runner, tmp_path):
    wanted = pod(
        shell(f"echo one; while ! test -e {tmp_path}/go; do sleep 0.02; done; echo two"),
        policy="Never",
    )
    runner.step(wanted, "n", STAND_IN)
    chunks = runner.logs(wanted, "n", "", previous=False, follow=True)
    assert finish(lambda: next(chunks)) == b"one\n"
    threading.Timer(0.2, (tmp_path / "go").touch).start()
    assert b"".join(chunks) == b"two\n"


def test_a_long_log_is_trimmed_while_it_is_written_and_followed(runner, tmp_path, monkeypatch):
    monkeypatch.setattr("tensorfusion.hypervisor.containers.LOG_BYTES", 1000)
    go = tmp_path / "go"
    script = f"seq 1 1000; while ! test -e {go}; do sleep 0.02; done; echo last"
    wanted = pod(shell(script), policy="Never")
    runner.step(wanted, "n", STAND_IN)
    chunks = runner.logs(wanted, "n", "", previous=False, follow=True)
    seen = b""
    while not seen.endswith(b"\n1000\n"):
        seen += next(chunks)
    runner.trim_logs()
    kept = b"".join(runner.logs(wanted, "n", "", previous=False, follow=False))
    assert 400 < len(kept) <= 500
    assert kept.endswith(b"\n999\n1000\n")
    assert kept[:1].isdigit()
    assert [next(chunks), next(chunks)] == [b"", b""]
    go.touch()
    assert b"".join(chunks) == b"last\n"
    assert b"".join(runner.logs(wanted, "n", "", previous=False, follow=False)) == kept + b"last\n"


def test_logs_that_are_not_there_are_named(runner):
    wanted = pod(shell("true"), shell("true", "d"))
    runner.step(wanted, "n", STAND_IN)
    with pytest.raises(BadRequest, match=r"choose one of: \[c d\]"):
        runner.logs(wanted, "n", "", previous=False, follow=False)
    with pytest.raises(NotFound, match="container e is not valid"):
        runner.logs(wanted, "n", "e", previous=False, follow=False)
    with pytest.raises(BadRequest, match="previous terminated container"):
        runner.logs(wanted, "n", "c", previous=True, follow=False)


def test_path_lists_are_added_to():
    base = {"LD_PRELOAD": "/a.so", "LD_LIBRARY_PATH": "/x:/y", "A": "1"}
    added = {"LD_PRELOAD": "/b.so", "A": "2"}
    found = process_environment(base, added)
    assert found == {"LD_PRELOAD": "/b.so:/a.so", "LD_LIBRARY_PATH": "/x:/y", "A": "2"}
