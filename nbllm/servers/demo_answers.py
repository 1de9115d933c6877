"""What the demo models say: short texts, made from the words of the prompt.

Pure functions of the messages, the same text for the same messages. They know nothing of models, HTTP or
the shape of a response. Called by `demo_chat`.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

PICTURE_TOKENS = 85  # what OpenAI counts for one picture of low detail

_WORD = re.compile(r"\w+(?:['\u2019]\w+)*")
_TOKEN = re.compile(r"\s*\w{1,6}|\s*[^\w\s]|\s+")
# "2+2" and "7 - 3", but not the "2-3" or "1024x768" of other texts.
_SUM = re.compile(r"(?<![\d.])(\d{1,9})( ?[+*\u00d7] ?| [-/x] )(\d{1,9})(?![\d.])")
_OPENINGS = (
    "Demo model here, no real AI behind this answer.",
    "This is nbllm's demo model: a real request, a made-up answer.",
    "Hello from the demo model, which only plays with your words.",
)
# Words that carry no meaning; shorter ones are never taken for keywords.
_DULL = """
    about all also and answer are bullet bullets but can code columns could describe detail detailed
    does eight equation essay explain five for formula four from function give has have how ideas into
    its latex let like list long make math more most name nine not one only our out please python
    reasons reply rows say script sentence sentences seven short show six snippet some steps story sum
    summarise summarize table tell ten text than that the their them then there these they this three
    two use was what when where which who why will with word words would write you your
"""


@dataclass(frozen=True)
class Prompt:
    """What the answers are made from.

    Attributes:
        text: The last message of the user.
        words: Its words, in order.
        keywords: Up to five of them that carry meaning, in order.
        system: The instructions, "" where there are none.
        earlier: The user's messages before the last one.
        pictures: Parts of the last message that are not text.
        seed: A number that is the same for the same messages.
    """

    text: str
    words: tuple[str, ...]
    keywords: tuple[str, ...]
    system: str
    earlier: tuple[str, ...]
    pictures: int
    seed: int


def read_prompt(messages: Sequence[dict[str, Any]]) -> Prompt:
    """Pick from a conversation what the answers need."""
    texts: dict[str, list[str]] = {"user": [], "system": []}
    last: Any = ""
    for message in messages:
        role = "system" if message["role"] == "developer" else message["role"]
        if role in texts:
            texts[role].append(content_text(message.get("content")))
        if role == "user":
            last = message.get("content")
    text = texts["user"][-1] if texts["user"] else content_text(messages[-1].get("content"))
    words = tuple(_WORD.findall(text))
    return Prompt(
        text=text,
        words=words,
        keywords=_keywords(words),
        system=" ".join(texts["system"]),
        earlier=tuple(texts["user"][:-1]),
        pictures=_pictures(last),
        seed=zlib.crc32(msgspec.json.encode(messages, order="sorted")),
    )


def content_text(content: Any) -> str:
    """The text of a message's content, which may be a string, null or a list of parts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "\n".join(p["text"] for p in parts if isinstance(p, dict) and isinstance(p.get("text"), str))


def tokens(text: str) -> list[str]:
    """Cut a text into pieces of the size of tokens; joined, they are the text again."""
    return _TOKEN.findall(text)


def message_tokens(message: dict[str, Any]) -> int:
    """How many tokens a message counts for; 4 are for the role and the separators."""
    content = message.get("content")
    return 4 + len(tokens(content_text(content))) + PICTURE_TOKENS * _pictures(content)


def write_answer(prompt: Prompt, variant: int = 0) -> str:
    """A short answer in Markdown that relates to the prompt; each variant reads differently."""
    opening = _OPENINGS[(prompt.seed + variant) % len(_OPENINGS)]
    about = [f"{opening} {_what_was_asked(prompt)}"]
    wanted = prompt.text.lower()
    parts = [write(prompt) for pattern, write in _FORMS if re.search(pattern, wanted)]
    return "\n\n".join(about + (parts or [_plain(prompt, variant)]))


