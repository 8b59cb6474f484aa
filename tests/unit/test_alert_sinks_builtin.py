"""The sinks that come with the product; the webhook against a real server on loopback."""

import http.server
import json
import logging
import socket
import threading

import pytest

from tensorfusion.errors import ConfigError
from tensorfusion.spi.alerts import Alert, AlertSink, AlertState
from tensorfusion_plugins.alert_sinks.log import LogSink
from tensorfusion_plugins.alert_sinks.webhook import WebhookSettings, WebhookSink

SECRET = "Bearer s3cr3t"


def alert(**changes):
    fields = {
        "fingerprint": "f1",
        "rule": "TensorFusionX",
        "state": AlertState.FIRING,
        "severity": "warning",
        "labels": {"gpu_uuid": "gpu-0"},
        "summary": "Something is wrong.",
        "description": "gpu-0 has 1.",
        "value": 1.0,
        "starts": 1_700_000_000.0,
        "annotations": {"runbook": "docs/runbooks/X.md"},
    }
    return Alert(**{**fields, **changes})


RESOLVED = alert(fingerprint="f2", state=AlertState.RESOLVED, ends=1_700_000_060.0)


class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        length = int(self.headers["Content-Length"])
        self.server.requests.append((dict(self.headers), json.loads(self.rfile.read(length))))
        if self.server.answer is None:
            self.close_connection = True
            return
        self.send_response(self.server.answer)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture
def receiver(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    server.requests, server.answer = [], 200
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join(10)
    server.server_close()


def sink_for(url, **settings):
    sink = WebhookSink()
    sink.configure(WebhookSettings(webhook_url=url, **settings))
    return sink


def url_of(server):
    return f"http://127.0.0.1:{server.server_address[1]}/hook"


@pytest.mark.parametrize(
    ("answer", "delivered", "retry"),
    [
        (200, True, False),
        (204, True, False),
        (400, False, False),
        (404, False, False),
        (429, False, True),
        (500, False, True),
        (503, False, True),
        (None, False, True),
    ],
)
def test_answer_decides_what_becomes_of_the_batch(receiver, answer, delivered, retry):
    receiver.answer = answer
    results = sink_for(url_of(receiver)).send([alert(), RESOLVED])

    assert [(r.fingerprint, r.delivered, r.retry) for r in results] == [
        ("f1", delivered, retry),
        ("f2", delivered, retry),
    ]
    assert all(r.message for r in results) != delivered


def test_body_is_what_alertmanager_posts(receiver):
    sink_for(url_of(receiver), webhook_headers={"Authorization": SECRET}).send([alert(), RESOLVED])
    ((headers, body),) = receiver.requests

    assert headers["Authorization"] == SECRET
    assert headers["Content-Type"] == "application/json"
    assert body == {
        "version": "4",
        "receiver": "tensorfusion",
        "status": "firing",
        "alerts": [
            {
                "status": status,
                "labels": {
                    "alertname": "TensorFusionX",
                    "severity": "warning",
                    "gpu_uuid": "gpu-0",
                },
                "annotations": {
                    "summary": "Something is wrong.",
                    "description": "gpu-0 has 1.",
                    "runbook": "docs/runbooks/X.md",
                },
                "startsAt": "2023-11-14T22:13:20Z",
                "endsAt": ends,
                "fingerprint": fingerprint,
            }
            for status, ends, fingerprint in (
                ("firing", "0001-01-01T00:00:00Z", "f1"),
                ("resolved", "2023-11-14T22:14:20Z", "f2"),
            )
        ],
    }


def test_batch_without_a_firing_alert_is_resolved(receiver):
    sink_for(url_of(receiver)).send([RESOLVED])

    assert receiver.requests[0][1]["status"] == "resolved"


def test_refused_connection_is_retried(receiver):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (result,) = sink_for(f"http://127.0.0.1:{port}/").send([alert()])

    assert (result.delivered, result.retry) == (False, True)
    assert "refused" in result.message


def test_silent_receiver_is_retried(receiver):
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}/"
        (result,) = sink_for(url, webhook_timeout_seconds=0.05).send([alert()])

    assert (result.delivered, result.retry) == (False, True)
    assert "timed out" in result.message


def test_webhook_without_an_address_is_off():
    (result,) = WebhookSink().send([alert()])

    assert (result.delivered, result.message) == (True, "switched off")


@pytest.mark.parametrize("url", ["ftp://x/", "example.com/hook", "http://", "file:///etc/passwd"])
def test_address_must_be_a_url(url):
    with pytest.raises(ConfigError, match=r"^webhook_url: .* allowed: http://"):
        sink_for(url)


@pytest.mark.parametrize("value", [f"{SECRET}\r\nX: y", f"{SECRET}\n", f"{SECRET}é"])
def test_header_that_cannot_be_sent_is_refused_without_printing_it(value):
    with pytest.raises(ConfigError) as caught:
        sink_for("http://x/", webhook_headers={"Authorization": value})

    assert "Authorization" in str(caught.value)
    assert "s3cr3t" not in str(caught.value)


def test_headers_are_never_logged(receiver, caplog):
    receiver.answer = 500
    with caplog.at_level(logging.DEBUG):
        results = sink_for(url_of(receiver), webhook_headers={"Authorization": SECRET}).send(
            [alert()]
        )

    assert "s3cr3t" not in caplog.text
    assert all("s3cr3t" not in r.message for r in results)


def test_log_sink_writes_one_line_per_alert(caplog):
    with caplog.at_level(logging.INFO, "tensorfusion.alerts"):
        results = LogSink().send([alert(), RESOLVED])

    assert [(r.levelname, r.message, r.alert) for r in caplog.records] == [
        ("WARNING", "alert firing", "TensorFusionX"),
        ("INFO", "alert resolved", "TensorFusionX"),
    ]
    assert all(r.delivered for r in results)
    assert isinstance(LogSink(), AlertSink)
