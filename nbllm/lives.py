"""Which kernels live: each says so in the log, and of one that died another notes it.

Owns the rows of the table `kernels`, and what becomes of the requests that were in flight when their kernel
ended without a word. Called by `rows` and `log`, in the writer's thread.
"""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING, Any

from . import tagging

if TYPE_CHECKING:
    import sqlalchemy as sa

SILENT_SECONDS = 120.0
"""A kernel on another machine that has said nothing for so long is taken for dead until it says something."""

DIED = "kernel ended"
"""The `close_reason` of a connection whose kernel ended without closing it."""


def row(started_at: float, ended_at: float | None) -> tuple[Any, ...]:
    """This kernel's row, in the order of `schema.KERNELS`."""
    return (
        tagging.kernel_id(),
        tagging.owner(),
        socket.gethostname(),
        os.getpid(),
        tagging.notebook(),
        started_at,
        time.time(),
        ended_at,
    )


def bury(connection: sa.Connection) -> None:
    """Note the end of kernels that died: what they had under way is incomplete."""
    import sqlalchemy as sa

    query = "SELECT kernel_id, host, pid, seen_at FROM kernels WHERE ended_at IS NULL"
    dead = [kernel_id for kernel_id, *sign in connection.exec_driver_sql(query) if not _is_alive(*sign)]
    for kernel_id in dead:
        values = {"kernel": kernel_id, "reason": DIED}
        for statement in (
            "UPDATE requests SET status = 'incomplete' WHERE kernel_id = :kernel AND status IS NULL",
            "UPDATE connections SET close_reason = :reason WHERE kernel_id = :kernel AND closed_at IS NULL",
            "UPDATE kernels SET ended_at = seen_at WHERE kernel_id = :kernel AND ended_at IS NULL",
        ):
            try:
                connection.execute(sa.text(statement), values)
            except sa.exc.DBAPIError:  # whoever may only read still sees what there is
                return


def _is_alive(host: str | None, pid: int | None, seen_at: float) -> bool:
    if pid is None or host != socket.gethostname():
        return time.time() - seen_at < SILENT_SECONDS
    import psutil

    try:
        process = psutil.Process(pid)
        # Another process may bear the number by now.
        return bool(process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= seen_at)
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:  # it is another user's
        return True