def write_json(prompt: Prompt, schema: dict[str, Any] | None = None, variant: int = 0) -> str:
    """The answer as a JSON object; with a JSON schema, a small value that fits it."""
    if schema is not None:
        return json.dumps(_instance(schema, schema, prompt), ensure_ascii=False)
    opening = _OPENINGS[(prompt.seed + variant) % len(_OPENINGS)]
    answer = {
        "demo": True,
        "answer": opening,
        "prompt": _quoted(prompt.text),
        "prompt_words": len(prompt.words),
        "keywords": list(prompt.keywords),
    }
    return json.dumps(answer, ensure_ascii=False)


def _what_was_asked(prompt: Prompt) -> str:
    if not prompt.words and not prompt.pictures:
        return "Your message has no words, so there is little to say."
    count = len(prompt.words)
    sentences = [f"You wrote “{_quoted(prompt.text)}”, {count} word{'s' * (count != 1)}."]
    if prompt.pictures:
        sentences.append("A demo cannot see what came beside the text.")
    if prompt.earlier:
        before = _quoted(prompt.earlier[-1], 40)
        sentences.append(f"After “{before}” this is your message {len(prompt.earlier) + 1}.")
    if prompt.system:
        sentences.append(f"I was told “{_quoted(prompt.system, 40)}” before.")
    return " ".join(sentences)


def _plain(prompt: Prompt, variant: int) -> str:
    if not prompt.keywords:
        return "Ask me for a *list*, a *table*, *code* or *math* to see Markdown stream in."
    start = variant % len(prompt.keywords)
    names = [f"**{word}**" for word in prompt.keywords[start:] + prompt.keywords[:start]]
    longest = max(prompt.words, key=len)
    listed = f"{', '.join(names[:-1])} and {names[-1]} stand" if names[1:] else f"{names[0]} stands"
    return (
        f"To me, {listed} out; the longest word is *{_quoted(longest, 30)}* with {len(longest)} letters. "
        "A real model would now say something clever about it."
    )


def _list(prompt: Prompt) -> str:
    said = [word.lower() for word in prompt.words]
    lines = [
        f"- **{word}**: {len(word)} letters, said {_times(said.count(word.lower()))}"
        for word in _subjects(prompt)
    ]
    return "\n".join(lines)


def _table(prompt: Prompt) -> str:
    rows = [f"| {word} | {len(word)} | {word[0].upper()} |" for word in _subjects(prompt)]
    return "\n".join(["| word | letters | initial |", "|:--|--:|:-:|", *rows])


def _code(prompt: Prompt) -> str:
    listed = ", ".join(f'"{word}"' for word in _subjects(prompt))
    longest = max(_subjects(prompt), key=len)
    return f"```python\nwords = [{listed}]\nprint(max(words, key=len))  # {longest}\n```"


def _math(prompt: Prompt) -> str:
    if found := _SUM.search(prompt.text):
        return f"$$ {_sum(int(found[1]), found[2].strip(), int(found[3]))} $$"
    count, letters = len(prompt.words), sum(map(len, prompt.words))
    return (
        f"With $n = {count}$ words of $\\sum_i l_i = {letters}$ letters, the mean length is\n\n"
        f"$$ \\bar{{l}} = \\frac{{1}}{{n}} \\sum_{{i=1}}^{{n}} l_i = \\frac{{{letters}}}{{{count}}} "
        f"\\approx {letters / max(count, 1):.2f} $$"
    )


def _long(prompt: Prompt) -> str:
    paragraph = (
        "### {number}. About {word}\n\nA demo has no opinion on {word}, but it can fill a paragraph with it. "
        "The word has {letters} letters and begins with {initial}; read from behind it is *{behind}*. If "
        "{word} were a real subject here, this would be the place for a thought about it, then for a second "
        "one, and at the end for a sentence that leads on to the next part."
    )
    return "\n\n".join(
        paragraph.format(number=number, word=word, letters=len(word), initial=word[0], behind=word[::-1])
        for number, word in enumerate(_subjects(prompt), 1)
    )


