"""Containers of a pod as processes of this machine, which outlive the process that started them.

Everything about a container is in its folder, one set of files per attempt to run it: ``N.log``
has its output, ``N.pid`` the process that leads its group, ``N.exit`` its exit code. The leader is
a shell that writes the last two, so that nothing is lost while nobody watches. A process is known
by a variable of its environment and not by its number alone, which may be used again.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tensorfusion.clock import Clock

MARK = "TENSORFUSION_CONTAINER"
LEADER = """\
file=$1; shift
echo $$ > "$file.pid"
trap : TERM INT HUP
"$@"
echo $? > "$file.part"
mv "$file.part" "$file.exit"
kill -KILL 0
"""
"""The leader is deaf to what ends its program, which does not inherit that (POSIX, trap). With the
program ends everything that it started, as in a container."""
KILLED = 128 + signal.SIGKILL
"""Exit code of a leader that could not write one."""
BIRTH_SECONDS = 5.0
"""A leader has so long to say its process id."""
LOG_BYTES = 10 << 20
"""Longest log, as the kubelet keeps it by default (containerLogMaxSize)."""
PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Attempt:
    """One run of a container.

    Attributes:
        number: From 0; the number of restarts before it.
        started: Seconds since the epoch.
        finished: Likewise; 0 while it runs.
        exit_code: None while it runs.
    """

    number: int
    started: float
    finished: float = 0.0
    exit_code: int | None = None


class Container:
    """One container's folder and its processes, which are known by that folder.

    Concurrency: one thread starts and stops; reading and `trim` are free.
    """

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._folder = folder.resolve()
        self._clock = clock
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._newest = -1

    def last(self) -> Attempt | None:
        """Return the newest attempt; None before the first."""
        number = self._newest = sum(1 for _ in self._folder.glob("*.log")) - 1
        return None if number < 0 else self.attempt(number)

    def attempt(self, number: int) -> Attempt:
        """Read an attempt that was made."""
        self._children = {n: c for n, c in self._children.items() if c.poll() is None}
        started = _modified(self._file(number, "pid")) or _modified(self.log(number))
        alive = self._alive(number, started)
        try:
            exit_file = self._file(number, "exit")
            code = int(exit_file.read_text())
            return Attempt(number, started, _modified(exit_file), code)
        except (FileNotFoundError, ValueError):
            if alive:
                return Attempt(number, started)
        # It ended without a word: its end is not known better than by the last it wrote.
        return Attempt(number, started, max(started, _modified(self.log(number))), KILLED)

    def start(self, command: Sequence[str], environment: Mapping[str, str], folder: Path) -> None:
        """Start the next attempt.

        Raises:
            OSError: A file cannot be written, or ``folder``, the working directory, is not there.
        """
        last = self.last()
        number = 0 if last is None else last.number + 1
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            with self.log(number).open("ab") as output:
                child = subprocess.Popen(
                    ["/bin/sh", "-c", LEADER, "sh", str(self._folder / str(number)), *command],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env={**environment, MARK: self._mark(number)},
                    cwd=folder,
                    start_new_session=True,
                )
        except OSError:
            self.log(number).unlink(missing_ok=True)  # there was no such attempt
            raise
        self._children[number] = child

    def running_leader(self) -> int:
        """The process id of the newest attempt's leader; 0 while there is none that runs."""
        last = self.last()
        if last is None or last.exit_code is not None:
            return 0
        try:
            return self._leader(last.number)
        except ProcessLookupError:
            return 0

    def send(self, number: int) -> None:
        """Send a signal to the processes of the newest attempt."""
        last = self.last()
        if last is None:
            return
        try:
            os.killpg(self._leader(last.number), number)
        except (ProcessLookupError, PermissionError):
            return

    def kill_leftovers(self) -> bool:
        """Kill what attempts that ended have left; True while something was there to be killed.

        A leader tells the exit code a moment before it ends the rest, and what made a session of
        its own it does not reach at all.
        """
        found = _marked(f"{self._folder}/")
        for pid in found:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        return bool(found)

    def trim(self) -> None:
        """Keep the newer half of the newest log, if it has grown too long.

        Programs append to it meanwhile: what they write between the reading and the cut is lost, as
        little as that is. Any thread may call this, one at a time.
        """
        path = self.log(self._newest)
        if _size(path) <= LOG_BYTES:
            return
        with suppress(FileNotFoundError), path.open("r+b") as file:
            file.seek(-LOG_BYTES // 2, os.SEEK_END)
            file.readline()
            kept = file.read()
            file.seek(0)
            file.write(kept)
            file.truncate()

    def log(self, number: int) -> Path:
        """The output of an attempt."""
        return self._file(number, "log")

    def remove(self) -> None:
        """Remove every file; the processes must have ended, with what they left."""
        for child in self._children.values():
            with suppress(subprocess.TimeoutExpired):
                child.wait(BIRTH_SECONDS)
        self._children.clear()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _alive(self, number: int, started: float) -> bool:
        if number in self._children:
            return True
        pid = self._told_pid(number)
        if not pid:
            return self._clock.now() - started < BIRTH_SECONDS
        return _mark_of(pid) == self._mark(number)

    def _leader(self, number: int) -> int:
        """Its process id, as long as it is the process that was started.

        Raises:
            ProcessLookupError: It is not.
        """
        pid = self._told_pid(number)
        if not pid or _mark_of(pid) != self._mark(number):
            raise ProcessLookupError
        return pid

    def _told_pid(self, number: int) -> int:
        """The process id that the leader wrote; 0 before it has."""
        try:
            return int(self._file(number, "pid").read_text())
        except (FileNotFoundError, ValueError):
            return 0

    def _mark(self, number: int) -> str:
        return f"{self._folder}/{number}"

    def _file(self, number: int, kind: str) -> Path:
        return self._folder / f"{number}.{kind}"


def _mark_of(pid: int) -> str:
    """The mark in a process's environment; empty for a stranger, a zombie, or nobody."""
    try:
        entries = (PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return ""
    prefix = f"{MARK}=".encode()
    return next((os.fsdecode(e[len(prefix) :]) for e in entries if e.startswith(prefix)), "")


def _marked(prefix: str) -> list[int]:
    """Processes of this machine whose mark begins so."""
    pids = (int(path.name) for path in PROC.iterdir() if path.name.isdigit())
    return [pid for pid in pids if _mark_of(pid).startswith(prefix)]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
