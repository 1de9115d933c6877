"""Fixtures: every test has an environment, a log, settings and servers of its own."""

from __future__ import annotations

import dataclasses
import os
import ssl
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

# Whatever is written outside a test (a pool that closes with its loop) must not reach the user's own log.
os.environ["NBLLM_LOG_PATH"] = "none"

import nbllm
from nbllm import (
    conversation,
    costs,
    environment,
    keys,
    limits,
    log,
    loops,
    masking,
    notices,
    responding,
    settings,
    tagging,
    tracing,
)
from nbllm.providers import PROVIDERS
from nbllm.servers.demo import DemoServer
from tests.lab import browser, chromium, lab, lab_demo, lab_folder, page  # noqa: F401 (fixtures)
from tests.panel_page import open_panel  # noqa: F401 (a fixture)
from tests.postgres import Postgres
from tests.providers_server import ProvidersServer, key_of
from tests.servers import RawServer

_FOREIGN = (
    *(variable for name in PROVIDERS for variable in keys.key_variables(name)),
    *(variable for provider in PROVIDERS.values() for variable in provider.base_url_variables),
    "AZURE_API_VERSION", "OPENAI_API_VERSION", "NBLLM_DEMO_URL", "NBLLM_LOG_PATH", "NBLLM_LOG_URL",
    *(f"NBLLM_{field.name.upper()}" for field in dataclasses.fields(settings.Settings)),
    "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
    "http_proxy", "https_proxy", "all_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY",
    "NO_PROXY",
)  # fmt: skip


@pytest.fixture(autouse=True)
def isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No test sees the user's environment, or what another one has set, sent or logged."""
    for name in _FOREIGN:
        monkeypatch.setenv(name, "")  # what the test itself leaves behind is taken away after it
        monkeypatch.delenv(name)
    monkeypatch.setenv("NBLLM_NUM_RETRIES", "0")  # a test that wants retries says so
    monkeypatch.setenv("NBLLM_LOG_PATH", str(tmp_path / "log" / "log.db"))
    _reset()
    yield
    if loops._state.runner is not None:  # the loop of synchronous calls, and its pool
        loops._state.runner.close()
        loops._state.runner = None
    tracing._state.running.clear()  # what a failed test left behind
    log.close()
    _reset()


def _reset() -> None:
    environment.reset()
    notices.reset()
    settings.reset()
    limits._state.budgets.clear()
    masking._state.secrets = type(masking._state.secrets)()
    conversation._state.conversations.clear()
    responding._state.sessions.clear()
    costs._state.own.clear()
    tagging.set_session(None)
    tagging._state.last_cell = tagging.NO_CELL
    tagging.leave_cell()  # which a test without a loop of its own has left in everybody's context


@pytest.fixture
def log_path(tmp_path: Path) -> Path:
    """Where the log of this test is."""
    return tmp_path / "log" / "log.db"


@pytest.fixture
def server() -> Iterator[RawServer]:
    """A raw server that behaves as the path of the request says."""
    with RawServer() as running:
        yield running


@pytest.fixture
def providers(monkeypatch: pytest.MonkeyPatch) -> Iterator[ProvidersServer]:
    """All providers at one address, which the environment names with their keys."""
    with ProvidersServer() as server:
        for name, provider in PROVIDERS.items():
            if provider.base_url_variables:
                monkeypatch.setenv(provider.base_url_variables[0], server.base_url(name))
            for variable in keys.key_variables(name)[:1]:
                monkeypatch.setenv(variable, key_of(name))
        monkeypatch.setenv("AZURE_API_VERSION", "2024-10-21")
        yield server


@pytest.fixture
def demo() -> Iterator[DemoServer]:
    """A demo server without delays."""
    with DemoServer(pace=0) as running:
        yield running


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    """A real PostgreSQL server, of which every test has a database of its own."""
    try:
        server = Postgres()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    with server:
        yield server


@pytest.fixture
def postgres(postgres_server: Postgres) -> Iterator[Postgres]:
    """The server, which a test may stop: it runs again for the next one."""
    yield postgres_server
    postgres_server.start()


@pytest.fixture
def postgres_url(postgres: Postgres) -> Iterator[str]:
    """URL of a new, empty database."""
    name = f"test_{uuid.uuid4().hex}"
    postgres.run(f"CREATE DATABASE {name}")
    yield postgres.url(name)
    log.close()  # before its database is taken away
    postgres.start()
    postgres.run(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=["sqlite", "postgresql"])
def any_log(request: pytest.FixtureRequest, log_path: Path) -> str:
    """A log of each kind, in use and with content: what `nbllm.configure(log=…)` was given."""
    address = str(log_path) if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    nbllm.configure(log=address, content=True)
    return address


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """A certificate authority that nobody else trusts."""
    return trustme.CA()


@pytest.fixture
def server_context(authority: trustme.CA) -> ssl.SSLContext:
    """TLS for a server that is called localhost or 127.0.0.1."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    return context


@pytest.fixture
def trusted(authority: trustme.CA, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The environment names the test's authority as CA bundle."""
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))


@pytest.fixture
def tls_server(server_context: ssl.SSLContext, trusted: None) -> Iterator[RawServer]:
    """A raw server over TLS, trusted."""
    with RawServer(ssl_context=server_context) as running:
        yield running
