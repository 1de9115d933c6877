"""Changing what the log holds: sessions renamed, tagged and deleted, old rows pruned, requests forgotten.

Each function works on the user's own rows, of all kernels: not on those of others in a shared log.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from . import asking, conversation, lives, log, responding, schema, tagging, tracing
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
        of_session = "owner = :owner AND session_id = :old"
        # One that has no request yet, as the session in force, may have such a tag already.
        _run(
            connection,
            "INSERT INTO tags (owner, session_id, tag, tagged_at) "
            f"SELECT owner, :new, tag, tagged_at FROM tags WHERE {of_session} ON CONFLICT DO NOTHING",
            values,
        )
        _run(connection, f"DELETE FROM tags WHERE {of_session}", values)
        return _run(connection, f"UPDATE requests SET session_id = :new WHERE {of_session}", values)

    def again(connection: sa.Connection) -> int:
        """What has ended meanwhile."""
        mine = "kernel_id = :kernel AND owner = :owner AND session_id = :old"
        here = {**values, "kernel": tagging.kernel_id()}
        return _run(connection, f"UPDATE requests SET session_id = :new WHERE {mine}", here)

    count = log.change(job)
    tagging.rename_session(session_id, new)
    for record in tracing.running():
        if record.session_id == session_id:
            record.session_id = record.call.session_id = new  # also that of the attempts to come
    asking.rename_session(session_id, new)
    responding.rename_session(session_id, new)
    return count + log.change(again)


def tag_session(session_id: str, *tags: str, remove: Sequence[str] = ()) -> list[str]:
    """Tag a session, as by "final" or "paper"; `nbllm.sessions()` shows the tags.

    Args:
        session_id: The session.
        *tags: Tags to add; without one, nothing is added.
        remove: Tags to take away.

    Returns:
        Its tags, in order.

    Raises:
        UsageProblem: There is no such session, or a tag is no text, empty, too long, or holds a comma.
    """
    taken = [remove] if isinstance(remove, str) else list(remove)
    for tag in (*tags, *taken):
        if not isinstance(tag, str) or not tag.strip() or "," in tag or len(tag) > 200:
            raise UsageProblem(f"a tag is a text of up to 200 characters, without commas; got {tag!r:.80}")

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
        query = f"SELECT tag FROM tags WHERE {of_session}"
        return sorted(row[0] for row in _execute(connection, query, {"session": session_id}))

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

    count = log.change(job, erase=True)
    conversation.forget(session_id)
    return count


def forget(*request_ids: str | Iterable[str]) -> int:
    """Delete requests with all that was said in them, as if they had not been.

    Nothing of them stays on the disk (PostgreSQL sees to that in its own time; where other kernels are in the
    way, a warning says so). What follows in a conversation repeats what was said before:
    `delete_session` deletes all of it.

    Args:
        *request_ids: Of `nbllm.requests()`, or `answer.request_id`; a column of them is fine.

    Returns:
        The number of requests deleted.

    Raises:
        UsageProblem: The log has no request of such an id, or it is still in flight; nothing is deleted then.
    """
    given = chain.from_iterable(
        one if isinstance(one, Iterable) and not isinstance(one, str) else [one] for one in request_ids
    )
    ids = {_id(request_id): request_id for request_id in given}

    def job(connection: sa.Connection) -> int:
        lives.bury(connection)
        for number, request_id in ids.items():
            if not _delete(connection, "id = :id AND status IS NOT NULL", {"id": number}):
                raise UsageProblem(
                    f"the log has no ended request {request_id!r} of yours; "
                    "nbllm.requests(kernel='all').request_id tells what there is"
                )
        return len(ids)

    return log.change(job, erase=True)


def prune(older_than: Since) -> int:
    """Delete what is older than a time, of all sessions and kernels, and give the space back.

    Args:
        older_than: "90d", "12h", "2w", a timedelta, a date, or a datetime; what was before that goes.

    Returns:
        The number of requests deleted.

    Raises:
        UsageProblem: `older_than` can't be understood, or lies in the future.
    """
    values = {"time": moment(older_than)}
    if values["time"] > time.time():
        raise UsageProblem(f"older_than is a time in the past; {older_than!r} is in the future")

    def job(connection: sa.Connection) -> int:
        lives.bury(connection)
        count = _delete(connection, "started_at < :time AND status IS NOT NULL", values)
        _run(
            connection,
            "DELETE FROM tags WHERE owner = :owner AND tagged_at < :time "
            "AND session_id NOT IN (SELECT DISTINCT session_id FROM requests WHERE owner = :owner)",
            values,
        )
        # An older nbllm kept no kernels, and had one owner.
        mine = "kernel_id NOT IN (SELECT kernel_id FROM kernels WHERE owner <> :owner)"
        # DISTINCT: all rows would not fit into PostgreSQL's memory, and be gone through each time.
        used = "SELECT DISTINCT connection_id FROM requests WHERE connection_id IS NOT NULL"
        unused = f"connection_id NOT IN ({used})"
        _run(
            connection,
            f"DELETE FROM connections WHERE {mine} AND {unused} AND coalesce(closed_at, opened_at) < :time",
            values,
        )
        _run(
            connection,
            "DELETE FROM kernels WHERE owner = :owner AND seen_at < :time "
            "AND kernel_id NOT IN (SELECT DISTINCT kernel_id FROM requests)",
            values,
        )
        return count

    return log.change(job, erase=True)


def _id(request_id: Any) -> int:
    """The key of a request in the log."""
    if not isinstance(request_id, str) or not (found := _REQUEST_ID.fullmatch(request_id)):
        raise UsageProblem(f"a request's id is a text such as '0badcafe-r7'; got {request_id!r:.80}")
    return tagging.first_id(found[1]) | int(found[2])


_REQUEST_ID = re.compile("([0-9a-f]{8})-r(0|[1-9][0-9]{0,8})")


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

    values = {**values, "owner": tagging.owner()}
    given = {k: schema.storable("text", v) if isinstance(v, str) else v for k, v in values.items()}
    return connection.execute(sa.text(statement), given)
