"""binder/: as repo2docker wants it, and its steps without Docker.

NBLLM_TEST_BINDER names the python of an environment with the packages of binder/requirements.txt. There
postBuild runs in a copy of the repository, and JupyterLab opens the notebooks from the badge's address.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from nbllm.servers.demo import DemoServer
from tests.kernels import environment
from tests.lab import ALL_DONE, IDLE, open_notebook, output, run_all, save, wait_for_text
from tests.servers import RawServer

ROOT = Path(__file__).parent.parent
BINDER = ROOT / "binder"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PYTHON = os.environ.get("NBLLM_TEST_BINDER", "")
LOOPBACK = {"127.0.0.1", "::1", "localhost"}

needs_binder = pytest.mark.skipif(
    not PYTHON, reason="NBLLM_TEST_BINDER names no python with binder's packages"
)

# Notes each address that a process of Python looks up or connects to.
WITNESS = """\
import sys
file = open({path!r}, "a", buffering=1)
def note(event, args):
    if event == "socket.getaddrinfo":
        print(args[0], file=file)
    elif event == "socket.connect" and isinstance(args[1], tuple):
        print(args[1][0], file=file)
sys.addaudithook(note)"""


# --- the files (https://repo2docker.readthedocs.io/en/latest/configuration/)


def pins() -> dict[str, Requirement]:
    lines = (BINDER / "requirements.txt").read_text().splitlines()
    found = [Requirement(line) for line in lines if not line.startswith("#")]
    return {canonicalize_name(each.name): each for each in found}


def test_the_python_is_one_of_ours_without_a_patch_level() -> None:
    (version,) = re.findall(r"\Apython-(3\.\d+)\n\Z", (BINDER / "runtime.txt").read_text())
    assert f"Programming Language :: Python :: {version}" in PROJECT["project"]["classifiers"]


def test_every_package_is_pinned_and_none_is_local() -> None:
    for each in pins().values():
        assert re.fullmatch(r"==[\w.]+", str(each.specifier)), each
        assert each.url is None
    assert "nbllm" not in pins()


def test_the_pins_fit_what_the_project_asks_for() -> None:
    project, extras = PROJECT["project"], PROJECT["project"]["optional-dependencies"]
    needed = [*project["dependencies"], *PROJECT["build-system"]["requires"], *extras["lab"], *extras["plot"]]
    assert {canonicalize_name(Requirement(each).name) for each in needed} <= {*pins(), "nbllm"}
    for each in map(Requirement, [*needed, *extras["litellm"], *extras["test"]]):
        if pinned := pins().get(canonicalize_name(each.name)):
            (pin,) = pinned.specifier
            assert Version(pin.version) in each.specifier, each


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_a_notebook_imports_is_among_them(path: Path) -> None:
    for module in imported(path) - {*sys.stdlib_module_names, "nbllm"}:
        assert canonicalize_name(module) in pins()


def imported(path: Path) -> set[str]:
    """The top-level modules that the cells of a notebook import."""
    found = set()
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type != "code" or re.match("%%(?!session)", cell.source):
            continue
        source = TransformerManager().transform_cell(re.sub("^%%.*", "", cell.source))
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                found |= {each.name.partition(".")[0] for each in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(str(node.module).partition(".")[0])
    assert "nbllm" in found
    return found


def test_post_build_is_a_script_that_stops_at_an_error() -> None:
    script = BINDER / "postBuild"
    assert os.access(script, os.X_OK)
    first, *others = script.read_text().splitlines()
    assert first == "#!/bin/bash"
    assert next(line for line in others if not line.startswith("#")).startswith("set -e")


def test_the_badge_opens_the_quickstart() -> None:
    found = re.findall(
        r"https://mybinder\.org/v2/gh/nbllm/nbllm/main\?urlpath=lab/tree/([^)\s]+)",
        (ROOT / "README.md").read_text(),
    )
    assert found == ["notebooks/01-quickstart.ipynb"]
    assert (ROOT / found[0]).is_file()


# --- the steps


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all that Binder's steps read and write is."""
    return tmp_path_factory.mktemp("binder")


@pytest.fixture(scope="module")
def witnessed(folder: Path) -> Path:
    """The addresses that JupyterLab and its kernels turned to, a line each."""
    return folder / "witnessed"


@pytest.fixture(scope="module")
def lab_environment(folder: Path) -> Iterator[dict[str, str]]:
    """No key, no setting but a demo server that is quicker than a person, a new home."""
    (folder / "home").mkdir()
    path = os.pathsep.join([str(Path(PYTHON).parent), os.environ["PATH"]])
    with DemoServer(pace=0.1) as demo:
        yield environment(folder, demo) | {"HOME": str(folder / "home"), "PATH": path}


