"""State that outlives a reload of the module that uses it.

`%autoreload` runs a changed module again in an emptied namespace, `importlib.reload` in the old one. The
loops, pools, records and settings of the process must survive both, or the HTTP session would be another one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import TypeVar

T = TypeVar("T")

# Kept in a module without a file, which autoreload leaves alone; so this one may be reloaded too.
_things = vars(sys.modules.setdefault("nbllm._kept", ModuleType("nbllm._kept")))


def kept(name: str, make: Callable[[], T]) -> T:
    """The one object of this process that is called `name`, made by `make` at first use."""
    if name not in _things:
        _things[name] = make()
    found: T = _things[name]
    return found
