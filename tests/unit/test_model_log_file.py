"""The decision log on disk."""

import os
import resource
import signal

import pytest

from tensorfusion.scheduling import log_file
from tensorfusion.scheduling.log_file import DecisionLogFile


def test_log_file_keeps_lines_and_is_private(tmp_path):
    path = tmp_path / "log"
    for text in (b"one\n", b"two\n"):
        log = DecisionLogFile(path, sync=True)
        log.append(text)
        log.close()
    log = DecisionLogFile(path)
    assert list(log.lines()) == [b"one\n", b"two\n"]
    assert path.stat().st_mode & 0o777 == 0o600
    log.close()


def test_log_file_torn_tail_can_be_cut_and_appended_to(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"one\ntw")
    log = DecisionLogFile(path)
    log.cut(2)
    log.append(b"three\n")
    assert list(log.lines()) == [b"one\n", b"three\n"]
    log.close()


def test_log_file_compaction_replaces_everything_and_goes_on(tmp_path):
    log = DecisionLogFile(tmp_path / "log")
    log.append(b"one\ntwo\n")
    log.compact(b"all\n")
    log.append(b"three\n")
    assert list(log.lines()) == [b"all\n", b"three\n"]
    assert sorted(os.listdir(tmp_path)) == ["log", "log.000001"]
    assert list(log.history()) == [b"one\n", b"two\n", b"all\n", b"three\n"]
    log.close()


def test_log_file_keeps_the_newest_segments(tmp_path, monkeypatch):
    monkeypatch.setattr(log_file, "KEPT_SEGMENTS", 2)
    log = DecisionLogFile(tmp_path / "log")
    for number in range(5):
        log.append(b"%d\n" % number)
        log.compact(b"all\n")
    assert sorted(os.listdir(tmp_path)) == ["log", "log.000004", "log.000005"]
    assert list(log.history()) == [b"all\n", b"3\n", b"all\n", b"4\n", b"all\n"]
    log.close()


def test_log_file_forgets_a_segment_that_a_crash_left(tmp_path):
    log = DecisionLogFile(tmp_path / "log")
    log.append(b"one\n")
    log.close()
    os.link(tmp_path / "log", tmp_path / "log.000001")
    log = DecisionLogFile(tmp_path / "log")
    assert list(log.history()) == [b"one\n"]
    log.close()


def test_log_file_takes_back_half_a_line_when_the_disk_is_full(tmp_path):
    log = DecisionLogFile(tmp_path / "log")
    log.append(b"one\n")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            log.append(b"x" * 200 + b"\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    log.append(b"two\n")
    assert list(log.lines()) == [b"one\n", b"two\n"]
    log.close()
