"""The doctor: what it finds with real servers, ports, certificates, logs and connections."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import socket
import sqlite3
import ssl
import subprocess
import sys
import tempfile
import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

import nbllm
from nbllm import diagnosis, frames, log, loops, protocol, reachability, tracing, transport
from nbllm.diagnosis import Check, Diagnosis, adoctor, doctor
from nbllm.servers.demo import DemoServer
from tests.rows import connection_rows, request_rows
from tests.servers import RawServer, full_backlog, refused_port

KEY = "a-key.that/nobody+may=see"


def named(found: Diagnosis, name: str) -> list[Check]:
    return [check for check in found.checks if check.name == name]


def one(found: Diagnosis, name: str) -> Check:
    (check,) = named(found, name)
    return check


def remedy_of(check: Check) -> str:
    assert check.remedy is not None
    return check.remedy


def shown(found: Diagnosis) -> str:
    return "\n".join([str(found), repr(found), *found._repr_mimebundle_().values()])


# -- the whole -------------------------------------------------------------------------------------


async def test_a_fresh_kernel_is_well() -> None:
    found = await adoctor()
    assert found.ok
    assert [check.name for check in found.checks] == ["versions", "keys", "log", "connections", "settings"]
    assert one(found, "connections").message == "no request of this kernel has had a connection yet"


def test_the_synchronous_form_finds_the_same() -> None:
    def without_sizes(found: Diagnosis) -> list[tuple[str, str]]:
        return [(check.name, check.status) for check in found.checks]

    assert without_sizes(doctor()) == without_sizes(loops.run_sync(adoctor()))
    assert inspect.signature(doctor).parameters == inspect.signature(adoctor).parameters


async def test_it_sends_nothing_and_leaves_no_row(server: RawServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", server.url())
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert (await adoctor()).ok
    await server.seen(lambda: len(server.connections) == 1)
    await server.all_closed()
    assert [(c.bytes_in, c.requests) for c in server.connections] == [(0, 0)]
    assert request_rows() == connection_rows() == []
    assert tracing.running() == tracing.connections() == []


async def test_a_check_that_fails_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> Any:
        raise RuntimeError(f"no frames \x1b[2J {KEY}")

    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(frames, "requests", broken)
    monkeypatch.setattr(transport, "ssl_context", broken)
    found = await adoctor()
    assert not found.ok
    for name in ("connections", "settings", "endpoint openai"):
        check = one(found, name)
        assert check.status == "problem"
        assert "RuntimeError: no frames" in check.message
    assert one(found, "log").status == "ok"
    assert KEY not in shown(found)
    assert "\x1b" not in shown(found)


async def test_versions_are_those_that_are_installed() -> None:
    import aiohttp
    import pandas as pd

    message = one(await adoctor(), "versions").message
    for part in (f"Python {sys.version.split()[0]}", f"nbllm {nbllm.__version__}"):
        assert part in message
    for part in (f"aiohttp {aiohttp.__version__}", f"pandas {pd.__version__}", "nest-asyncio2 ", "IPython "):
        assert part in message


@pytest.mark.parametrize("repaired", [False, True])
def test_the_archived_nest_asyncio_is_noted(repaired: bool) -> None:
    script = """
        import warnings; warnings.simplefilter("ignore")
        import asyncio, sys, nest_asyncio
        from nbllm import diagnosis, loops
        loop = asyncio.new_event_loop()
        nest_asyncio.apply(loop)
        async def main():
            if sys.argv[1] == "True":
                loops.set_home(loop, always_runs=True)
            return await diagnosis.adoctor()
        print([c.message for c in loop.run_until_complete(main()).checks if c.name == "nest_asyncio"])
        """
    found = run_script(script, str(repaired))
    assert ("can lose queued cells" in found) is not repaired
    assert ("does no harm" in found) is repaired


def run_script(script: str, *arguments: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **env},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# -- keys ------------------------------------------------------------------------------------------


async def test_without_keys_the_remedy_sets_one() -> None:
    check = one(await adoctor(), "keys")
    assert check.status == "note"
    assert "demo model" in check.message
    assert "%nbllm key openai" in remedy_of(check)


async def test_a_key_is_told_by_its_variable_alone(
    server: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_API_KEY", KEY)
    monkeypatch.setenv("GEMINI_API_BASE", server.url())
    monkeypatch.setenv("AZURE_AD_TOKEN", f"{KEY}2")
    found = await adoctor()
    assert one(found, "keys") == Check(
        "keys", "ok", "set for azure (AZURE_AD_TOKEN), gemini (GOOGLE_API_KEY)"
    )
    assert KEY[:8] not in shown(found)


@pytest.mark.parametrize("address", [KEY, f"ftp://{KEY}/v1", f"https://{KEY}@localhost/v1"])
async def test_a_key_in_the_wrong_variable_is_not_shown(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", address)
    found = await adoctor()
    check = one(found, "endpoint openai")
    assert check.status == "problem"
    assert "OPENAI_BASE_URL" in remedy_of(check)
    assert KEY not in shown(found)


async def test_a_key_that_cannot_be_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\nsecond-line")
    found = await adoctor()
    check = one(found, "endpoint openai")
    assert (check.status, check.remedy) == ("problem", "set OPENAI_API_KEY anew")
    assert "line break" in check.message
    assert "second-line" not in shown(found)


async def test_a_key_without_an_address_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_API_KEY", KEY)
    check = one(await adoctor(), "endpoint azure")
    assert check.status == "note"
    assert "AZURE_API_BASE" in remedy_of(check)


# -- endpoints -------------------------------------------------------------------------------------


async def reached(monkeypatch: pytest.MonkeyPatch, url: str) -> Check:
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    return one(await adoctor(), "endpoint openai")


async def test_a_server_that_listens(server: RawServer, monkeypatch: pytest.MonkeyPatch) -> None:
    check = await reached(monkeypatch, server.url())
    assert check.status == "ok"
    assert check.message.startswith(f"127.0.0.1:{server.port} was reached in ")
    assert check.message.endswith(" ms")


async def test_a_server_with_tls_that_is_trusted(
    tls_server: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await reached(monkeypatch, tls_server.url(host="localhost"))).status == "ok"
    await tls_server.seen(lambda: [c.tls for c in tls_server.connections] == [True])


async def test_a_port_that_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    with refused_port() as port:
        for host in ("127.0.0.1", "localhost"):
            check = await reached(monkeypatch, f"http://{host}:{port}/v1")
            assert check.status == "problem"
            assert check.message == f"{host}:{port} refuses connections: nothing listens there"
            assert "OPENAI_BASE_URL" in remedy_of(check)


@pytest.mark.parametrize("host", ["nowhere.invalid", "a" * 70 + ".invalid"])
async def test_a_name_that_does_not_resolve(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check = await reached(monkeypatch, f"https://{host}/v1")
    assert check.status == "problem"
    assert "can't be resolved" in check.message
    assert "OPENAI_BASE_URL" in remedy_of(check)


@contextlib.contextmanager
def silent_port() -> Iterator[int]:
    """A server that accepts and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


