"""The waterfall: what is drawn where, read from the axes; and the files that come of it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import nbllm
from nbllm import overview, pictures
from nbllm.overview import PHASES, Overview
from tests.servers import RawServer

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("agg")

from matplotlib import pyplot  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.colors import to_hex  # noqa: E402


@pytest.fixture(autouse=True)
def closed() -> Any:
    yield
    pyplot.close("all")


async def ask(server: RawServer, behaviour: str = "chat", model: str = "m", **options: Any) -> Any:
    return await nbllm.acompletion(f"openai/{model}", "Hi", base_url=server.url(behaviour), **options)


def bars(axes: Axes) -> dict[int, list[tuple[str, float, float]]]:
    """Row to its bars: label, start, end."""
    found: dict[int, list[tuple[str, float, float]]] = {}
    for container in axes.containers:
        for bar in container:
            place = (str(container.get_label()), bar.get_x(), bar.get_x() + bar.get_width())
            found.setdefault(round(bar.get_y() + bar.get_height() / 2), []).append(place)
    return found


def labels(axes: Axes) -> list[str]:
    return [label.get_text() for label in axes.get_yticklabels()]


def legend(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def row(started_at: float, **values: Any) -> overview.Row:
    """One of an overview, of the phases that are given."""
    made: overview.Row = dict.fromkeys(overview.COLUMNS)
    made |= {"started_at": started_at, "status": "ok", "request_model": "gpt-4o", "execution_count": 3}
    made |= values
    names = ("blocked_ms", "dns_ms", "connect_ms", "send_ms", "wait_ms", "receive_ms")
    if "duration_ms" not in values:
        made["duration_ms"] = sum(made[name] or 0.0 for name in names)
    return made


def draw(
    *rows: overview.Row, taken_at: float = 2000.0, left_out: int = 0, session: str | None = None
) -> Axes:
    axes = pyplot.figure(layout="constrained").gca()
    pictures._draw(axes, Overview(list(rows), [], left_out, taken_at), session)
    axes.figure.canvas.draw()
    return axes


# -- from the log --------------------------------------------------------------------------------------


async def test_each_request_is_a_row_with_its_phases_and_the_oldest_is_on_top(server: RawServer) -> None:
    nbllm.tagging.enter_cell(nbllm.tagging.Cell("cell-a", 3, "run-1", "frontend"))
    with nbllm.session("review"):
        await ask(server, model="first")
        async for _ in await ask(server, model="second", stream=True):
            pass
    axes = nbllm.waterfall("review")
    frame = nbllm.requests("review")
    assert labels(axes) == ["[3] first", "[3] second"]
    low, high = axes.get_ylim()
    assert low > high
    drawn = bars(axes)
    assert sorted(drawn) == [0, 1]
    start = frame.started_at[0]
    for at, request in frame.iterrows():
        begins = min(begin for _, begin, _ in drawn[at])
        ends = max(end for _, _, end in drawn[at])
        assert begins == pytest.approx((request.started_at - start).total_seconds(), abs=2e-6)
        assert ends - begins == pytest.approx(request.duration_ms / 1e3, abs=2e-6)
        waits = [end - begin for name, begin, end in drawn[at] if name == "wait"]
        assert waits == [pytest.approx(request.wait_ms / 1e3, abs=2e-6)]
    assert "connect" in [name for name, *_ in drawn[0]]
    assert "connect" not in [name for name, *_ in drawn[1]]  # over the same connection
    assert frame.connection_reused.tolist() == [False, True]
    assert axes.get_title(loc="left") == "review \N{MIDDLE DOT} 2 requests"


async def test_errors_are_marked_and_running_ones_are_open(server: RawServer) -> None:
    with pytest.raises(nbllm.RateLimitError):
        await ask(server, "status-429")
    task = asyncio.ensure_future(ask(server, "gated"))
    await server.seen(lambda: len(server.requests) == 2)
    axes = nbllm.waterfall()
    server.open_gate()
    await task
    assert texts(axes) == ["RateLimitError", "running"]
    markers = [(line.get_marker(), line.get_ydata()[0]) for line in axes.lines]  # type: ignore[index]
    assert markers == [("x", 0), (">", 1)]
    assert "running" in legend(axes)
    assert "running" not in legend(nbllm.waterfall())


async def test_the_filters_are_those_of_requests(server: RawServer) -> None:
    for name in ("a", "b", "c"):
        await ask(server, model=name, session_id=name)
    with pytest.raises(nbllm.RateLimitError):
        await ask(server, "status-429", model="d")
    assert labels(nbllm.waterfall("b")) == ["b"]
    assert labels(nbllm.waterfall(model="c", kernel="all")) == ["c"]
    assert labels(nbllm.waterfall(errors=True)) == ["d"]
    assert labels(nbllm.waterfall(since="1h")) == ["a", "b", "c", "d"]
    with pytest.raises(nbllm.UsageProblem, match="a time is"):
        nbllm.waterfall(since="soon")


async def test_the_newest_are_drawn_and_the_title_says_so(server: RawServer) -> None:
    for number in range(5):
        await ask(server, model=f"m{number}")
    axes = nbllm.waterfall(limit=2)
    assert labels(axes) == ["m3", "m4"]
    assert axes.get_title(loc="left") == "the last 2 of 5 requests"
    assert nbllm.waterfall().get_title(loc="left") == "5 requests"


@pytest.mark.parametrize("limit", [0, -1, True, "60", 1.5, None, 10**9])
def test_a_limit_that_is_none_is_refused(limit: Any) -> None:
    with pytest.raises(nbllm.UsageProblem, match=r"limit must be a number from 1 to 10,000; got"):
        nbllm.waterfall(limit=limit)


async def test_it_draws_on_the_axes_it_is_given_and_else_makes_a_figure(server: RawServer) -> None:
    await ask(server)
    figure, (left, right) = pyplot.subplots(1, 2)
    assert nbllm.waterfall(ax=left) is left
    assert labels(left) == ["m"]
    assert not right.has_data()
    assert pyplot.get_fignums() == [figure.number]
    assert nbllm.waterfall().figure is not figure
    with pytest.raises(nbllm.UsageProblem, match=r"ax must be matplotlib's Axes, .*; got Figure"):
        nbllm.waterfall(ax=figure)  # type: ignore[arg-type]


def test_where_there_is_nothing_it_says_so() -> None:
    axes = nbllm.waterfall()
    assert texts(axes) == ["no requests"]
    assert not axes.axison
    axes.figure.savefig(Path("/dev/null"), format="png")


@pytest.mark.parametrize(("kind", "begins"), [("pdf", b"%PDF"), ("svg", b"<?xml"), ("png", b"\x89PNG")])
async def test_it_can_be_saved(kind: str, begins: bytes, server: RawServer, tmp_path: Path) -> None:
    await ask(server)
    path = tmp_path / f"requests.{kind}"
    nbllm.waterfall().figure.savefig(path)  # type: ignore[union-attr]
    assert path.read_bytes().startswith(begins)


def test_without_matplotlib_it_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\nimport nbllm\n"
        "try:\n    nbllm.waterfall()\nexcept nbllm.UsageProblem as problem:\n    print(problem)"
    )
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "waterfall() needs matplotlib: pip install 'nbllm[plot]'\n"


# -- how it is drawn -----------------------------------------------------------------------------------

WHOLE = {
    "queued_ms": 100.0, "blocked_ms": 100.0, "dns_ms": 100.0, "connect_ms": 300.0, "ssl_ms": 100.0,
    "send_ms": 100.0, "wait_ms": 100.0, "receive_ms": 500.0, "ttft_ms": 900.0,
}  # fmt: skip


def test_the_legend_has_the_phases_that_occur_in_their_order_and_colours() -> None:
    axes = draw(row(1000.0, **WHOLE), row(1000.5, wait_ms=300.0))
    assert legend(axes) == [phase.label for phase in PHASES.values()]
    colours = [to_hex(container[0].get_facecolor()) for container in axes.containers]
    assert colours == [phase.colour for phase in PHASES.values()]
    drawn = bars(axes)
    assert drawn[0][0] == ("queued", 0.0, pytest.approx(0.1))
    assert drawn[0][-1] == ("stream", pytest.approx(1.0), pytest.approx(1.3))
    assert drawn[1] == [("wait", pytest.approx(0.6), pytest.approx(0.9))]  # the axis begins with the queue
    assert legend(draw(row(1000.0, wait_ms=300.0))) == ["wait"]


def test_what_no_phase_explains_is_drawn_neutral() -> None:
    axes = draw(row(1000.0, wait_ms=300.0, duration_ms=1000.0, status="error", error_type="Timeout"))
    assert legend(axes) == ["wait", "other"]
    assert bars(axes)[0][1] == ("other", pytest.approx(0.3), pytest.approx(1.0))


def test_long_pauses_are_cut_to_marked_breaks_and_the_ticks_tell_true_seconds() -> None:
    axes = draw(row(1000.0, wait_ms=1000.0), row(1101.0, wait_ms=1000.0))
    assert "1 min 40 s idle" in texts(axes)
    assert "//" in texts(axes)
    first, second = bars(axes)[0], bars(axes)[1]
    assert first[0][2] == pytest.approx(1.0)
    assert 1.0 < second[0][1] < 1.1
    gap = second[0][1] - first[0][2]
    ticks = dict(zip((t.get_text() for t in axes.get_xticklabels()), axes.get_xticks(), strict=True))
    assert ticks["0.0"] == 0
    assert ticks["0.5"] == pytest.approx(0.5)
    assert ticks["101.5"] == pytest.approx(1.5 + gap)
    assert not [text for text in ticks if 1 < float(text) < 101]
    places = list(axes.get_xticks())
    assert places == sorted(places)


def test_short_pauses_stay() -> None:
    axes = draw(row(1000.0, wait_ms=1000.0), row(1002.5, wait_ms=1000.0))
    assert texts(axes) == []
    assert bars(axes)[1] == [("wait", pytest.approx(2.5), pytest.approx(3.5))]


@pytest.mark.parametrize("session", ["a $x$ \\frac{", "$", "<b>&"])
def test_dollars_and_backslashes_are_shown_as_they_are(session: str, tmp_path: Path) -> None:
    name = "m$_1$ \\undefined{"
    axes = draw(row(1000.0, request_model=name, status="error", error_type=name), session=session)
    axes.figure.savefig(tmp_path / "it.svg")  # type: ignore[union-attr]
    assert labels(axes) == [f"[3] {name}"]
    for text in (*axes.get_yticklabels(), *axes.texts):
        assert not text.get_parse_math()
        assert not text.get_usetex()
    # As glyphs, one by one: as a formula it would have failed, or have been in italics.
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        axes.figure.savefig(tmp_path / "text.svg")  # type: ignore[union-attr]
    assert name in (tmp_path / "text.svg").read_text()


@pytest.mark.parametrize("name", ["\x1b[31mred\x07", "a\nb", "x" * 10_000, "\u202eevil"])
def test_hostile_names_stay_in_their_line(name: str) -> None:
    axes = draw(row(1000.0, request_model=name, status="error", error_type=name), session="s")
    (label,) = labels(axes)
    assert len(label) <= pictures.LABEL_CHARACTERS
    assert label.isprintable()
    assert all(text.isprintable() for text in texts(axes))


def test_requests_without_a_cell_or_a_model_have_a_label() -> None:
    axes = draw(
        row(1000.0, execution_count=None, cell_id="a-long-id", provider="demo", request_model="small"),
        row(1000.1, request_model=None, server_address="example.org"),
        row(1000.2, request_model=None, operation="models"),
    )
    assert labels(axes) == ["demo/small", "[3] foreign example.org", "[3] models"]


def test_what_took_no_time_at_all_can_be_drawn() -> None:
    for rows in ([row(1000.0)], [row(1000.0, duration_ms=None)], [row(1000.0), row(9000.0)]):
        assert len(labels(draw(*rows))) == len(rows)


def test_what_runs_goes_on_to_the_moment_of_the_picture() -> None:
    axes = draw(row(1000.0, status=None, duration_ms=None, connect_ms=200.0), taken_at=1003.0)
    assert bars(axes)[0] == [
        ("connect", 0.0, pytest.approx(0.2)),
        ("running", pytest.approx(0.2), pytest.approx(3.0)),
    ]


@pytest.mark.parametrize("seconds", [1e-4, 0.03, 1.0, 7.0, 90.0, 4000.0, 1e6])
def test_ticks_are_round_and_neither_few_nor_many(seconds: float) -> None:
    axes = draw(row(1000.0, wait_ms=seconds * 1e3))
    found = [text.get_text() for text in axes.get_xticklabels()]
    assert 4 <= len(found) <= 12
    assert len(set(found)) == len(found)
    for text, place in zip(found, axes.get_xticks(), strict=True):
        assert float(text.replace(",", "")) == pytest.approx(place, rel=1e-6)
