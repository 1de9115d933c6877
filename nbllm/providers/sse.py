"""Server-sent events from bytes, however the network cuts them.

Source of the format: WHATWG HTML, "Server-sent events": lines end in LF, CR or CRLF; an event ends at an
empty line; the `data` lines of one event are joined by LF; lines that begin with a colon are comments.
"""

from __future__ import annotations


class EventDecoder:
    """Feed bytes as they come, get the `data` of each event that is complete."""

    __slots__ = ("_data", "_held", "_rest", "_started")

    def __init__(self) -> None:
        self._rest = b""
        self._held: list[
            bytes
        ] = []  # what followed it without ending a line: to join it each time takes long
        self._data: list[bytes] = []
        self._started = False

    def feed(self, piece: bytes) -> list[bytes]:
        """The data of the events that `piece` completes, in order."""
        if b"\n" not in piece and b"\r" not in piece and self._started and not self._rest.endswith(b"\r"):
            self._held.append(piece)
            return []
        if self._held:
            piece = b"".join((self._rest, *self._held, piece))
            self._held.clear()
        elif self._rest:
            piece = self._rest + piece
        if not self._started and piece:
            if piece.startswith(b"\xef\xbb\xbf"):
                piece = piece[3:]
            elif b"\xef\xbb\xbf".startswith(piece):
                self._rest = piece
                return []
            self._started = True
        # A CR at the very end may be the first half of a CRLF, so it waits for the next piece.
        if b"\r" in piece:
            held = b"\r" if piece.endswith(b"\r") else b""
            piece = piece[: len(piece) - len(held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
            lines = piece.split(b"\n")
            self._rest = lines.pop() + held
        else:
            lines = piece.split(b"\n")
            self._rest = lines.pop()
        events: list[bytes] = []
        data = self._data
        for line in lines:
            if not line:
                if data:
                    event = data[0] if len(data) == 1 else b"\n".join(data)
                    if event and not event.isspace():  # a blank one keeps the connection alive
                        events.append(event)
                    data.clear()
            elif line.startswith(b"data: "):
                data.append(line[6:])
            elif line.startswith(b"data:"):
                data.append(line[5:])
        return events

    def finish(self) -> list[bytes]:
        """The data of a last event that the server ended without its empty line."""
        events = self.feed(b"\n\n") if self._rest or self._held or self._data else []
        self._rest = b""
        return events
