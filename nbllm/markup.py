"""A model's answer as HTML that can only be read: nothing in it runs, or loads.

Owns `from_markdown`, `escape` and `frame`. Pure text to text; called by what publishes `text/html`. What
`markdown` says of a front end's trust holds here too; but as the renderer is ours, the source needs no
rewriting: no HTML is taken over, only web and mail links become links, images become links, and code and
math are text.

JupyterLab typesets LaTeX in the text of an output: between dollars, which pair up wherever they stand in one
piece of text. Math is kept as the model wrote it, and any other dollar stands in an element of its own.
"""

from __future__ import annotations

import functools
import html
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.renderer import RendererHTML
    from markdown_it.rules_block import StateBlock
    from markdown_it.rules_inline import StateInline
    from markdown_it.token import Token

_LINK = re.compile(r"(?:https?://|mailto:)", re.IGNORECASE)

# A pair that is not closed costs a search at each opening: math has an end soon, or is none.
_MATH = re.compile(
    r"""
      \$\$ .{1,2000}? \$\$
    | \$ (?!\s) (?:\\.|[^$\\]){1,1000}? (?<!\s)\$ (?!\d)
    | \\\( .{1,2000}? \\\)
    | \\\[ .{1,2000}? \\\]
    | \\begin\{([a-z]+\*?)\} .{1,2000}? \\end\{\1\}
    """,
    re.DOTALL | re.IGNORECASE | re.VERBOSE,
)
_MATH_BLOCK = re.compile(r"(\$\$|\\\[|\\begin\{([a-z]+\*?)\})", re.IGNORECASE)
_MATH_LINES = 60

# No script, no frame, no form, and nothing from the network. The policy knows nothing of <link
# rel=preconnect>; a <basefont> may stand wherever that may, and means nothing.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; font-src data:"
_HEAD = f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
_LINK_TAG = re.compile(r"<link(?=[\s/>])", re.IGNORECASE)


def from_markdown(text: str) -> str:
    """`text`, which is Markdown, as HTML that shows it and does nothing."""
    return str(_parser().render(text))


def escape(text: str) -> str:
    """`text` as HTML that shows it letter by letter: no markup, and no math."""
    # A backslash may begin math too, unless it stands alone.
    return html.escape(text).replace("$", "<span>$</span>").replace("\\", "<span>\\</span>")


def frame(page: str) -> str:
    """A page that a model wrote, in a frame of its own: without scripts, and without the network."""
    source = html.escape(_HEAD + _LINK_TAG.sub("<basefont", page))
    # Its own background: a page that sets no colours is meant for a white one.
    style = "width:100%;height:24em;resize:vertical;border:1px solid #8886;background:#fff;color-scheme:light"
    return f'<iframe sandbox="" srcdoc="{source}" style="{style}" title="The answer as a page"></iframe>'


@functools.cache
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    parser.validateLink = lambda url: _LINK.match(url) is not None  # type: ignore[method-assign]
    interrupted = ["paragraph", "reference", "blockquote", "list"]
    parser.block.ruler.before("fence", "math", _math_block, {"alt": interrupted})
    parser.inline.ruler.before("escape", "math", _math)
    rules = {"text": _text, "math": _math_text, "link_open": _link_open, "image": _image}
    for name, rule in (rules | {"fence": _code, "code_block": _code}).items():
        parser.add_render_rule(name, rule)
    return parser


def _math(state: StateInline, silent: bool) -> bool:
    """An inline rule: math, which is kept as it is."""
    match = _MATH.match(state.src, state.pos, state.posMax)
    if match is None:
        return False
    if not silent:
        state.push("math", "", 0).content = match[0]
    state.pos = match.end()
    return True


def _math_block(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """A block rule: lines of math, in which no list or heading begins."""
    if state.is_code_block(start):
        return False
    opening = _MATH_BLOCK.match(state.src, state.bMarks[start] + state.tShift[start], state.eMarks[start])
    if opening is None:
        return False
    closing = {"$$": "$$", "\\[": "\\]"}.get(opening[1], f"\\end{{{opening[2]}}}")
    for line in range(start, min(end, start + _MATH_LINES)):
        if state.isEmpty(line) or state.sCount[line] < state.blkIndent:
            return False
        begin = opening.end() if line == start else state.bMarks[line]
        if state.src[begin : state.eMarks[line]].rstrip().endswith(closing):
            break
    else:
        return False
    if not silent:
        token = state.push("math", "", 0)
        token.block, token.map = True, [start, line + 1]
        token.content = state.getLines(start, line + 1, state.blkIndent, False)
    state.line = line + 1
    return True


def _text(renderer: RendererHTML, tokens: Sequence[Token], index: int, options: Any, environment: Any) -> str:
    return escape(tokens[index].content)


def _math_text(
    renderer: RendererHTML, tokens: Sequence[Token], index: int, options: Any, environment: Any
) -> str:
    source = html.escape(tokens[index].content)
    return f"<p>{source}</p>\n" if tokens[index].block else source


def _code(renderer: RendererHTML, tokens: Sequence[Token], index: int, options: Any, environment: Any) -> str:
    # JupyterLab would break its lines anywhere, which in a narrow column makes code unreadable.
    code = html.escape(tokens[index].content)
    return f'<pre style="overflow-x:auto;margin:0 0 1em"><code style="white-space:pre">{code}</code></pre>\n'


def _link_open(
    renderer: RendererHTML, tokens: Sequence[Token], index: int, options: Any, environment: Any
) -> str:
    return _anchor(str(tokens[index].attrGet("href")))


def _image(
    renderer: RendererHTML, tokens: Sequence[Token], index: int, options: Any, environment: Any
) -> str:
    image = tokens[index]
    label = escape(f"image: {renderer.renderInlineAsText(image.children or [], options, environment)}")
    in_link = sum(token.nesting for token in tokens[:index] if token.type.startswith("link_")) > 0
    return label if in_link else f"{_anchor(str(image.attrGet('src')))}{label}</a>"


def _anchor(url: str) -> str:
    if not url:  # `[label]()`, which would lead to the notebook itself
        return "<a>"
    return f'<a href="{html.escape(url)}" target="_blank" rel="noopener noreferrer">'
