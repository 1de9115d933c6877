"""Changing what the log holds: sessions renamed, tagged and deleted, old rows pruned, requests forgotten.

Each function works on the user's own rows, of all kernels: not on those of others in a shared log.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from . import conversation, log, responding, tagging, tracing
from .exceptions import UsageProblem, did_you_mean
from .selection import Since, moment

if TYPE_CHECKING:
    import sqlalchemy as sa


def rename_session(session_id: str, new: str) -> int:
    """Give a session another id. What this kernel groups under it goes on under the new one.

    Args:
        session_id: The session, of whatever kernel.
        new: Its new id, which no session has yet.

    Returns:
        The number of requests in it.

    Raises:
        UsageProblem: There is no such session, there is one called `new`, or that can't be an id.
    """
    tagging.check_session_id(new)
    values = {"old": session_id, "new": new}

    def job(connection: sa.Connection) -> int:
        known = _sessions(connection)
        if new in known:
            raise UsageProblem(f"there is a session {new!r} already: choose another name, or delete that one")
        _check(session_id, known, is_current=True)
        _run(
            connection, "UPDATE tags SET session_id = :new WHERE owner = :owner AND session_id = :old", values
        )
        return _run(
            connection,
            "UPDATE requests SET session_id = :new WHERE owner = :owner AND session_id = :old",
            values,
        )

    count = log.change(job)
    for record in tracing.running():
        if record.session_id == session_id:
            record.session_id = new
    tagging.rename_session(session_id, new)
    conversation.rename(session_id, new)
    responding.rename_session(session_id, new)
    return count


def tag_session(session_id: str, *tags: str, remove: Sequence[str] = ()) -> list[str]:
    """Tag a session, as by "final" or "paper"; `nbllm.sessions()` shows the tags.

    Args:
        session_id: The session.
        *tags: Tags to add; without one, nothing is added.
        remove: Tags to take away.

    Returns:
        Its tags, in order.

    Raises:
        UsageProblem: There is no such session, or a tag is no text, is empty, or holds a comma.
    """
    taken = [remove] if isinstance(remove, str) else list(remove)
    for tag in (*tags, *taken):
        if not isinstance(tag, str) or not tag.strip() or "," in tag:
            raise UsageProblem(f"a tag is a text without commas such as 'final'; got {tag!r}")

    def job(connection: sa.Connection) -> list[str]:
        _check(session_id, _sessions(connection), is_current=True)
        of_session = "owner = :owner AND session_id = :session"
        for tag in taken:
            values = {"session": session_id, "tag": tag}
            _run(connection, f"DELETE FROM tags WHERE {of_session} AND tag = :tag", values)
        for tag in tags:
            _run(
                connection,
                "INSERT INTO tags (owner, session_id, tag, tagged_at) VALUES (:owner, :session, :tag, :now) "
                "ON CONFLICT DO NOTHING",
                {"session": session_id, "tag": tag, "now": time.time()},
            )
        query = f"SELECT tag FROM tags WHERE {of_session} ORDER BY tag"
        return [row[0] for row in _execute(connection, query, {"session": session_id})]

    return log.change(job)


def delete_session(session_id: str) -> int:
    """Delete a session: its requests with what was said in them, its tags, and its conversation.

    A request that is still in flight comes back when it ends. What has been billed stays billed.

    Returns:
        The number of requests deleted.

    Raises:
        UsageProblem: There is no such session.
    """

    def job(connection: sa.Connection) -> int:
        _check(session_id, _sessions(connection))
        values = {"session": session_id}
        _run(connection, "DELETE FROM tags WHERE owner = :owner AND session_id = :session", values)
        return _delete(connection, "session_id = :session", values)

    count = log.change(job)
    conversation.forget(session_id)
    return count


def forget(*request_ids: str) -> int:
    """Delete requests with all that was said in them, as if they had not been; nothing stays on the disk.

    Args:
        *request_ids: Of `nbllm.requests()`, or `answer.request_id`.

    Returns:
        The number of requests deleted.

    Raises:
        UsageProblem: The log has no request of such an id; nothing is deleted then.
    """

    def job(connection: sa.Connection) -> int:
        count = 0
        for request_id in request_ids:
            found = _delete(connection, "request_id = :request", {"request": request_id})
            if not found:
                raise UsageProblem(
                    f"the log has no request {request_id!r} of yours; "
                    "nbllm.requests(kernel='all').request_id tells what there is"
                )
            count += found
        return count

    return log.change(job)


def prune(older_than: Since) -> int:
    """Delete what is older than a time, of all sessions and kernels, and give the space back.

    Args:
        older_than: "90d", "12h", "2w", a timedelta, a date, or a datetime; what was before that goes.

    Returns:
        The number of requests deleted.

    Raises:
        UsageProblem: `older_than` can't be understood.
    """
    values = {"time": moment(older_than)}

    def job(connection: sa.Connection) -> int:
        count = _delete(connection, "started_at < :time AND status IS NOT NULL", values)
        mine = "kernel_id IN (SELECT kernel_id FROM kernels WHERE owner = :owner)"
        unused = "connection_id NOT IN (SELECT connection_id FROM requests WHERE connection_id IS NOT NULL)"
        _run(
            connection,
            f"DELETE FROM connections WHERE {mine} AND {unused} AND coalesce(closed_at, opened_at) < :time",
            values,
        )
        _run(
            connection,
            "DELETE FROM kernels WHERE owner = :owner AND seen_at < :time "
            "AND kernel_id NOT IN (SELECT kernel_id FROM requests)",
            values,
        )
        return count

    return log.change(job, shrink=True)


def _sessions(connection: sa.Connection) -> list[str]:
    query = "SELECT DISTINCT session_id FROM requests WHERE owner = :owner"
    return [row[0] for row in _execute(connection, query, {})]


def _check(session_id: Any, known: Sequence[str], is_current: bool = False) -> None:
    if session_id in known or (is_current and session_id == tagging.current_session()):
        return
    hint = did_you_mean(str(session_id), known) or "; nbllm.sessions(kernel='all') shows all"
    raise UsageProblem(f"there is no session {session_id!r} of yours in the log{hint}")


def _delete(connection: sa.Connection, condition: str, values: dict[str, Any]) -> int:
    mine = f"owner = :owner AND {condition}"
    _run(connection, f"DELETE FROM contents WHERE id IN (SELECT id FROM requests WHERE {mine})", values)
    return _run(connection, f"DELETE FROM requests WHERE {mine}", values)


def _run(connection: sa.Connection, statement: str, values: dict[str, Any]) -> int:
    return int(_execute(connection, statement, values).rowcount)


def _execute(connection: sa.Connection, statement: str, values: dict[str, Any]) -> Any:
    import sqlalchemy as sa

    return connection.execute(sa.text(statement), {**values, "owner": tagging.owner()})