# What a prompt may ask for. A prompt that asks for several gets them all, in this order.
_FORMS: tuple[tuple[str, Callable[[Prompt], str]], ...] = (
    (r"\b(essay|story|in detail|detailed|long (text|answer|article|reply))\b", _long),
    (r"\b(list|bullets?|steps?|ideas|reasons)\b", _list),
    (r"\b(table|columns?|rows)\b", _table),
    (r"\b(code|function|script|snippet)\b", _code),
    (rf"\b(maths?|formula|equation|latex|integral|sum)\b|{_SUM.pattern}", _math),
)


def _sum(left: int, sign: str, right: int) -> str:
    if sign == "/":
        result = f"{left / right:.6g}" if right else r"\text{undefined}"
        return rf"\frac{{{left}}}{{{right}}} = {result}"
    if sign in "+-":
        return f"{left} {sign} {right} = {left + right if sign == '+' else left - right}"
    return rf"{left} \times {right} = {left * right}"


def _subjects(prompt: Prompt) -> tuple[str, ...]:
    return prompt.keywords or ("demo", "answer")


def _keywords(words: Sequence[str]) -> tuple[str, ...]:
    dull = set(_DULL.split())
    unique = {word.lower(): word for word in reversed(words) if len(word) > 2 and "_" not in word}
    candidates = [word for key, word in unique.items() if key not in dull and not word.isdigit()][::-1]
    longest = set(sorted(candidates, key=len, reverse=True)[:5])
    return tuple(word[:30] for word in candidates if word in longest)[:5]


def _quoted(text: str, limit: int = 60) -> str:
    # Markup is taken out: an answer must not gain links, pictures or tables from what was asked.
    plain = " ".join(re.sub(r"[`*_~|<>#$\[\]\\“”]|://|\bwww\.", " ", text).split())
    return plain if len(plain) <= limit else plain[: limit - 1].rstrip() + "…"


def _times(count: int) -> str:
    return {0: "never", 1: "once", 2: "twice"}.get(count, f"{count} times")


def _pictures(content: Any) -> int:
    parts = content if isinstance(content, list) else []
    return sum(1 for part in parts if isinstance(part, dict) and part.get("type") != "text")


def _instance(schema: Any, root: dict[str, Any], prompt: Prompt, depth: int = 0) -> Any:
    """A small value that fits a JSON schema of the kind that OpenAI accepts for structured answers."""
    if not isinstance(schema, dict) or depth > 20:
        return None
    if "const" in schema or "enum" in schema:
        return schema["const"] if "const" in schema else next(iter(schema["enum"]), None)
    if isinstance(ref := schema.get("$ref"), str):
        found: Any = root
        for step in ref.removeprefix("#").strip("/").split("/") if ref != "#" else ():
            found = found.get(step) if isinstance(found, dict) else None
        return _instance(found, root, prompt, depth + 1)
    for key in ("anyOf", "oneOf", "allOf"):
        if schema.get(key):
            return _instance(schema[key][0], root, prompt, depth + 1)
    kind = schema.get("type", "object")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object":
        properties = schema.get("properties") or {}
        return {name: _instance(part, root, prompt, depth + 1) for name, part in properties.items()}
    if kind == "array":
        size = max(1, min(schema.get("minItems", 2), 10)) if depth < 6 else 0
        return [_instance(schema.get("items"), root, prompt, depth + 1) for _ in range(size)]
    words = len(prompt.words)
    values = {"string": f"demo: {_quoted(prompt.text, 40)}", "integer": words, "number": float(words)}
    return values.get(kind, True if kind == "boolean" else None)
