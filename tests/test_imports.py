"""What importing does, which is next to nothing, and what can be imported."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import nbllm

ROOT = Path(__file__).parent.parent
MODULES = sorted(module.name for module in pkgutil.walk_packages(nbllm.__path__, "nbllm."))

LATE = [
    "IPython.display", "anywidget", "genai_prices", "ipykernel", "ipywidgets", "jupyter_client", "litellm",
    "matplotlib", "nbclient", "nbformat", "nest_asyncio2", "numpy", "openai", "pandas", "platformdirs",
    "pydantic", "sqlalchemy", "traitlets",
    "dotenv", "jsonschema", "markdown_it", "tomllib",
    "nbllm.asking", "nbllm.diagnosis", "nbllm.endpoints", "nbllm.keys", "nbllm.responding",
    "nbllm.bridges", "nbllm.providers.anthropic", "nbllm.providers.gemini",
]  # fmt: skip


def probe(code: str, folder: Path) -> dict[str, Any]:
    """Run `code` in an empty folder and a fresh home, and tell what it left behind."""
    script = f"""
import json, os, sys, threading, signal, atexit
opened = []
sys.addaudithook(lambda event, args: opened.append(f"{{event}} {{args[0]}}") if event in
    ("socket.connect", "socket.bind", "socket.getaddrinfo", "subprocess.Popen", "os.system", "os.mkdir")
    or event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+") else None)
sys.dont_write_bytecode = True
hooks = sys.excepthook, sys.displayhook, signal.getsignal(signal.SIGINT)
{code}
assert hooks == (sys.excepthook, sys.displayhook, signal.getsignal(signal.SIGINT))
print(json.dumps(dict(modules=sorted(sys.modules), threads=threading.active_count(), opened=opened)))
"""
    env = {
        "HOME": str(folder),
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    result: dict[str, Any] = json.loads(run.stdout)
    return result


def test_importing_has_no_effect(tmp_path: Path) -> None:
    found = probe("import nbllm", tmp_path)
    assert found["threads"] == 1
    assert found["opened"] == []
    assert list(tmp_path.iterdir()) == []


def test_importing_is_light(tmp_path: Path) -> None:
    loaded = probe("import nbllm", tmp_path)["modules"]
    assert [name for name in LATE if name in loaded] == []


def test_all_is_what_can_be_imported_and_is_sorted() -> None:
    assert nbllm.__all__ == sorted(nbllm.__all__)
    assert len(set(nbllm.__all__)) == len(nbllm.__all__)
    for name in nbllm.__all__:
        assert getattr(nbllm, name) is not None
    public = {
        name
        for name, value in vars(nbllm).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith("nbllm.")
    }
    hooks = {"load_ipython_extension", "unload_ipython_extension"}
    assert public - hooks == set(nbllm.__all__)


def test_bridges_load_when_they_are_asked_for(tmp_path: Path) -> None:
    loaded = probe("import nbllm; nbllm.bridges.openai.install", tmp_path)["modules"]
    assert "nbllm.bridges.openai" in loaded
    assert not {"openai", "nbllm.bridges.litellm", "nbllm.bridges.opentelemetry"} & set(loaded)
    assert "bridges" in dir(nbllm)
    for name in nbllm.bridges.__all__:
        assert name in dir(nbllm.bridges)
        assert getattr(nbllm.bridges, name) is importlib.import_module(f"nbllm.bridges.{name}")
    with pytest.raises(AttributeError, match="no attribute 'opnai'"):
        nbllm.bridges.opnai  # noqa: B018


def test_no_module_bears_the_name_of_something_public() -> None:
    """`import nbllm.sessions` would put the module where the function was."""
    for name in MODULES:
        importlib.import_module(name)
    assert not {name.split(".")[1] for name in MODULES} & set(nbllm.__all__)
    planned = {
        "sessions",
        "requests",
        "connections",
        "session",
        "dashboard",
        "gateway",
        "responses",
        "completion",
    }
    assert not {name.split(".")[1] for name in MODULES} & planned


def test_every_public_thing_has_a_docstring() -> None:
    for name in nbllm.__all__:
        assert (getattr(nbllm, name).__doc__ or "").strip(), name


@pytest.mark.parametrize("name", MODULES)
def test_every_module_says_what_it_is_for(name: str) -> None:
    assert len((importlib.import_module(name).__doc__ or "").strip()) > 20


def test_the_package_is_typed() -> None:
    assert (Path(nbllm.__file__).parent / "py.typed").exists()
