"""Keys planted wherever one can stand, and looked for wherever nbllm writes; what may be read by whom."""

from __future__ import annotations

import json
import os
import stat
import urllib.parse
from pathlib import Path

import nbformat
import pytest
import sqlalchemy as sa
from nbclient import NotebookClient

import nbllm
from nbllm import log, rows
from tests.kernels import environment
from tests.postgres import Postgres
from tests.servers import Exchange, RawServer, completion, whole

# Of each place one. Those that begin with "own" have a form that no pattern knows.
KEYS = {
    "api_key": "own-key-of-no-known-form-1",
    "environment": "own-key-of-no-known-form-2",
    "header": "own-key-of-no-known-form-3",
    "parameter": "own-key-of-no-known-form-4",
    "prompt": "sk-planted-in-the-prompt-5",
    "bearer": "planted.bearer.token.6=",
    "answer": "sk-ant-planted-in-the-answer-7",
    "error": "AIzaPlantedInAnErrorMessage00000008",
    "model": "sk-planted-as-the-model-9",
    "address": "sk-planted-in-the-address-10",
    "query": "sk-planted-in-the-query-11",
    "user": "planted-as-password-12",
    "error header": "gsk_PlantedInAHeader00000013",
}
# What a server sends in headers that are not on the list.
HEADERS = {
    "Set-Cookie": "session=planted-cookie-21; Path=/",
    "Authorization": "Bearer planted-header-22",
    "OpenAI-Organization": "planted-organization-23",
    "X-Api-Key": "planted-header-24",
    "X-Forwarded-For": "planted-address-25",
    "Via": "planted-proxy-26",
    "ETag": "planted-etag-27",
    "X-User-Email": "planted@mail.example",
    "X-Ratelimit": "planted-28",
    "X-Request-Id-Of-Ann": "planted-29",
    "Not-Date": "planted-30",
}
KEPT = {
    "Date": "Sat, 21 Nov 2026 10:00:00 GMT",
    "Server": "raw",
    "X-Request-Id": "req_7",
    "X-RateLimit-Remaining-Tokens": "99",
    "anthropic-ratelimit-requests-limit": "50",
    "openai-processing-ms": "12",
    "x-litellm-call-id": f"call {KEYS['error header']}",
}


async def careless(x: Exchange) -> None:
    """A server that says again whatever it was told, and more."""
    said = completion(f"Your key is {KEYS['answer']}, and you said: {x.request.body.decode()}")
    headers = "".join(f"{name}: {value}\r\n" for name, value in (HEADERS | KEPT).items())
    await x.send(whole("200 OK", json.dumps(said).encode()).replace(b"\r\n", f"\r\n{headers}".encode(), 1))


async def refusing(x: Exchange) -> None:
    quoted = [KEYS["error"], *x.request.headers.values(), x.request.path]
    error = {"error": {"message": f"bad key: {quoted}", "type": KEYS["error"], "code": KEYS["error"]}}
    await x.send(whole("401 No", json.dumps(error).encode(), X_Request_Id=KEYS["error"]))


CELLS = [
    "%load_ext nbllm\nimport nbllm, os, warnings\nurl = os.environ['RAW_URL']",
    """nbllm.completion(
    "m", f"My key is {os.environ['IN_PROMPT']}, Bearer {os.environ['IN_BEARER']}",
    base_url=url + "/careless/v1",
    api_key=os.environ["AS_KEY"], extra_headers={"X-Api-Key": os.environ["IN_HEADER"]},
    extra_body={"aws_secret_access_key": os.environ["IN_PARAMETER"]}, user=os.environ["IN_PROMPT"],
).request""",
    """nbllm.completion(
    "m", os.environ["IN_PROMPT"], base_url=url + "/refusing/v1", api_key=os.environ["AS_KEY"]
)""",
    "nbllm.completion(os.environ['AS_MODEL'], 'Hi', base_url=url + '/refusing/v1', stream=True)",
    "nbllm.completion('m', 'Hi', base_url=f'{url}/refusing/{os.environ[\"IN_ADDRESS\"]}/v1')",
    """async with nbllm.shared_session().get(f"{url}/careless/x?key={os.environ['IN_QUERY']}") as answer:
    await answer.read()""",
    "nbllm.completion('m', 'Hi', base_url=f'http://ann:{os.environ[\"AS_USER\"]}@127.0.0.1:9/v1')",
    "%%llm gpt-4o --no-stream -s other\nMy key is {{os.environ['IN_PROMPT']}}",
    "%%llm gpt-4o --dry-run\nMy key is {{os.environ['IN_PROMPT']}}",
    "%nbllm",
    "%nbllm config",
    "%nbllm requests",
    "nbllm.sessions()",
    "nbllm.requests()",
    "from IPython.display import HTML\nHTML(nbllm.requests().to_html() + nbllm.connections().to_html())",
    "print(nbllm.requests().to_csv(), nbllm.requests().response_headers.tolist())",
    "nbllm.transcript()",
    "print(nbllm.transcript().markdown)",
    "nbllm.doctor()",
    "for end in ('har', 'jsonl', 'csv'): nbllm.export(f'all.{end}', content=True)",
    "nbllm.requests(search=os.environ['IN_PROMPT'], session='nobody')",
    "nbllm.configure(modell=os.environ['AS_KEY'])",
]


