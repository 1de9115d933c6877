"""A model's answer as Markdown that can only be read: nothing in it runs, loads, or swallows what follows.

Owns `safe` and `escape`. Pure text to text; called by whatever publishes `text/markdown`. A front end trusts
the output of a cell that has just run: JupyterLab 4.6 executes `<script>` and `onerror=` in it, loads remote
images, follows `javascript:` links, puts a fence's language into HTML as it is, and puts `$…$` back into
attributes (`[x](http://a$"onclick=…"$)`) after Markdown is done. A prompt with somebody else's text in it is
enough for a model to write these.

Most answers hold nothing of the kind and stay as they are, letter by letter. In the others what is found
outside of code is written with HTML entities. Where code begins and ends must then be beyond doubt, for every
renderer: fences are written anew with blank lines around, and a code span that holds such things as `<code>`.
"""

from __future__ import annotations

import bisect
import re

from .fences import Fence, blocks, mark_around, with_line_feeds

# Outside of code these become active. A link is left alone if all of it is plain to see.
_URL = r"(?:https?://|mailto:|\#)[^\s<>$\\\"'`()\[]*(?:\([^\s<>$\\\"'`()\[]*\)[^\s<>$\\\"'`()\[]*)*"
_RELATIVE = r"[^\s<>$\\\"'`():&\[]*"
_TITLE = r"(?:[ ]+\"[^\"<>$\\&`\n]*\")?"
_ACTIVE = re.compile(
    rf"""
      (?<!<)<https?://[^\s<>$\\"'`!\[\]()]*>
    | <(?=[a-z!/?]) (?! br\s*/?> | /?su[bp]> )
    | (?<!!)!+\[
    | \]\( (?! [ ]?(?:{_URL}|{_RELATIVE}){_TITLE}[ ]?\) )
    """,
    re.IGNORECASE | re.VERBOSE,
)
_ACTIVE_OR_OPEN = re.compile(rf"{_ACTIVE.pattern}| \[", re.IGNORECASE | re.VERBOSE)
# `[label]: target`, but for a plain URL without a title.
_DEFINITION = re.compile(
    rf"^[ \t>*+\d.)-]*\[(?:\\.|[^\[\]\\])*\]:(?![ \t]*{_URL}[ \t]*(?:\Z|\n(?!\s*[\"'(])))",
    re.IGNORECASE | re.MULTILINE,
)
# A line that CommonMark takes for HTML up to the next blank line, a fence included.
_HTML_LINE = re.compile(r"^[ \t>*+\d.)-]*</?(?:br|su[bp])\s*/?>[ \t]*$", re.IGNORECASE | re.MULTILINE)
# A word that is, or holds, a URL, with math or an escape in it.
_MATH_IN_URL = re.compile(r"(?<![^ \t\n])(?=[^ \t\n]*(?://|www\.))[^ \t\n]*[$\\]", re.IGNORECASE)
_URL_START = re.compile(r"//|www\.", re.IGNORECASE)

_DISPLAY_MATH = re.compile(r"\$\$|\\\\!*\[|\\begin")

_BAD_INFO = re.compile(r"[<>\"'&$\\`]")
_INLINE = re.compile(r"\\\\|\\`|\\<|`+|~{3,}")


def safe(text: str, *, beside: str = "") -> str:
    """`text` as Markdown that shows what it shows, and does nothing; a code fence left open is closed.

    Args:
        text: Of a model.
        beside: What else of a model stands in the same output; display math reaches from one into the other.
    """
    text = with_line_feeds(text)
    parts = blocks(text)
    fences = [part for part in parts if isinstance(part, Fence)]
    is_active = any(pattern.search(text) for pattern in (_ACTIVE, _DEFINITION, _HTML_LINE, _MATH_IN_URL))
    if is_active or not all(_is_plain(fence) and _is_shallow(fence) for fence in fences):
        return _rewritten(parts, _DISPLAY_MATH.search(text + beside) is not None)
    if fences and fences[-1].end is None:
        last = fences[-1]
        return f"{text.rstrip(chr(10))}\n{last.prefix}{last.mark}"
    return text


def escape(text: str) -> str:
    """`text` as one line of Markdown that shows it letter by letter: no markup, link, HTML or math."""
    line = re.sub(r"[\x00-\x1f\x7f-\x9f]", "", " ".join(text.split()))
    return re.sub(r"[^\w\s·→…(),/.:-]|_|(?<!\d)\.|\.(?!\d)|:(?! )", lambda match: _entity(match[0]), line)


def _is_plain(fence: Fence) -> bool:
    """Whether nothing could end it early, or be taken for its end, and its language is only a word."""
    lines = [line for line in (*fence.lines, fence.end or "") if line.strip(" \t")]
    return (
        not fence.prefix.strip(" ")
        and not _BAD_INFO.search(fence.info)
        and "\t" not in (fence.end or "")
        and all(line.startswith(fence.prefix) for line in lines)
    )


