"""Sphinx: `sphinx-build -W --keep-going -c docs . build/docs` makes the site, without a network.

Its source folder is the project's, so that links between README, docs/ and notebooks/ are those that GitHub
follows. The pages are Markdown; the reference is read from docstrings; notebooks show the outputs that they
were saved with.
"""

import sys
from pathlib import Path

from docutils import nodes
from pygments.lexers import find_lexer_class_by_name
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.domains.python import PyXRefRole
from sphinx.environment import BuildEnvironment

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from nbllm import __version__  # noqa: E402 (this tree's, whatever is installed)

project = "nbllm"
release = __version__
copyright = "the nbllm authors"
root_doc = "docs/index"
include_patterns = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "benchmarks/README.md",
    "docs/**.md",
    "notebooks/*.ipynb",
]
exclude_patterns = [".*", "build", "dist", "nbllm", "nbllm-demo", "tests", "**/.ipynb_checkpoints"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

# Pages and notebooks
myst_heading_anchors = 4
nb_execution_mode = "off"
nb_render_markdown_format = "myst"  # answers have tables
nb_ipywidgets_js = {}  # a saved notebook shows the static form of a widget, which needs no script
highlight_language = "text"  # a fence without a language is a magic cell

# The reference
default_role = "py:name"
autodoc_default_options = {"members": True, "member-order": "bysource"}
python_maximum_signature_line_length = 90
napoleon_numpy_docstring = False

smartquotes_action = "De"  # dashes and dots; "" is an empty text

html_theme = "furo"
html_title = "nbllm"
html_static_path = ["_static"]
html_css_files = ["frames.css"]
html_extra_path = ["_extra"]  # to the first page, which is docs/index.html as on GitHub
html_show_sourcelink = False
html_copy_source = False


class Name(PyXRefRole):
    """`name` in a docstring: a link where it is nbllm's, else code, as `.name` of what is described."""

    def process_link(
        self, env: BuildEnvironment, refnode: nodes.Element, has_explicit_title: bool, title: str, target: str
    ) -> tuple[str, str]:
        refnode["py:module"] = "nbllm"
        return title, target


def without_signature(
    app: Sphinx,
    what: str,
    name: str,
    described: object,
    options: object,
    signature: str | None,
    result: object,
) -> tuple[str, None] | None:
    """Nobody but nbllm makes its errors: what they are made of is noise."""
    return ("", None) if what == "exception" and signature else None


def without_what_is_elsewhere(app: Sphinx, page: nodes.document) -> None:
    """Links to folders, of which GitHub has pages, and pictures that would be loaded, as text."""
    for picture in list(page.findall(nodes.image)):
        if "://" in picture["uri"]:
            picture.replace_self(nodes.Text(picture["alt"]))
    for link in list(page.findall(addnodes.pending_xref)):
        if Path(page["source"]).parent.joinpath(link["reftarget"]).is_dir():
            link.replace_self(link.children)


def setup(app: Sphinx) -> None:
    app.connect("doctree-read", without_what_is_elsewhere)
    app.connect("autodoc-process-signature", without_signature)
    app.add_role_to_domain("py", "name", Name())
    app.add_lexer("python", find_lexer_class_by_name("ipython3"))  # cells have magics
