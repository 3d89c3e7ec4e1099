"""The site: the guides where they lie in the repository, and the docstrings. Built by `make docs`."""

import re
from pathlib import Path

import maps_optax

project = "maps_optax"
author = "the authors of maps_optax"
release = version = maps_optax.__version__

# The source directory is the repository, so that a link between two guides is the same here and in a file viewer.
root_doc = "README"
include_patterns = [
    "*.md",
    "docs/*.md",
    "maps_optax/*.md",
    "octo_integration/*.md",
    "examples/*.md",
    "benchmarks/**.md",
]
source_suffix = {".md": "markdown"}
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]

myst_heading_anchors = 3
highlight_language = "none"  # of blocks that name none
default_role = "code"  # docstrings write `names` with single backticks
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # Args says what they are
napoleon_use_param = napoleon_use_rtype = False

html_theme = "sphinx_book_theme"
html_title = "maps_optax"
html_theme_options = {"show_toc_level": 2, "home_page_in_toc": True, "navbar_persistent": []}
html_copy_source = html_show_sourcelink = False

# The front page is README.md, which says nothing of a site; its side bar is added here.
CONTENTS = """

```{toctree}
:hidden:

maps_optax/README
octo_integration/README
docs/own_data
examples/README
docs/api
benchmarks/README
docs/troubleshooting
CONTRIBUTING
CHANGELOG
```
"""
BENCHMARKS = """

```{toctree}
:hidden:
:glob:

*/*
```
"""


def add_contents(app, docname, source):
    """Adds the tables of contents that the guides do not have themselves."""
    source[0] += {"README": CONTENTS, "benchmarks/README": BENCHMARKS}.get(docname, "")


def as_rst(app, what, name, obj, options, lines):
    """Docstrings as they are written: code is indented below a colon, `name`s and **options are words."""
    for i, line in enumerate(lines):
        line = re.sub(r"(`[^`]+`)(?=\w)", r"\1\\ ", line)
        line = re.sub(r"(?<![\w*`])\*\*(?=\w+[:,])", r"\\*\\*", line)
        below = lines[i + 1 : i + 3]
        indented = len(below) == 2 and not below[0] and _indent(below[1]) > _indent(line)
        lines[i] = line + ":" if indented and re.search(r"(?<!:):$", line) else line


def _indent(line):
    return len(line) - len(line.lstrip())


def write_index(app, error):
    """Makes index.html lead to the front page."""
    if error is None:
        Path(app.outdir, "index.html").write_text(
            '<!doctype html><meta http-equiv="refresh" content="0; url=README.html">\n'
        )


def setup(app):
    """Called by Sphinx."""
    app.connect("source-read", add_contents)
    app.connect("autodoc-process-docstring", as_rst, priority=400)  # before napoleon
    app.connect("build-finished", write_index)
