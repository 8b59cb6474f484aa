"""A reentrant lock that is handed over in the order in which it was asked for.

The interpreter's own locks go to whoever comes first, and a thread that releases and takes again
at once comes first nearly always: a busy controller would keep requests on the wire waiting.
"""

import threading
from collections import deque
from types import TracebackType


class FairLock:
    """Reentrant; released to the thread that has waited longest.

    Concurrency: any thread.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._owner = 0
        self._depth = 0
        self._waiting: deque[tuple[int, threading.Lock]] = deque()

    def __enter__(self) -> "FairLock":
        me = threading.get_ident()
        if self._owner == me:
            self._depth += 1
            return self
        with self._mutex:
            if not self._owner:
                self._owner, self._depth = me, 1
                return self
            gate = threading.Lock()
            gate.acquire()
            self._waiting.append((me, gate))
        # The owner opens the gate after it has made us the owner.
        gate.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._depth -= 1
        if self._depth:
            return
        with self._mutex:
            if self._waiting:
                self._owner, gate = self._waiting.popleft()
                self._depth = 1
                gate.release()
            else:
                self._owner = 0
