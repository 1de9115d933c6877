"""Starting the benchmark server and asking it, and what both sides must find in the environment."""

from __future__ import annotations

import http.client
import json
import os
import resource
import sqlite3
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

import trustme

ROOT = Path(__file__).resolve().parent.parent


def prepare_environment(folder: Path) -> None:
    """Set what this process and its children need before nbllm is imported: log, CA file, no proxies."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith("OPENAI_"):
            del os.environ[name]
    os.environ["NBLLM_LOG_PATH"] = str(folder / "log.sqlite")
    os.environ["SSL_CERT_FILE"] = str(folder / "ca.pem")
    _, most = resource.getrlimit(
        resource.RLIMIT_NOFILE
    )  # 1000 connections are more than the usual 1024 allow
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def client_context() -> ssl.SSLContext:
    """A context that trusts the benchmark's own authority."""
    return ssl.create_default_context(cafile=os.environ["SSL_CERT_FILE"])


def logged_requests() -> tuple[int, int]:
    """How many requests nbllm's log holds, and how many of them ended well."""
    path = Path(os.environ["NBLLM_LOG_PATH"])
    if not path.exists():
        return 0, 0
    with sqlite3.connect(path) as log:
        row = log.execute("SELECT count(*), count(*) FILTER (WHERE status = 'ok') FROM requests").fetchone()
    log.close()
    return row[0], row[1]


class Backend:
    """The server process; a context manager that ends it."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(folder / "ca.pem")
        leaf = authority.issue_cert("127.0.0.1")
        leaf.private_key_and_cert_chain_pem.write_to_path(folder / "server.pem")
        command = [sys.executable, "-m", "benchmarks.server", str(folder / "server.pem")]
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self.ports: dict[str, int] = json.loads(self._process.stdout.readline())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.communicate()  # ends its standard input, and so the server

    def base(self, scheme: str) -> str:
        return f"{scheme}://127.0.0.1:{self.ports[scheme]}"

    def stats(self) -> dict[str, int]:
        """Connections and requests since the start, connections open and requests held now."""
        return ask(self.ports["control"], "/stats")


def ask(control: int, path: str) -> dict[str, Any]:
    """One question to the server's control port."""
    connection = http.client.HTTPConnection("127.0.0.1", control)
    try:
        connection.request("GET", path)
        told: dict[str, Any] = json.loads(connection.getresponse().read())
        return told
    finally:
        connection.close()
