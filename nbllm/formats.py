"""What is shown of an answer, in each form that a front end may choose.

Owns `View`, one state of what is shown, and `mime_bundle`, which gives it the forms of a format. Pure but for
the known keys; called by `rendering` and `columns`. Whatever a model wrote is made harmless here, by
`markdown` and `markup`, and shows no key of the user's.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from . import fences, markdown, markup, masking


@dataclass(frozen=True, slots=True)
class View:
    """One state of what is shown of an answer.

    Attributes:
        text: The answer so far.
        reasoning: What the model thought aloud, which is folded away.
        footer: Plain text; the state that has one is the last.
        progress: Plain text, shown while neither text nor reasoning has come.
    """

    text: str = ""
    reasoning: str = ""
    footer: str | None = None
    progress: str | None = None

    def __post_init__(self) -> None:  # what is shown stands in the saved notebook
        object.__setattr__(self, "text", masking.hide(self.text))
        object.__setattr__(self, "reasoning", masking.hide(self.reasoning))

    @property
    def waits_with(self) -> str:
        """What is shown instead of an answer that has not begun; empty where that is nothing."""
        return "" if self.text or self.reasoning else self.progress or ""

    @property
    def is_thinking(self) -> bool:
        """Whether only reasoning has come so far."""
        return bool(self.reasoning) and not self.text and self.footer is None


def mime_bundle(view: View, format: str = "md") -> dict[str, str]:
    """The forms of `view`, by MIME type: `text/plain` always, and nothing that could run or load.

    Args:
        view: What is shown.
        format: md: as Markdown; text: as plain text only; json: pretty-printed; code: its code alone; html:
            as a page in a closed frame, once it is whole, and its source before that and wherever there are
            no frames. What is no JSON, and has no code, is shown as it is.
    """
    bundle = {"text/plain": plain(view, format)}
    if format != "text":
        bundle["text/markdown"] = rich(view, format)
    if format == "html" and view.footer is not None and view.text:
        bundle["text/html"] = hypertext(view, format)
    return bundle


def shown(view: View, format: str = "md") -> str:
    """What is shown of the answer itself, as plain text."""
    return _cut(view, format)[0]


def plain(view: View, format: str = "md") -> str:
    """`view` as plain text."""
    what = "thinking" if view.is_thinking else "reasoning"
    summary = f"({what}: {len(view.reasoning):,} characters)" if view.reasoning else ""
    return _joined(view.waits_with, summary, shown(view, format), view.footer)


def rich(view: View, format: str = "md", *, beside: str = "") -> str:
    """`view` as Markdown.

    Args:
        view: What is shown.
        format: As for `mime_bundle`.
        beside: What else of a model stands in the same output.
    """
    source = _source(view, format)
    beside = f"{beside}\n{view.reasoning}\n{source}"
    folded = ""
    if view.reasoning:
        thoughts = markdown.safe(view.reasoning, beside=beside)
        folded = _details(_summary(view), f"\n\n<blockquote>\n\n{thoughts}\n\n</blockquote>\n\n")
    answer = markdown.safe(source, beside=beside) if source else ""
    return _joined(_small(view.waits_with), folded, answer, _small(view.footer))


def hypertext(view: View, format: str = "md") -> str:
    """`view` as HTML, which a page that has many of them can hold."""
    source = _source(view, format)
    folded = ""
    if view.reasoning:
        thoughts = markup.from_markdown(view.reasoning)
        folded = _details(_summary(view), f"<blockquote>{thoughts}</blockquote>")
    answer = markup.from_markdown(source)
    if format == "html" and view.footer is not None and view.text:
        # The source too: front ends that don't trust an output drop frames.
        answer = markup.frame(shown(view, format)) + _details("Source", answer)
    notes = (
        f'<p style="line-height:1.3;margin:0">{_whole_parts(note)}</p>'
        for note in (view.waits_with, view.footer)
        if note
    )
    return f"{folded}{answer}{''.join(notes)}"


def _cut(view: View, format: str) -> tuple[str, str | None]:
    """What is shown of the answer, and the language of the fence that it stands in; None for Markdown."""
    text = view.text
    if format == "text":
        return text, ""
    if format == "code":
        return fences.code_and_language(text)
    if format == "html":
        return fences.code_of(text, prefer="html"), "html"
    if format == "json":
        bare = fences.unfenced(text)
        if (pretty := _pretty(bare)) is not None:
            return pretty, "json"
        return (text, None) if view.footer is not None else (bare, "json")
    return text, None


def _source(view: View, format: str) -> str:
    """The answer as Markdown, with whatever the model wrote in it."""
    text, language = _cut(view, format)
    return text if language is None or not text else fences.fenced(text, language)


def _pretty(text: str) -> str | None:
    """JSON over several lines; None for what is no JSON."""
    try:
        pretty = json.dumps(json.loads(text), indent=2, ensure_ascii=False, allow_nan=False)
        pretty.encode()  # half of a surrogate pair can't be sent to a front end
    except (ValueError, RecursionError):
        return None
    return pretty


def _small(note: str | None) -> str:
    return f"<small>{markdown.escape(note)}</small>" if note else ""


def _whole_parts(note: str) -> str:
    """A note that breaks between its parts, and not inside of a short one such as "11 ms"."""
    parts = []
    for part in map(markup.escape, note.split(" · ")):
        parts.append(f'<span style="white-space:nowrap">{part}</span>' if len(part) < 40 else part)
    return f"<small>{' · '.join(parts)}</small>"


def _summary(view: View) -> str:
    return f"Thinking… {len(view.reasoning):,} characters" if view.is_thinking else "Reasoning"


def _details(summary: str, body: str) -> str:
    return f"<details><summary>{summary}</summary>{body}</details>"


def _joined(*parts: str | None) -> str:
    return "\n\n".join(part for part in parts if part)
