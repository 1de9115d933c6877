"""The dashboard's browser part alone: its files in Chromium, with a widget model that the test plays.

Owns `PanelPage`, and rows to feed it. What the panel shall show is told by `nbllm.overview`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

import pytest

from nbllm import overview

# What the panel uses of JupyterLab's themes (@jupyterlab/theme-light-extension, theme-dark-extension).
THEMES = {
    "light": """
        --jp-layout-color0: white; --jp-layout-color1: white; --jp-layout-color2: #eee;
        --jp-ui-font-color0: #000; --jp-ui-font-color1: rgba(0,0,0,.87); --jp-ui-font-color2: rgba(0,0,0,.54);
        --jp-border-color1: #bdbdbd; --jp-border-color2: #e0e0e0; --jp-brand-color1: #1976d2;
        --jp-error-color1: #d32f2f; --jp-warn-color1: #f57c00; --jp-success-color1: #388e3c;
    """,
    "dark": """
        --jp-layout-color0: #111; --jp-layout-color1: #212121; --jp-layout-color2: #424242;
        --jp-ui-font-color0: #fff; --jp-ui-font-color1: rgba(255,255,255,.87);
        --jp-ui-font-color2: rgba(255,255,255,.54);
        --jp-border-color1: #616161; --jp-border-color2: #424242; --jp-brand-color1: #2196f3;
        --jp-error-color1: #f44336; --jp-warn-color1: #ff9800; --jp-success-color1: #4caf50;
    """,
}

# What the panel keeps to itself and a test compares with Python's: page.inner.
INNER = (
    *("seconds", "money", "count", "plural", "size", "percent", "tokens", "clock"),
    *("TimeAxis", "startOf", "endOf", "statusOf"),
)

# A widget model as anywidget hands it out, and the module as anywidget loads it. page.lose() ends its kernel
# as Jupyter does: what is sent from then on throws.
SET_UP = """async ({ source, traits }) => {
    const hearers = new Set();
    const mourners = new Set();
    const hearersOf = { "msg:custom": hearers, "comm_live_update": mourners };
    const loaded = await import(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
    const model = {
        get: (name) => traits[name],
        set: (name, value) => { traits[name] = value; },
        save_changes: () => {},
        on: (name, hear) => hearersOf[name].add(hear),
        off: (name, hear) => hearersOf[name].delete(hear),
        send: (message) => {
            if (page.isGone) throw new Error("Cannot send");
            page.sent.push(message);
        },
    };
    const widget = loaded.default();
    const page = window.page = {
        inner: loaded,
        sent: [],
        hearers,
        mourners,
        isGone: false,
        lose: () => {
            page.isGone = true;
            mourners.forEach((hear) => hear());
        },
        feed: (message) => hearers.forEach((hear) => hear(message, [])),
        render: () => widget.render({ model, el: document.getElementById("output") }),
    };
    page.forget = widget.initialize({ model });
    page.dispose = page.render();
}"""


class PanelPage:
    """A page with one panel in it.

    Attributes:
        page: Playwright's page.
        requested: URLs that the page asked for.
        problems: What went wrong in the page: errors and rejected promises.
    """

    def __init__(
        self,
        page: Any,
        *,
        theme: str = "light",
        width: int = 800,
        is_wide: bool = False,
        scope: str = "this kernel",
    ) -> None:
        self.page = page
        self.requested: list[str] = []
        from nbllm.widgets import LiveView  # late: conftest has this module's fixture

        self.problems: list[str] = []
        page.on("request", lambda request: self.requested.append(request.url))
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.goto("about:blank")
        self.requested.clear()
        page.set_content(
            f"<!doctype html><html lang=en><head><style>{LiveView._css}</style></head>"
            f"<body data-jp-theme-light={json.dumps(theme == 'light')} "
            f"style='{THEMES[theme]} margin: 0; background: var(--jp-layout-color0)'>"
            "<div class=jp-Notebook><div class=jp-Cell><div class=jp-InputPrompt>[3]:</div></div>"
            f"<div id=output style='width: {width}px'></div></div></body></html>"
        )
        phases = {name: list(phase) for name, phase in overview.PHASES.items()}
        traits = {"phases": phases, "scope": scope, "is_wide": is_wide}
        source = f"{LiveView._esm}\nexport {{ {', '.join(INNER)} }};"
        page.evaluate(SET_UP, {"source": source, "traits": traits})

    def feed(self, message: dict[str, Any]) -> None:
        """The kernel says this."""
        self.page.evaluate("message => page.feed(message)", message)
        self.settle()

    def settle(self) -> None:
        """Wait until what was changed is drawn."""
        self.page.evaluate("() => new Promise(go => requestAnimationFrame(() => requestAnimationFrame(go)))")

    def sent(self, kind: str) -> list[dict[str, Any]]:
        """What the panel has sent of this kind."""
        messages: list[dict[str, Any]] = self.page.evaluate("page.sent")
        return [message for message in messages if message["kind"] == kind]

    def texts(self, selector: str) -> list[str]:
        """The texts of these elements that can be seen, from top to bottom."""
        script = """selector => [...document.querySelectorAll(selector)]
            .filter(e => e.checkVisibility() && e.getClientRects().length)
            .sort((a, b) => a.getBoundingClientRect().top - b.getBoundingClientRect().top)
            .map(e => e.textContent.trim())"""
        texts: list[str] = self.page.evaluate(script, selector)
        return texts


def rows_message(
    requests: Sequence[dict[str, Any]],
    connections: Sequence[dict[str, Any]] = (),
    *,
    now: float,
    reset: bool = True,
    left_out: int = 0,
) -> dict[str, Any]:
    """What the kernel sends of these rows, at this moment."""
    return {
        "kind": "rows",
        "reset": reset,
        "columns": list(overview.COLUMNS),
        "requests": [[row[name] for name in overview.COLUMNS] for row in requests],
        "connection_columns": list(overview.CONNECTIONS),
        "connections": [[row[name] for name in overview.CONNECTIONS] for row in connections],
        "left_out": left_out,
        "now": now,
    }


PROMPTS = (
    "Summarise the review in one sentence, and say what the customer wants",
    "Translate to German: the otter sleeps in the kelp",
    "Which of these tickets are about billing?",
    "Write a haiku about connection pools",
    "Extract name, date and total as JSON",
)
SESSIONS = ("review", "tickets", "default", "évaluation 2026", "a rather long name of a session")


def made_rows(count: int, *, seed: int = 0, start: float = 1_790_000_000.0) -> list[dict[str, Any]]:
    """Rows of requests as a kernel may have sent them, oldest first: failures, retries, unknowns, pauses."""
    random = Random(seed)
    at = start
    rows: list[dict[str, Any]] = []
    for number in range(count):
        at += random.choice((0.02, 0.3, 1.2)) if number % 12 else 45.0
        rows.append(_made_row(random, number, at))
    return rows


def _made_row(random: Random, number: int, at: float) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(overview.COLUMNS)
    model, provider = random.choice(
        (("gpt-4o", "openai"), ("claude-sonnet-4-5", "anthropic"), ("small", "demo"))
    )
    status = random.choice(("ok",) * 12 + ("error", "error", "cancelled", "incomplete"))
    is_new = number == 0 or random.random() < 0.12
    took = {
        "queued_ms": random.choice((None, None, None, 40.0)),
        "blocked_ms": random.choice((None, 0.4)),
        "send_ms": random.uniform(0.1, 2),
        "wait_ms": random.uniform(80, 600),
        "receive_ms": random.uniform(100, 2500),
    }
    if is_new:
        tcp, tls = random.uniform(10, 60), random.uniform(20, 90)
        took |= {"dns_ms": random.uniform(1, 20), "connect_ms": tcp + tls, "ssl_ms": tls}
    duration = sum(value or 0.0 for name, value in took.items() if name not in ("queued_ms", "ssl_ms"))
    row.update(
        took,
        request_id=f"r{number}",
        call_id=f"c{number}",
        attempt=random.choice((1,) * 9 + (2,)),
        session_id=SESSIONS[number // 7 % len(SESSIONS)],
        owner="ana",
        kernel_id="k1",
        cell_id=f"cell-{number // 3}",
        execution_count=random.choice((number // 3 + 1,) * 9 + (None,)),
        operation="chat",
        provider=provider,
        request_model=model,
        prompt=random.choice((*PROMPTS, None)),
        server_address=f"api.{provider}.example",
        server_port=443,
        stream=True,
        started_at=at,
        ended_at=at + duration / 1e3,
        duration_ms=duration,
        status=status,
        http_status=200,
        connection_id=f"k1-{number // 8}",
        connection_reused=not is_new,
        connection_reason="first" if is_new else None,
        bytes_sent=900,
        bytes_received=5000,
        chunks=40,
    )
    if status == "ok":
        row.update(
            ttft_ms=duration - (took["receive_ms"] or 0) + random.uniform(0, 90),
            finish_reason="stop",
            response_model=model,
            input_tokens=random.randint(10, 4000),
            output_tokens=random.randint(5, 900),
            cost_usd=random.choice((None, 0.0 if provider == "demo" else random.uniform(1e-5, 0.02))),
        )
    elif status == "error":
        code, kind = random.choice(
            ((429, "RateLimitError"), (500, "InternalServerError"), (None, "APIConnectionError"))
        )
        row.update(
            http_status=code, error_type=kind, error_message=f"the server said {code}", receive_ms=None
        )
        if code is None:
            row["wait_ms"] = None
    elif status == "incomplete":
        row.update(duration_ms=None, ended_at=None)
    return row


def running(row: dict[str, Any]) -> dict[str, Any]:
    """The same request before it ended."""
    ended = {name: None for name in row if name.endswith(("_ms", "_tokens"))}
    return {**row, **ended, "status": None, "ended_at": None, "cost_usd": None, "http_status": None}


@pytest.fixture
def open_panel(chromium: Any) -> Iterator[Callable[..., PanelPage]]:
    """Opens panels; they must not go wrong, nor ask for anything from outside."""
    opened: list[PanelPage] = []

    def open_panel(*, viewport: int = 1240, **options: Any) -> PanelPage:
        page = chromium.new_page(viewport={"width": viewport, "height": 640})
        opened.append(PanelPage(page, **options))
        return opened[-1]

    yield open_panel
    for panel in opened:
        assert panel.problems == []
        assert [url for url in panel.requested if not url.startswith("blob:")] == []
        panel.page.close()
