"""A real LiteLLM proxy with mock models, in a process and a virtual environment of its own.

Its many dependencies would disturb the project's, so NBLLM_TEST_LITELLM names the python of an environment
with `litellm[proxy]`. It has no database: a hook of ours in it, the witness, writes down what each request
brought, and its access log tells from which port each came.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.kernels import environment

KEY = "sk-proxy-7f3a9c51d2"
UPSTREAM_KEY = "sk-upstream-5e81b04c"
START_SECONDS = 90.0  # some 7 s on an idle machine

# What the models answer: https://docs.litellm.ai/docs/completion/mock_requests
ANSWER = "Hello from the proxy"
VECTOR = [0.5, -1.25, 3.0]
PICTURE = "https://pictures.test/cat.png"
MODELS = {
    "chat": ("openai/gpt-4o-mini", ANSWER),
    "gpt-4o": ("openai/gpt-4o", ANSWER),
    "claude": ("anthropic/claude-3-5-sonnet-20240620", ANSWER),
    "busy": ("openai/gpt-4o-mini", "litellm.RateLimitError"),
    "vectors": ("openai/text-embedding-3-small", VECTOR),
    "pictures": ("openai/dall-e-3", PICTURE),
}

# The proxy's own retries of a 429 would take seconds.
_CONFIG = {
    "model_list": [
        {
            "model_name": name,
            "litellm_params": {"model": model, "api_key": UPSTREAM_KEY, "mock_response": answer},
        }
        for name, (model, answer) in MODELS.items()
    ],
    "litellm_settings": {"callbacks": "witness.witness", "telemetry": False},
    "router_settings": {"num_retries": 0},
    "general_settings": {"master_key": KEY},
}

# Called before each answer, so that whoever has the answer finds the line written.
# https://docs.litellm.ai/docs/proxy/call_hooks
_WITNESS = """
import json
from pathlib import Path

from litellm.integrations.custom_logger import CustomLogger


class Witness(CustomLogger):
    async def async_pre_call_hook(self, user_api_key_dict, cache, data, call_type):
        request = data["proxy_server_request"]
        seen = {
            "call_type": call_type,
            "model": data.get("model"),
            "session_id": data.get("litellm_session_id"),
            "header": request["headers"].get("x-litellm-session-id"),
            "body": request["body"],
        }
        with (Path(__file__).parent / "seen.jsonl").open("a") as file:
            print(json.dumps(seen, default=str), file=file)


witness = Witness()
"""


class Proxy:
    """A running proxy. Used as a context manager.

    Args:
        python: The python of an environment with `litellm[proxy]`.
        folder: For its files.
    """

    def __init__(self, python: str, folder: Path) -> None:
        self._command = str(Path(python).with_name("litellm"))
        self._folder = folder
        self._seen = folder / "seen.jsonl"
        self._log = folder / "proxy.log"
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Proxy:
        (self._folder / "config.yaml").write_text(json.dumps(_CONFIG))  # JSON is YAML too
        (self._folder / "witness.py").write_text(_WITNESS)
        inherited = environment(self._folder).items()
        env = {name: value for name, value in inherited if not name.startswith(("LITELLM_", "DATABASE_"))}
        env |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "PYTHONUNBUFFERED": "1"}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [self._command, "--config", "config.yaml", "--host", "127.0.0.1", "--port", str(self.port)],
                cwd=self._folder,
                env=env,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def reset(self) -> None:
        """Forget what was seen."""
        self._seen.write_text("")
        os.truncate(self._log, 0)

    def seen(self) -> list[dict[str, Any]]:
        """What the proxy was asked since the last reset, in order.

        Keys: call_type, model, session_id (under which the proxy groups), header (`x-litellm-session-id`),
        body (with what the proxy has put into it).
        """
        return [json.loads(line) for line in self._seen.read_text().splitlines()]

    def client_ports(self) -> list[int]:
        """From which port each POST since the last reset came, in order: one port is one connection."""
        return [int(port) for port in re.findall(r"127\.0\.0\.1:(\d+) - \"POST ", self._log.read_text())]

    def _wait_until_ready(self) -> None:
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                direct.open(f"{self.url}/health/liveliness", timeout=5).close()
                return
            except OSError:
                gone = self._process.poll() is not None
                if gone or time.monotonic() > deadline:
                    what = "ended" if gone else f"is not ready after {START_SECONDS:g} s"
                    raise RuntimeError(
                        f"The LiteLLM proxy {what}:\n{self._log.read_text()[-4000:]}"
                    ) from None
            time.sleep(0.1)

    def _stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