@pytest.fixture(scope="module")
def repository(folder: Path, lab_environment: dict[str, str]) -> Path:
    """A copy of the repository, built."""
    copy = folder / "repository"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "__pycache__"))
    built = subprocess.run(
        ["./binder/postBuild"], cwd=copy, env=lab_environment, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    return copy


@pytest.fixture(scope="module")
def binder(folder: Path, witnessed: Path, lab_environment: dict[str, str], repository: Path) -> Iterator[str]:
    """JupyterLab's URL."""
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(WITNESS.format(path=str(witnessed)))
    command = ["jupyter", "lab", "--no-browser", "--allow-root", "--port=0", "--IdentityProvider.token=t"]
    # JupyterLab itself would ask for news and for a newer version.
    command += ["--LabApp.news_url=", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    env = lab_environment | {"PYTHONPATH": str(folder / "site")}
    with subprocess.Popen(
        [str(Path(PYTHON).with_name(command[0])), *command[1:]],
        cwd=repository,
        env=env,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stderr is not None
        found = next(
            filter(None, (re.search(r"http://127\.0\.0\.1:\d+", line) for line in process.stderr)), None
        )
        assert found, "JupyterLab has not started"
        drained = subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL)
        try:
            yield found[0]
        finally:
            process.terminate()
            process.wait(20)
            drained.wait(20)


@needs_binder
def test_the_package_brings_all_notebooks(repository: Path, lab_environment: dict[str, str]) -> None:
    source = "import os, nbllm; print(*os.listdir(nbllm.__path__[0] + '/notebooks'), sep='\\n')"
    done = subprocess.run(
        [PYTHON, "-c", source], cwd="/", env=lab_environment, capture_output=True, text=True, check=True
    )
    assert sorted(done.stdout.splitlines()) == [path.name for path in NOTEBOOKS]


@needs_binder
@pytest.mark.browser
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_shows_its_outputs_and_runs_without_a_key(
    page: Any, binder: str, repository: Path, witnessed: Path, path: Path
) -> None:
    foreign: list[str] = []

    def refuse(route: Any) -> None:
        foreign.append(route.request.url)
        route.abort()

    page.route(re.compile(r"^https?://(?!127\.0\.0\.1:)"), refuse)
    shown = page.request.get(f"{binder}/api/contents/notebooks/{path.name}?token=t").json()["content"][
        "cells"
    ]
    assert all(cell["metadata"]["trusted"] for cell in shown if cell["cell_type"] == "code")

    page.goto(f"{binder}/lab/tree/notebooks/{path.name}?token=t&reset")
    page.wait_for_selector(IDLE)
    run_all(page)
    indicator = ".jp-Notebook-ExecutionIndicator[data-status='{}']"
    page.wait_for_selector(indicator.format("busy"))
    page.wait_for_selector(indicator.format("idle"), timeout=120_000)

    saved = nbformat.read(save(page, repository / "notebooks", path.name), as_version=4)
    cells = {cell.id: cell for cell in saved.cells if cell.cell_type == "code"}
    outputs = [output for cell in cells.values() for output in cell.outputs]
    assert not [each for each in outputs if each.output_type == "error" or each.get("name") == "stderr"]
    before = [cell.id for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert [cells[name].execution_count for name in before] == list(range(1, len(before) + 1))
    assert not foreign
    asked = set(witnessed.read_text().split())
    assert asked
    assert asked <= LOOPBACK


# --- one's own key


@pytest.mark.browser
def test_a_key_that_is_typed_hidden_reaches_its_provider_and_nothing_else(
    page: Any, lab: str, lab_folder: Path
) -> None:
    key = "sk-a-visitors-own-0123456789"
    with RawServer() as provider:
        sources = [
            f"%load_ext nbllm\nimport os\nos.environ['OPENAI_BASE_URL'] = {provider.url()!r}",
            "%nbllm key openai",
            "%nbllm model gpt-4o-mini",
            "%%llm\nDescribe otters.",
            "%nbllm",
            "%nbllm config",
            "print(os.environ['NBLLM_LOG_PATH'])",
        ]
        open_notebook(page, lab, lab_folder, "key.ipynb", sources)
        run_all(page)
        hidden = page.locator(".jp-CodeCell").nth(1).locator(".jp-OutputArea input[type=password]")
        hidden.fill(key)
        hidden.press("Enter")
        page.wait_for_function(ALL_DONE)
        wait_for_text(page, 3, "Hello from the raw server")
    (request,) = provider.requests
    assert (request.json["model"], request.headers["authorization"]) == ("gpt-4o-mini", f"Bearer {key}")

    assert key not in page.content()
    assert key not in save(page, lab_folder, "key.ipynb").read_text()
    log = Path(output(page, 6).strip())
    assert b"gpt-4o-mini" in b"".join(file.read_bytes() for file in log.parent.glob("log.db*"))
    kept = [file for file in log.parent.rglob("*") if file.is_file()]  # JupyterLab's own files too
    assert not [file for file in kept if key.encode() in file.read_bytes()]
