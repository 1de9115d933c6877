"""The code fences of Markdown: where code begins and ends in it, and what language it is in.

Owns `Fence`, `blocks`, `code_of`, `unfenced` and `fenced`. Pure text to text; what makes an answer harmless,
shows only its code, or takes it for JSON, reads it through these.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

# Containers that a fence can stand in, the fence, its language.
_FENCE = re.compile(r"((?:[ \t>]|[-*+][ \t]|\d{1,9}[.)][ \t])*)(`{3,}|~{3,})(.*)")
_LANGUAGE = re.compile(r"\s*([\w+#.-]*)")
# What models put around JSON and Markdown takes for no fence: the marks share a line with what they enclose.
_TIGHT = re.compile(r"(`{3,9}+)(?:json\w*)?((?:(?!\1).)*+)\1", re.DOTALL | re.IGNORECASE)
_PYTHON = {"py", "py3", "python3", "ipython", "ipython3"}


@dataclass
class Fence:
    """A fenced block.

    Attributes:
        prefix: What stands before the fence: the list or quote that it is in.
        mark: The fence itself, three characters or more.
        info: What stands after it on its line.
        lines: The lines between, as they are.
        end: The line that ends it; None where the text ends first.
    """

    prefix: str
    mark: str
    info: str
    lines: list[str] = field(default_factory=list)
    end: str | None = None

    @property
    def language(self) -> str:
        """The first word of `info`; empty where there is none."""
        match = _LANGUAGE.match(self.info)
        return match[1] if match else ""

    def dedented(self) -> list[str]:
        """The lines without the list or quote that they stand in."""
        inside = re.compile(rf"^[ \t>]{{0,{len(self.prefix)}}}")
        return [inside.sub("", line) for line in self.lines]

    def is_ended_by(self, line: str) -> bool:
        """Whether `line` is the fence's end."""
        match = _FENCE.fullmatch(line)
        return (
            match is not None
            and not match[1].strip(" \t>" if ">" in self.prefix else " \t")
            and len(match[1]) < len(self.prefix) + 4
            and match[2].startswith(self.mark)
            and not match[3].strip(" \t")
        )


def blocks(text: str) -> list[str | Fence]:
    """The lines outside of fences, and the fences, in order; lines end with a line feed only."""
    found: list[str | Fence] = []
    fence: Fence | None = None
    for line in text.split("\n"):
        if fence is not None and ">" in fence.prefix and not line.lstrip().startswith(">"):
            fence.end, fence = "", None  # the quote has ended, and the fence with it
        if fence is None:
            match = _FENCE.fullmatch(line)
            if match is None or (match[2][0] == "`" and "`" in match[3]):
                found.append(line)
            else:
                fence = Fence(match[1], match[2], match[3])
                found.append(fence)
        elif fence.is_ended_by(line):
            fence.end, fence = line, None
        else:
            fence.lines.append(line)
    return found


def code_of(text: str, *, prefer: str = "python") -> str:
    """The code of an answer: its fenced blocks joined by a blank line, or all of it where nothing is fenced.

    Blocks of several languages make no one program: then only those in `prefer` count, or, where there are
    none, those in the language that comes first.
    """
    return code_and_language(text, prefer=prefer)[0]


def code_and_language(text: str, *, prefer: str = "python") -> tuple[str, str]:
    """As `code_of`, with the language, lower-case; empty where the answer names none."""
    text = with_line_feeds(text)
    fences = [(_normal(block.language), block) for block in blocks(text) if isinstance(block, Fence)]
    if not fences:
        return text, ""
    languages = [language for language, _ in fences]
    wanted = prefer if prefer in languages else next(filter(None, languages), "")
    parts = ("\n".join(fence.dedented()).strip("\n") for language, fence in fences if language == wanted)
    return "\n\n".join(parts), wanted


def unfenced(text: str) -> str:
    """What stands in the fence that is all of `text`, in whatever language and be it open; else `text`."""
    whole = with_line_feeds(text).strip()
    parts = blocks(whole)
    fence = parts[0] if len(parts) == 1 and isinstance(parts[0], Fence) else None
    is_loose = fence is None or fence.end is None or re.search(r"[{\[]", fence.info)
    if is_loose and (tight := _TIGHT.fullmatch(whole)):
        return tight[2]
    return text if fence is None else "\n".join(fence.dedented())


def fenced(code: str, language: str = "") -> str:
    """`code` in a fence that holds it."""
    mark = mark_around(code)
    return f"{mark}{language}\n{code}\n{mark}"


def mark_around(code: str) -> str:
    """A fence's mark that is longer than any in `code`."""
    longest = max(map(len, re.findall(r"`{3,}", code)), default=2)
    return "`" * (longest + 1)


def with_line_feeds(text: str) -> str:
    """`text` with a line feed, and nothing else, at the end of each line."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _normal(language: str) -> str:
    language = language.lower()
    return "python" if language in _PYTHON else language