def _is_shallow(fence: Fence) -> bool:
    """Whether it is a fence also outside of a list, where four spaces make something else of it."""
    end = fence.end or ""
    return max(len(fence.prefix), len(end) - len(end.lstrip(" "))) < 4


def _rewritten(parts: list[str | Fence], may_be_math: bool) -> str:
    out: list[str] = []
    in_math = False  # between $$ and $$
    for part in parts:
        if isinstance(part, Fence):
            out += _written_fence(part, may_be_math)
            in_math = False
        else:
            out.append(_Line(part, in_math).rewritten())
            in_math ^= part.count("$$") % 2 == 1
    return "\n".join(out).rstrip("\n")


def _written_fence(fence: Fence, may_be_math: bool) -> list[str]:
    """The fence between blank lines, which end whatever could reach over its first or last line."""
    before, prefix, lines = [""], fence.prefix, fence.lines
    if not _is_plain(fence):  # out of its list or quote, to where no line of code can end it
        if prefix.strip():
            before = [prefix.rstrip(), ""]
        lines = fence.dedented()
        prefix = ""
    code, language = "\n".join(lines), fence.language
    if _ACTIVE.search(code):
        if may_be_math:  # nbconvert's and VS Code's math reaches over blank lines, and into fences
            code = "\n".join(line.removeprefix(prefix) for line in lines)
            return [*before, f"{prefix}<pre>{_code(code)}</pre>", ""]
        if language.startswith("mermaid"):
            language = ""  # nbconvert writes its source into the page as it is
    mark = mark_around(code)
    return [*before, f"{prefix}{mark}{language}", *lines, f"{prefix}{mark}", ""]


class _Line:
    """One line outside of fences: its code spans are kept, all else is made harmless."""

    def __init__(self, line: str, in_math: bool) -> None:
        self.line = line
        self.in_math = in_math
        self.cuts_urls = _MATH_IN_URL.search(line) is not None
        self.dollars = [match.start() for match in re.finditer(r"\$", line)]
        self.last_bracket = max((m.start() for m in re.finditer(r"\\.|\]", line) if m[0] == "]"), default=-1)

    def rewritten(self) -> str:
        out: list[str] = []
        line, start, position = self.line, 0, 0
        while match := _INLINE.search(line, position):
            token, position = match[0], match.end()
            if token == "\\\\":  # an escaped backslash: what follows it is not escaped
                continue
            out.append(self._harmless(start, match.start()))
            start = position
            if token[0] == "\\":
                out.append(_entity(token[1]))
            elif token[0] == "`" and (end := re.compile(rf"(?<!`){token}(?!`)").search(line, position)):
                start = position = end.end()
                out.append(self._span(token, line[match.end() : end.start()]))
            else:
                out.append(_entities(token))
        out.append(self._harmless(start, len(line)))
        return "".join(out)

    def _span(self, mark: str, code: str) -> str:
        if not self.cuts_urls and not _ACTIVE.search(code):
            return f"{mark}{code}{mark}"
        return _code(code[1:-1] if code.strip() and code[0] == code[-1] == " " else code)

    def _harmless(self, start: int, end: int) -> str:
        def defuse(match: re.Match[str]) -> str:
            found, at = match[0], start + match.end() - 1
            if found.endswith(">"):
                return found[1:-1]  # <http://…>: front ends make links of bare URLs too
            if found.endswith("["):
                # mistune looks for the end of a label beyond blank lines, and takes a fence along.
                bracket = "[" if at < self.last_bracket else "&#91;"
                return f"{bracket}image: " if found[0] == "!" else bracket
            if found == "<":
                # In math an entity would be shown as it is; there a space does, which TeX doesn't show.
                return "< " if self._is_math(at) else "&lt;"
            return "]" + _entity(found[1])

        text = _ACTIVE_OR_OPEN.sub(defuse, self.line[start:end]).replace("]:", "]&#58;")
        return _URL_START.sub(lambda match: _entities(match[0]), text) if self.cuts_urls else text

    def _is_math(self, at: int) -> bool:
        before = bisect.bisect_left(self.dollars, at)
        return self.in_math or (before % 2 == 1 and before < len(self.dollars))


def _code(code: str) -> str:
    """Code as HTML in which no character means anything to Markdown."""
    return f"<code>{re.sub(r'[^0-9A-Za-z ]', lambda match: _entity(match[0]), code)}</code>"


def _entities(text: str) -> str:
    return "".join(map(_entity, text))


def _entity(character: str) -> str:
    return {"<": "&lt;", ">": "&gt;", "&": "&amp;"}.get(character) or f"&#{ord(character)};"