def test_no_key_stands_anywhere(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Nor does a header that is not on the list: in the log, the notebook, exports, and what is printed."""
    with RawServer(behaviours={"careless": careless, "refusing": refusing}) as server:
        env = environment(tmp_path) | {
            "RAW_URL": f"http://127.0.0.1:{server.port}",
            "OPENAI_API_KEY": KEYS["environment"],
            "OPENAI_BASE_URL": server.url(),
            "NBLLM_NUM_RETRIES": "0",
            "AS_KEY": KEYS["api_key"],
            "IN_HEADER": KEYS["header"],
            "IN_PARAMETER": KEYS["parameter"],
            "IN_PROMPT": KEYS["prompt"],
            "IN_BEARER": KEYS["bearer"],
            "AS_MODEL": KEYS["model"],
            "IN_ADDRESS": KEYS["address"],
            "IN_QUERY": KEYS["query"],
            "AS_USER": KEYS["user"],
        }
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in CELLS])
        client = NotebookClient(
            notebook, timeout=60, allow_errors=True, resources={"metadata": {"path": str(tmp_path)}}
        )
        client.execute(env=env)
        nbformat.write(notebook, tmp_path / "run.ipynb")
        seen = [key for key in KEYS.values() if any(key in str(vars(one)) for one in server.requests)]
    sent = {"api_key", "environment", "header", "parameter", "prompt", "bearer", "model", "address", "query"}
    assert set(seen) == {KEYS[name] for name in sent}  # they were really there
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert {"log.db", "run.ipynb", "all.har", "all.jsonl", "all.csv"} <= files.keys()
    printed = capfd.readouterr()
    files |= {"stdout": printed.out.encode(), "stderr": printed.err.encode()}
    assert b"My key is [key]" in files["log.db"]
    assert b"Bearer [key]" in files["all.har"]
    assert b"call [key]" in files["all.jsonl"]
    assert found_in(files, [*KEYS.values(), "planted", "own-key"]) == []


def found_in(files: dict[str, bytes], words: list[str]) -> list[tuple[str, str]]:
    """Which words stand in which files, also as a URL has them."""
    forms = {form for word in words for form in (word, urllib.parse.quote(word, safe=""))}
    return sorted((name, form) for name, data in files.items() for form in forms if form.encode() in data)


async def test_headers_are_kept_by_a_list(any_log: str, server: RawServer) -> None:
    server.behaviours["careless"] = careless
    await nbllm.acompletion(
        "m", "Hi", base_url=server.url("careless"), extra_headers={"X-Of-Mine": "planted-31"}
    )
    kept = json.loads(nbllm.requests().response_headers.iloc[0])
    assert kept == {name.lower(): value for name, value in KEPT.items()} | {
        "content-type": "application/json",
        "x-litellm-call-id": "call [key]",
    }
    assert b"planted-31" in str(server.requests[0].headers).encode()
    everything = log.read(
        lambda c: [
            str(c.execute(sa.text(f"SELECT * FROM {table}")).fetchall())
            for table in sa.inspect(c).get_table_names()
        ]
    )
    assert len(everything) >= 6
    assert "planted" not in "".join(everything).replace(KEYS["answer"], "")


@pytest.mark.parametrize(
    "name",
    [
        *("set-cookie", "SET-COOKIE", "cookie", "date2", "xdate", "x-date", "www-authenticate", "date\n", ""),
        *("x-my-ratelimit-key", "server-timing", "anthropic-organization-id", "location", "x-request-idx"),
    ],
)
def test_a_header_that_only_resembles_one_on_the_list(name: str) -> None:
    assert rows._kept_headers({name: "planted"}) is None


async def test_content_off_switches_off_content_alone(any_log: str, server: RawServer) -> None:
    server.behaviours["careless"] = careless
    nbllm.configure(content=False)
    answers = [
        await nbllm.acompletion("m", "planted words", base_url=server.url("careless"), temperature=0.5)
    ]
    stream = await nbllm.acompletion("m", "planted words", base_url=server.url("echo"), stream=True)
    assert (
        "".join([chunk.choices[0].delta.content or "" if chunk.choices else "" async for chunk in stream])
        == "planted words"
    )
    nbllm.configure(content=True)
    answers.append(
        await nbllm.acompletion("m", "planted words", base_url=server.url("careless"), temperature=0.5)
    )
    off, _, on = nbllm.requests().to_dict("records")
    told = (
        "status",
        "http_status",
        "input_tokens",
        "output_tokens",
        "params",
        "response_headers",
        "response_id",
    )
    assert [off[name] for name in told] == [on[name] for name in told]
    assert off["input_tokens"] == 11
    kept = log.read(lambda c: c.execute(sa.text("SELECT id, request FROM contents")).fetchall())
    assert len(kept) == 1
    assert "planted words" in kept[0][1]
    assert all(answer.text for answer in answers)


async def test_nothing_said_is_in_the_file_where_content_is_off(server: RawServer, log_path: Path) -> None:
    nbllm.configure(content=False)
    await nbllm.acompletion("m", "planted words", base_url=server.url("echo"))
    with pytest.raises(nbllm.APIError):
        await nbllm.acompletion("m", "planted words", base_url=server.url("status-400"))
    nbllm.transcript()
    nbllm.export(log_path.parent / "all.har", content=True)
    log.close()
    files = {path.name: path.read_bytes() for path in log_path.parent.iterdir()}
    assert found_in(files, ["planted"]) == []


async def test_only_the_owner_may_read_it(server: RawServer, tmp_path: Path) -> None:
    """Whatever the umask, and beside the database too."""
    before = os.umask(0)
    try:
        path = tmp_path / "new" / "folder" / "log.db"
        nbllm.configure(log=path)
        await nbllm.acompletion("m", "Hi", base_url=server.url())
        nbllm.tag_session(nbllm.sessions().session_id.iloc[0], "x")
        nbllm.prune("1d")
        nbllm.export(path.parent / "all.har")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    modes = {one.name: stat.S_IMODE(one.stat().st_mode) for one in path.parent.iterdir()}
    assert {"log.db", "all.har"} <= modes.keys()
    assert set(modes.values()) == {0o600}, modes


async def test_a_key_that_is_known_later_is_masked_in_views_too(
    any_log: str, server: RawServer, tmp_path: Path
) -> None:
    """The log may hold what was no key to anybody then: an export masks it."""
    await nbllm.acompletion("m", "is own-key-41 one?", base_url=server.url("echo"))
    await nbllm.acompletion("m", "Hi", base_url=server.url(), api_key="own-key-41")
    path = nbllm.export(tmp_path / "all.jsonl", content=True)
    assert "own-key-41" not in path.read_text()
    assert "own-key-41" not in str(nbllm.transcript())


def test_an_error_of_the_database_names_no_value(postgres: Postgres, postgres_url: str) -> None:
    """As of a search for a key, in the statement that failed."""
    nbllm.configure(log=postgres_url)
    assert nbllm.requests(search="sk-planted-in-a-search").empty
    database = sa.make_url(postgres_url).database or ""
    postgres.run("DROP TABLE nbllm.contents", database)
    with pytest.raises(nbllm.UsageProblem, match="contents") as raised:
        nbllm.requests(search="sk-planted-in-a-search")
    assert "planted" not in str(raised.value)
