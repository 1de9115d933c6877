"""What the documentation says of the code, compared with the code."""

from __future__ import annotations

import re
from pathlib import Path

import nbllm
from docs import tables


def test_the_tables_of_the_magics_are_those_of_the_code() -> None:
    text = tables.PAGE.read_text()
    assert text == tables.page(text), "run: python -m docs.tables"


def test_every_function_that_the_page_names_is_there() -> None:
    for name in re.findall(r"`(?:await )?nbllm\.(\w+)\(", tables.PAGE.read_text()):
        assert callable(getattr(nbllm, name))


def test_pictures_are_there() -> None:
    root = Path(__file__).parent.parent
    for page, folder in ((root / "README.md", root), (tables.PAGE, tables.PAGE.parent)):
        for part in page.read_text().split("](")[1:]:
            target = part.partition(")")[0]
            if not target.startswith(("http", "#")):
                assert (folder / target).exists(), f"{page.name} names {target}"
