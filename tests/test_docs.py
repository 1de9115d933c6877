"""What the documentation says of the code, compared with the code."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import re
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import nbllm
from docs import tables
from nbllm import diagnosis, frames, schema, tagging
from tests.servers import RawServer, refused_port

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LOG_PAGE = ROOT / "docs" / "log.md"


@pytest.mark.parametrize("name", tables.PAGES)
def test_the_tables_that_the_code_writes_are_those_of_the_code(name: str) -> None:
    assert (tables.FOLDER / name).read_text() == tables.page(name), "run: python -m docs.tables"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_function_that_a_page_names_is_there(page: Path) -> None:
    for name in re.findall(r"\bnbllm\.((?:\w+\.)*\w+)\(", page.read_text()):
        *modules, function = name.split(".")
        assert callable(getattr(importlib.import_module(".".join(["nbllm", *modules])), function))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_links_to_is_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        file, _, heading = target.partition("#")
        linked = page.parent / file if file else page
        assert linked.exists(), f"{page.name} names {target}"
        if heading:
            assert heading in _anchors(linked.read_text()), f"{page.name} names {target}"


def _anchors(text: str) -> list[str]:
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


def test_every_reason_for_a_new_connection_is_on_the_page() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    table = page.partition("## Why a connection")[2].partition("### ")[0]
    assert set(re.findall(r"^\| `([a-z ]+?)(?:: …)?` \|", table, re.M)) == set(diagnosis._REASONS)


# -- docs/log.md: columns ----------------------------------------------------------------------------


def _columns(heading: str) -> list[dict[str, str]]:
    """The rows of the table of columns below a heading of docs/log.md."""
    _, found, section = LOG_PAGE.read_text().partition(f"\n### {heading}\n")
    assert found, f"docs/log.md has no heading {heading}"
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in re.split(r"\n#", section)[0].splitlines()
        if line.startswith("|")
    ]
    names, _, *rows = lines
    assert names == ["column", "type", "unit", "meaning", "null", "source"]
    return [dict(zip(names, row, strict=True)) for row in rows]


def _kinds(heading: str) -> dict[str, str]:
    rows = _columns(heading)
    for row in rows:
        assert all(row.values()), f"{heading}, {row['column']}: a cell is empty"
    kinds = {row["column"].strip("`"): row["type"] for row in rows}
    assert len(kinds) == len(rows), f"{heading}: a column stands there twice"
    return kinds


@pytest.mark.parametrize("table", schema.TABLES)
def test_the_page_has_every_column_of_a_table_and_no_other(table: str) -> None:
    assert list(_kinds(f"`{table}`").items()) == list(schema.TABLES[table].items())


@pytest.mark.parametrize(
    ("view", "table"), [("requests", "requests"), ("connections", "connections"), ("sessions", None)]
)
def test_the_page_has_every_column_of_a_frame_and_no_other(view: str, table: str | None) -> None:
    kinds = {**(_kinds(f"`{table}`") if table else {}), **_kinds(f"`nbllm.{view}()`")}
    kinds.pop("id", None)
    frame: pd.DataFrame = getattr(nbllm, view)(kernel="all")
    assert sorted(kinds) == sorted(frame.columns)
    if view == "sessions":
        assert list(kinds) == list(frame.columns)
    empty = frames.typed_frame(kinds, [], order=frame.columns)
    assert frame.dtypes.equals(empty.dtypes)


async def test_what_is_never_null_never_is(server: RawServer, log_path: Path) -> None:
    """In requests of every fate, ours and a foreign one."""
    nbllm.tag_session(nbllm.current_session(), "final")
    with refused_port() as port:
        for url in (*map(server.url, ("chat", "status-500", "html", "reset")), f"http://127.0.0.1:{port}"):
            for stream in (False, True):
                with contextlib.suppress(nbllm.APIError):
                    answer: Any = await nbllm.acompletion("m", "Hi", base_url=url, stream=stream)
                    assert not stream or [chunk async for chunk in answer]
    async with nbllm.shared_session().get(server.url()) as response:
        await response.read()
    under_way = asyncio.create_task(nbllm.acompletion("m", "Hi", base_url=server.url("hang")))
    await server.seen(lambda: server.requests[-1].path.startswith("/hang"))
    requests, connections, sessions = nbllm.requests(), nbllm.connections(), nbllm.sessions(kernel="all")
    under_way.cancel()
    await asyncio.wait([under_way])
    assert set(requests.status.dropna()) == {"ok", "error"}
    assert requests.status.isna().sum() == 1
    views = {"requests": requests, "connections": connections, "sessions": sessions}
    for name, frame in views.items():
        known = [*(_columns(f"`{name}`") if name != "sessions" else ()), *_columns(f"`nbllm.{name}()`")]
        _check_never_null(known, frame)
    with contextlib.closing(sqlite3.connect(log_path)) as connection:
        for table in schema.TABLES:
            frame = pd.DataFrame(
                connection.execute(f"SELECT * FROM {table}").fetchall(),
                columns=[row[1] for row in connection.execute(f"PRAGMA table_info({table})")],
            )
            assert len(frame), f"nothing in {table}"
            _check_never_null(_columns(f"`{table}`"), frame)


def _check_never_null(columns: list[dict[str, str]], frame: pd.DataFrame) -> None:
    for row in columns:
        if row["null"].startswith("never") and (name := row["column"].strip("`")) in frame:
            assert frame[name].notna().all(), name


def test_every_filter_is_on_the_page() -> None:
    filters = set(re.findall(r"^\| `(\w+)=", LOG_PAGE.read_text(), re.MULTILINE))
    assert filters == inspect.signature(nbllm.requests).parameters.keys()


@pytest.mark.parametrize(
    ("number", "names"),
    [(2, tagging.SESSION_FIELDS), (3, tagging.SESSION_METADATA), (5, tagging.SESSION_HEADERS)],
)
def test_the_spellings_of_a_session_are_on_the_page_in_their_order(number: int, names: tuple[str]) -> None:
    section = LOG_PAGE.read_text().partition("## Which session")[2]
    (line,) = re.findall(rf"^{number}\. (.+)$", section, re.MULTILINE)
    assert [word for word in re.findall(r"[\w-]+", line) if word in names] == list(names)


# -- the site ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site, made by the command that docs/conf.py names; its warnings are errors."""
    folder = tmp_path_factory.mktemp("site")
    command = ["-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs", ".", str(folder)]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return folder


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    reference = "".join(page.read_text() for page in (site / "docs" / "reference").glob("*.html"))
    missing = set(nbllm.__all__) - set(re.findall(r'id="nbllm\.(\w+)"', reference))
    assert not missing
    assert "<blockquote" not in reference, "code in a docstring comes after two colons"


def test_a_page_of_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    loads = re.compile(
        r"""<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)="(?:https?:)?//[^"]*|url\(["']?http"""
    )
    files = [*site.rglob("*.html"), *site.rglob("*.css")]
    assert len(files) > 30
    assert {file.name: found for file in files if (found := loads.findall(file.read_text()))} == {}
