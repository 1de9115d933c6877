"""A real PostgreSQL server for the tests, of the system's own package, with nothing of it left behind.

PostgreSQL refuses to run as root, so that root runs it as the user that the package made. It listens on a
loopback port only, asks everybody for a password, and doesn't care for power cuts.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import psycopg
import sqlalchemy as sa

USER = "nbllm"
PASSWORD = "planted/p@ss:w%rd?&"
"""Of every role here. Its characters mean something in a URL, and a test can look for it in what was said."""

OPTIONS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "shared_buffers": "16MB",
    "autovacuum": "off",
}


class Postgres:
    """A server with its data in a temporary folder; a context manager.

    Raises:
        FileNotFoundError: PostgreSQL's server is not installed.
    """

    def __init__(self) -> None:
        found = sorted(
            Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[4])
        )
        if not found:
            raise FileNotFoundError("PostgreSQL's server is not installed (Debian's package: postgresql)")
        self._programs = found[-1].parent
        self._owner: dict[str, Any] = {}
        if os.geteuid() == 0:
            self._owner = {"user": "postgres", "group": "postgres", "extra_groups": []}
        self._process: subprocess.Popen[bytes] | None = None
        self.port = _free_port()

    def __enter__(self) -> Postgres:
        self._folder = Path(tempfile.mkdtemp(prefix="nbllm-postgres-"))
        self._data = self._folder / "data"
        if self._owner:
            shutil.chown(self._folder, self._owner["user"], self._owner["group"])
        try:
            self._make()
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        shutil.rmtree(self._folder)

    def _make(self) -> None:
        password = self._folder / "password"
        password.write_text(PASSWORD)
        subprocess.run(
            [
                *(self._programs / "initdb", "--pgdata", self._data, "--no-sync", "--auth", "scram-sha-256"),
                *("--username", USER, "--pwfile", password, "--encoding", "UTF8", "--locale", "C.UTF-8"),
            ],
            cwd=self._folder,
            check=True,
            stdout=subprocess.DEVNULL,
            **self._owner,
        )

    # -- the server ------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the server, on the same port as before; nothing where it runs."""
        if self._process is not None:
            return
        # It ends with whoever started it, even where that is killed. (A change of the user would undo that.)
        dies_too = ["setpriv", "--pdeathsig", "INT"] if shutil.which("setpriv") else []
        options = [f"--{name}={value}" for name, value in (OPTIONS | {"port": str(self.port)}).items()]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*dies_too, self._programs / "postgres", "-D", self._data, *options],
                cwd=self._folder,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for pytest, whose fixtures then stop the server
                **self._owner,
            )
        deadline = time.monotonic() + 30
        while True:
            try:
                self._connect().close()
                return
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"PostgreSQL does not start: {self.said()}") from None
                time.sleep(0.02)

    def stop(self) -> None:
        """Stop the server at once, which ends all connections; nothing where it is stopped."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGCONT)
        self._process.send_signal(signal.SIGINT)  # "fast": transactions are rolled back, data kept
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(20)
        self._process = None

    @property
    def pid(self) -> int:
        """Of the server's first process, whose children the others are."""
        assert self._process is not None
        return self._process.pid

    def said(self) -> str:
        """What the server has written to its own log."""
        return (self._folder / "log").read_text(errors="replace")

    # -- databases and roles -----------------------------------------------------------------------

    def run(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run a statement as the superuser, and give its rows."""
        with self._connect(database) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def url(self, database: str, user: str = USER, password: str = PASSWORD) -> str:
        """A database's URL as SQLAlchemy takes it, with the password."""
        made = sa.URL.create("postgresql+psycopg", user, password, "127.0.0.1", self.port, database)
        return made.render_as_string(hide_password=False)

    def _connect(self, database: str = "postgres") -> psycopg.Connection[tuple[Any, ...]]:
        return psycopg.connect(
            host="127.0.0.1",
            port=self.port,
            user=USER,
            password=PASSWORD,
            dbname=database,
            autocommit=True,
            connect_timeout=5,
        )


def _free_port() -> int:
    """A free port below those that outgoing connections take: nobody gets it while the server is stopped."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
