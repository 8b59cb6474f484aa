"""A real etcd and kube-apiserver on loopback, as the store contract runs against them."""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import time
from pathlib import Path

import msgspec
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tensorfusion.api.crd import crd
from tensorfusion.api.registry import CUSTOM_RESOURCES
from tensorfusion.errors import ApiError
from tensorfusion.kube import HttpStore

START_SECONDS = 120.0


def free_port() -> int:
    """Return a port of loopback that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class KubeApiServer:
    """etcd and kube-apiserver in a folder; `start` returns when the server is ready.

    Attributes:
        kubeconfig: File for kubectl and `tensorfusion.kube`; the user is in system:masters.
    """

    def __init__(self, binaries: Path, folder: Path) -> None:
        self.folder = folder
        self.kubeconfig = folder / "kubeconfig"
        self.start_seconds = 0.0
        self._binaries = binaries
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start both servers."""
        started = time.monotonic()
        etcd_port, peer_port, port = free_port(), free_port(), free_port()
        client_url, peer_url = f"http://127.0.0.1:{etcd_port}", f"http://127.0.0.1:{peer_port}"
        self._run(
            "etcd",
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={client_url}",
            f"--advertise-client-urls={client_url}",
            f"--listen-peer-urls={peer_url}",
            f"--initial-advertise-peer-urls={peer_url}",
            f"--initial-cluster=default={peer_url}",
            "--unsafe-no-fsync",
            "--log-level=warn",
        )
        token = secrets.token_hex(16)
        (self.folder / "tokens.csv").write_text(f'{token},admin,admin,"system:masters"\n')
        self._write_service_account_keys()
        self._run(
            "kube-apiserver",
            f"--etcd-servers={client_url}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            "--endpoint-reconciler-type=none",
            f"--secure-port={port}",
            f"--cert-dir={self.folder / 'certs'}",
            f"--token-auth-file={self.folder / 'tokens.csv'}",
            f"--service-account-key-file={self.folder / 'sa.pub'}",
            f"--service-account-signing-key-file={self.folder / 'sa.key'}",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--service-cluster-ip-range=10.0.0.0/24",
            "--authorization-mode=RBAC",
            # No controller manager runs here, so no service account exists to mount.
            "--disable-admission-plugins=ServiceAccount,TaintNodesByCondition",
        )
        self._write_kubeconfig(port, token)
        self._wait_ready(port, token)
        self.start_seconds = time.monotonic() - started

    def stop(self) -> None:
        """End both servers by their process id."""
        for process in reversed(self._processes):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGTERM)
        for process in reversed(self._processes):
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)

    def _run(self, name: str, *arguments: str) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [str(self._binaries / name), *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
            )
        self._processes.append(process)

    def _write_service_account_keys(self) -> None:
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        (self.folder / "sa.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.TraditionalOpenSSL,
                serialization.NoEncryption(),
            )
        )
        (self.folder / "sa.pub").write_bytes(
            key.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )

    def _write_kubeconfig(self, port: int, token: str) -> None:
        cluster = {
            "server": f"https://127.0.0.1:{port}",
            "certificate-authority": str(self.folder / "certs" / "apiserver.crt"),
        }
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "admin", "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
            "current-context": "test",
        }
        self.kubeconfig.write_text(yaml.safe_dump(config))
        self.kubeconfig.chmod(0o600)

    def _wait_ready(self, port: int, token: str) -> None:
        import http.client
        import ssl

        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            for process in self._processes:
                if process.poll() is not None:
                    raise RuntimeError(f"a server ended at once; see the logs in {self.folder}")
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection = http.client.HTTPSConnection(
                    "127.0.0.1", port, context=context, timeout=5
                )
                connection.request("GET", "/readyz", headers={"Authorization": f"Bearer {token}"})
                ready = connection.getresponse().status == 200
                connection.close()
                if ready:
                    return
            time.sleep(0.1)
        raise TimeoutError(f"kube-apiserver was not ready after {START_SECONDS} s")


def install_crds(store: HttpStore) -> list[str]:
    """Install the generated CRDs strictly, wait until they are served; return the warnings."""
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    warnings: list[str] = []
    for resource in CUSTOM_RESOURCES:
        response = store.transport.request(
            "POST",
            path,
            query={"fieldValidation": "Strict"},
            body=msgspec.json.encode(crd(resource)),
        )
        warnings += response.headers.getlist("Warning")
    deadline = time.monotonic() + 30
    for resource in CUSTOM_RESOURCES:
        while True:
            try:
                store.list(resource)
                break
            except ApiError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
    return warnings
