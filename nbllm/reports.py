"""`nbllm.report()`: what the dashboard shows, as it stands: for a saved notebook, a page, a terminal.

Owns `report` and `Report`; what it says is `report_parts`', how it looks `report_html`'s and `report_text`'s.
Called by users and, for viewers without scripts, by `widgets`.
"""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from . import overview, report_html, report_text
from .exceptions import UsageProblem
from .exporting import write_whole
from .overview import Overview
from .selection import Selection, Since


def report(
    session: str | None = None,
    kernel: str | None = None,
    *,
    since: Since = None,
    notebook: str | None = None,
    model: str | None = None,
    search: str | None = None,
    errors: bool = False,
    cell: int | str | None = None,
    latest: bool = False,
) -> Report:
    """Requests at a glance: sums, sessions with waterfalls, errors, connections and spend.

    It is a picture of this moment, and needs no kernel afterwards: as the last line of a cell it shows as
    HTML without scripts, which stays right in a saved notebook, trusted or not, on GitHub and in nbconvert;
    `print` gives text tables.

    Args:
        session: Only those of this session id. This and the others are as for `nbllm.requests`.
        kernel: None for this kernel, or for all kernels where `since` or `notebook` is given; "all" for the
            whole log; or a kernel_id.
        since: Only those that started since then.
        notebook: Only those of this notebook.
        model: Only those that asked for this model, or were answered by it.
        search: Only those with this text.
        errors: Only those that failed.
        cell: Only those of this cell.
        latest: Only those of the last run of each cell.

    Returns:
        A `Report` of the newest 10,000 of them. The newest 200 requests are listed one by one (20 in a
        terminal); sums are over all.

    Raises:
        UsageProblem: A filter that can't be used.
    """
    chosen = Selection(session, kernel, since, notebook, model, search, errors, cell, latest)
    return Report.of(chosen)


@dataclass(frozen=True, repr=False)
class Report:
    """What a report tells. `str()` and `print` give it as text tables, as wide as the terminal.

    Attributes:
        overview: The rows of requests and connections that it tells of.
        scope: Which requests are meant, in words: "this kernel".
    """

    overview: Overview
    scope: str

    @classmethod
    def of(cls, chosen: Selection) -> Report:
        """What the log has now of these requests."""
        return cls(overview.overview(chosen), str(chosen))

    @cached_property
    def html(self) -> str:
        """It as HTML: one element with inline styles, and no script. Less than 300 kB."""
        return report_html.fragment(self.overview, self.scope)

    @property
    def page(self) -> str:
        """It as a whole page, light or dark as the reader's system is."""
        return report_html.page(self.html)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write `page`.

        Args:
            path: Of an HTML file. What was there is replaced once the new one is whole; only its owner may
                read it.

        Returns:
            The file's path.

        Raises:
            UsageProblem: It can't be written there.
        """
        try:
            target = Path(path).expanduser()
        except (TypeError, RuntimeError) as error:
            raise UsageProblem(f"{path!r} is no path that can be written to: {error}") from None
        page = self.page.encode()
        write_whole(target, lambda file: file.write(page))
        return target

    def __str__(self) -> str:
        width = shutil.get_terminal_size().columns
        return report_text.text(self.overview, self.scope, width, has_colour=_has_colour())

    def __repr__(self) -> str:
        return f"<Report on {self.scope}: {len(self.overview.requests):,} requests>"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/plain": str(self), "text/html": self.html}


def _has_colour() -> bool:
    """Whether what is printed goes to a terminal with colours, and they are wanted (no-color.org)."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return bool(getattr(sys.stdout, "isatty", lambda: False)())