async def test_servers_that_never_answer_are_waited_for_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reachability, "CONNECT_SECONDS", 1.0)
    loop = asyncio.get_running_loop()
    with silent_port() as silent, full_backlog() as full:
        monkeypatch.setenv("OPENAI_BASE_URL", f"https://127.0.0.1:{silent}/v1")
        monkeypatch.setenv("MISTRAL_API_BASE", f"https://127.0.0.1:{silent}/v1")
        monkeypatch.setenv("VLLM_API_BASE", f"http://127.0.0.1:{full}/v1")
        started = loop.time()
        checks = await diagnosis._endpoints()
        assert 1.0 <= loop.time() - started < 2.5  # one after the other takes 3 s
    by_name = {check.name: check for check in checks}
    assert {check.status for check in checks} == {"problem"}
    assert "speaks no TLS within 1 s" in by_name["endpoint openai"].message
    assert "http://" in remedy_of(by_name["endpoint mistral"])
    assert "did not answer within 1 s" in by_name["endpoint vllm"].message


async def test_a_server_without_tls(demo: DemoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    check = await reached(monkeypatch, demo.url.replace("http:", "https:"))
    assert check.status == "problem"
    assert "TLS" in check.message
    assert "http://" in remedy_of(check)


async def test_a_certificate_of_an_unknown_authority(
    server_context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RawServer(ssl_context=server_context) as server:
        check = await reached(monkeypatch, server.url())
    assert check.status == "problem"
    assert "certificate that is not accepted" in check.message
    assert "SSL_CERT_FILE" in remedy_of(check)


@pytest.mark.usefixtures("trusted")
async def test_a_certificate_of_somebody_else(authority: trustme.CA, monkeypatch: pytest.MonkeyPatch) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("other.example").configure_cert(context)
    with RawServer(ssl_context=context) as server:
        check = await reached(monkeypatch, server.url(host="localhost"))
    assert check.status == "problem"
    assert "not valid for 'localhost'" in check.message


async def test_a_ca_bundle_that_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    check = await reached(monkeypatch, "https://localhost/v1")
    assert check.status == "problem"
    assert "SSL_CERT_FILE" in check.message


async def test_through_a_proxy_the_proxy_is_connected_to(
    server: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:password@127.0.0.1:{server.port}")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    found = await adoctor()
    check = one(found, "endpoint openai")
    assert check.status == "ok"
    assert check.message.startswith(f"127.0.0.1:{server.port} for api.openai.com:443 (the proxy of")
    assert "password" not in shown(found)
    await server.all_closed()
    assert [c.bytes_in for c in server.connections] == [0]


async def test_a_proxy_that_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with refused_port() as port:
        monkeypatch.setenv("HTTPS_PROXY", f"127.0.0.1:{port}")
        check = one(await adoctor(), "endpoint openai")
    assert check.status == "problem"
    assert "HTTPS_PROXY" in remedy_of(check)


async def test_a_proxy_that_is_no_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("HTTPS_PROXY", "http://me:pass/word@proxy:80")
    found = await adoctor()
    assert "is not like http://host:port" in one(found, "endpoint openai").message
    assert "pass" not in shown(found)


async def test_a_socks_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("ALL_PROXY", "socks5://me:password@127.0.0.1:1080")
    found = await adoctor()
    check = one(found, "endpoint openai")
    assert check.status == "problem"
    assert "SOCKS can't be used: name an HTTP proxy in HTTPS_PROXY" in check.message
    assert "password" not in shown(found)


async def test_the_proxy_of_the_requests_counts_and_not_that_of_now(
    server: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{server.port}")
    nbllm.shared_session()
    for now in ("http://other.example:1", ""):
        monkeypatch.setenv("HTTPS_PROXY", now)
        check = one(await adoctor(), "endpoint openai")
        assert check.status == "ok"
        assert check.message.startswith(f"127.0.0.1:{server.port} for api.openai.com:443")
        assert "have changed since" in check.message


@pytest.mark.parametrize("host", ["here.example", "127.0.0.1"])
async def test_the_doctor_and_requests_choose_the_same_proxy(
    host: str, server: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{server.port}")
    with refused_port() as port:
        url = f"http://{host}:{port}/chat/v1"
        check = await reached(monkeypatch, url)
        with contextlib.suppress(nbllm.APIError):
            await nbllm.acompletion("m", "Hi", base_url=url)
    assert (check.status == "ok") == bool(server.requests) == (host == "here.example")


# -- the log ---------------------------------------------------------------------------------------


async def test_a_log_that_is_well(log_path: Path) -> None:
    check = one(await adoctor(), "log")
    assert check.status == "ok"
    assert check.message == f"{log_path} · {log_path.stat().st_size / 1000:.0f} kB · writable"


async def test_looking_changes_nothing_in_the_log(log_path: Path) -> None:
    await nbllm.acompletion("demo/fast", "Hi")
    log.flush()
    before = log_path.read_bytes()
    assert one(await adoctor(), "log").status == "ok"
    assert log_path.read_bytes() == before


async def test_a_log_in_memory_by_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBLLM_LOG_PATH", "none")
    check = one(await adoctor(), "log")
    assert check.status == "note"
    assert "in memory" in check.message
    assert "NBLLM_LOG_PATH" in remedy_of(check)


async def unusable(log_path: Path, reason: str) -> None:
    check = one(await adoctor(), "log")
    assert check.status == "problem"
    assert check.message.startswith(f"in memory, because {log_path} can't be used: ")
    assert reason in check.message
    assert "nbllm.configure(log=PATH)" in remedy_of(check)


async def test_a_log_with_a_file_in_place_of_its_folder(log_path: Path) -> None:
    log_path.parent.write_text("in the way")
    await unusable(log_path, str(log_path.parent))


async def test_a_log_that_is_no_database(log_path: Path) -> None:
    """It is kept aside, which is said, and the new one is fine."""
    log_path.parent.mkdir()
    log_path.write_bytes(b"this is no database " * 1000)
    with pytest.warns(RuntimeWarning, match="kept as"):
        check = one(await adoctor(), "log")
    assert check.status == "ok"


async def test_a_log_of_a_newer_nbllm(log_path: Path) -> None:
    log.read(lambda connection: None)
    log.close()
    with contextlib.closing(sqlite3.connect(log_path)) as connection:
        connection.execute("INSERT INTO nbllm_migrations VALUES (99, 'future', 0)")
        connection.commit()
    await unusable(log_path, "not usable when this kernel first wrote")


async def test_a_log_that_was_removed(log_path: Path) -> None:
    """A new one is begun, which is said."""
    assert one(await adoctor(), "log").status == "ok"
    log_path.unlink()
    with pytest.warns(RuntimeWarning, match="was removed: a new one was begun"):
        assert one(await adoctor(), "log").status == "ok"
    assert log_path.exists()


async def test_a_log_that_is_locked(log_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "LOCKED_SECONDS", 0.1)
    assert one(await adoctor(), "log").status == "ok"
    with contextlib.closing(sqlite3.connect(log_path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        check = one(await adoctor(), "log")
    assert (check.status, check.message) == ("problem", f"{log_path} can't be written: database is locked")


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_log_in_a_read_only_place(when: str) -> None:
    """In a process of its own, because root may write anywhere and has to give up its rights."""
    script = """
        import os, sys, warnings; warnings.simplefilter("ignore")
        import pandas, sqlalchemy.dialects.sqlite
        from nbllm import diagnosis, settings
        settings.settings()
        if sys.argv[1] == "after":
            diagnosis.doctor()
        os.chmod(sys.argv[2], 0o555)
        if os.geteuid() == 0:
            os.setresuid(65534, 65534, 65534)
        (check,) = diagnosis._checked("log", diagnosis._log)
        print(check.status, check.message)
        """
    # Not pytest's own folder: nobody else may look into that one.
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/log.db"
        found = run_script(script, when, folder, NBLLM_LOG_PATH=path)
    if when == "before":
        assert found.startswith(f"problem in memory, because {path} can't be used: {folder} is no folder")
    else:
        assert found.startswith(f"problem {path} can't be written: ")


# -- connections and settings ----------------------------------------------------------------------


async def ask(server: RawServer, behaviour: str = "chat", **options: Any) -> Any:
    return await nbllm.acompletion("m", "Hi", base_url=server.url(behaviour), **options)


async def test_a_kernels_mix_of_connections(demo: DemoServer, server: RawServer) -> None:
    await asyncio.gather(*(nbllm.acompletion("demo/small", f"{n}", base_url=demo.url) for n in range(4)))
    for _ in range(3):
        await nbllm.acompletion("demo/small", "Hi", base_url=demo.url)
    await ask(server, "bye")
    await ask(server)
    with refused_port() as port, pytest.raises(nbllm.APIConnectionError):
        await nbllm.acompletion("m", "Hi", base_url=f"http://127.0.0.1:{port}/v1")
    found = await adoctor()
    rows = [row for row in request_rows() if row.connection_reused is not None]
    assert len(rows) == 9
    reused = sum(row.connection_reused for row in rows)
    assert one(found, "connections").message == f"{reused} of 9 requests went over one that was open"
    expected = Counter(row.connection_reason for row in rows if not row.connection_reused)
    assert expected["server asked to close"] == 1
    assert expected["first"] == 2
    told = {
        check.message.partition(": ")[2].partition(",")[0]: check for check in named(found, "new connection")
    }
    assert {reason: int(check.message.split()[0]) for reason, check in told.items()} == expected
    assert {reason: check.status for reason, check in told.items()} == {
        reason: "ok" if reason in ("first", "all busy") else "note" for reason in expected
    }
    assert "keep-alive" in remedy_of(told["server asked to close"])
    assert found.ok


async def test_how_long_a_lost_connection_had_idled(server: RawServer) -> None:
    nbllm.configure(keepalive_timeout=0.05)
    await ask(server)
    await asyncio.sleep(0.06)
    await ask(server)
    (lost,) = [c for c in named(await adoctor(), "new connection") if "idle expired" in c.message]
    assert lost.message == "1 request: idle expired, after 0.1 s or more"
    assert "keepalive_timeout" in remedy_of(lost)


async def test_a_reason_that_is_not_in_the_table(server: RawServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "_REASONS", {})
    await ask(server)
    assert "nbllm.connections()" in remedy_of(one(await adoctor(), "new connection"))


def test_every_reason_has_one_sentence_and_comes_from_the_protocol() -> None:
    source = inspect.getsource(protocol)
    for reason, remedy in diagnosis._REASONS.items():
        assert f'"{reason}' in source
        assert remedy


async def test_settings_that_make_requests_wait(server: RawServer) -> None:
    nbllm.configure(limit_per_host=1, keepalive_timeout=0)
    first = asyncio.ensure_future(ask(server, "gated"))
    await server.seen(lambda: len(server.requests) == 1)
    second = asyncio.ensure_future(ask(server, "gated"))
    while len(tracing.running()) < 2:
        await asyncio.sleep(0)
    server.open_gate()
    await asyncio.gather(first, second)
    kept, waited = named(await adoctor(), "settings")
    assert (kept.status, waited.status) == ("note", "note")
    assert "keepalive_timeout=0" in kept.message
    assert waited.message.startswith("1 request waited for a free connection, ")
    assert "limit_per_host=1" in waited.message


async def test_limits_that_make_requests_wait(server: RawServer) -> None:
    nbllm.configure(max_concurrency=1)
    first = asyncio.ensure_future(ask(server, "gated"))
    await server.seen(lambda: len(server.requests) == 1)
    second = asyncio.ensure_future(ask(server, "gated"))
    await asyncio.sleep(0)
    server.open_gate()
    await asyncio.gather(first, second)
    check = one(await adoctor(), "settings")
    assert check.message.startswith("1 request waited for their turn, ")
    assert "max_concurrency=1" in check.message


# -- how it is shown -------------------------------------------------------------------------------

SHOWN = Diagnosis(
    (
        Check("log", "ok", "fine"),
        Check("endpoint openai", "problem", "word " * 40, "do this | <b>and</b> `that` " * 8),
        Check("keys", "note", "none"),
    )
)


def test_the_text_is_aligned_and_wrapped() -> None:
    lines = str(SHOWN).splitlines()
    assert lines[0] == "✓ log              fine"
    assert lines[1].startswith("✗ endpoint openai  word word")
    assert lines[-1] == "· keys             none"
    assert max(map(len, lines)) <= 100
    assert all(line[:19].strip() in ("✓ log", "✗ endpoint openai", "· keys", "") for line in lines)
    assert sum("→ do this" in line for line in lines) == 1


def test_the_table_has_a_row_for_each_check_whatever_stands_in_it() -> None:
    bundle = SHOWN._repr_mimebundle_(include=None, exclude=None)
    assert bundle["text/plain"] == str(SHOWN)
    rows = bundle["text/markdown"].splitlines()
    assert len(rows) == 2 + len(SHOWN.checks)
    assert all(row.count("|") == 5 for row in rows)
    assert "<" not in bundle["text/markdown"]
    assert "`" not in bundle["text/markdown"]


def test_ok_is_without_problems() -> None:
    assert not SHOWN.ok
    assert Diagnosis((Check("a", "ok", "b"), Check("c", "note", "d"))).ok
    assert str(Diagnosis(())) == ""
