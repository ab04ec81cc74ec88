"""The documentation's site: ``make docs`` writes build/docs/index.html."""

import re
from pathlib import Path

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util.logging import getLogger

import cmx_fast

ROOT = Path(__file__).resolve().parents[1]
project = "cmx_fast"
author = "The cmx_fast maintainers"
release = cmx_fast.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
html_theme = "furo"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = False
highlight_language = "none"  # of blocks without a language: commands and diagrams
html_title = "cmx_fast"
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
# Methods of scikit-learn's own that refer to its pages.
autodoc_default_options = {
    "exclude-members": "get_metadata_routing, set_fit_request, set_output, set_partial_fit_request, "
    "set_predict_request, set_score_request"
}
napoleon_use_ivar = True
# The docstrings' blocks "Call", "Memory" and the like are as free as their "Args" are fixed.
napoleon_custom_sections = [("Call", "Example"), "Memory", "Cost"]

#: Pages of the site that lie at the root of the repository.
AT_ROOT = {
    "index": "README.md",
    "contributing": "CONTRIBUTING.md",
    "changes": "CHANGELOG.md",
    "security": "SECURITY.md",
}
# In docstrings "(*, N, D)" is a shape, "labels_" an attribute and "|x|" a length: none is markup.
MARKUP = re.compile(r"(``.*?``|:\w+:`.*?`|`[^`]*`)|(?<![*\w\\])\*(?![*\s])|(?<=\w)_(?!\w)|\|")


def read_from_root(app, docname, content):
    """Put a page of the root in the place of its stub, and lead all links to such pages to the site's own."""
    if docname in AT_ROOT:
        text = (ROOT / AT_ROOT[docname]).read_text()
        text = re.sub(r"\]\((?!docs/|\w+:|#)(?!\w+\.md)", "](../", text).replace("](docs/", "](")
        content[0] = text + content[0]
    for page, file in AT_ROOT.items():
        content[0] = re.sub(rf"\]\((\.\./)*{re.escape(file)}", rf"](/{page}.md", content[0])


def escape(app, what, name, obj, options, lines):
    """Make reStructuredText of docstrings that are written to be read; mathematics and examples stay as they are."""
    literal = None
    for number, line in enumerate(lines):
        text, indent = line.lstrip(), len(line) - len(line.lstrip())
        if literal is not None and text and indent <= literal:
            literal = None
        if text.startswith(".. math::") or text.endswith("::"):
            literal = indent
        if literal is None and not text.startswith((".. ", ">>> ", "... ")):
            lines[number] = MARKUP.sub(lambda match: match[1] or "\\" + match[0], line)


def write_formula(translator, node):
    """Write a formula as MathML, which browsers show by themselves: MathJax would be fetched from elsewhere."""
    block = isinstance(node, nodes.math_block)
    try:
        formula = tex2mathml(node.astext(), as_block=block)
    except MathError as error:
        formula = ""
        getLogger(__name__).warning("formula: %s", error, location=node)
    translator.body.append(f'<div class="math">{formula}</div>' if block else formula)
    raise nodes.SkipNode


def setup(app):
    app.add_html_math_renderer("mathml", (write_formula, None), (write_formula, None))
    app.connect("source-read", read_from_root)
    app.connect("autodoc-process-docstring", escape, priority=900)  # after napoleon
