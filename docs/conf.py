"""Sphinx builds docs/ by it: `make docs`; `make check` builds them too, and every warning is an error there."""

project = "Thaw"
author = "The Thaw developers"
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
root_doc = "index"
html_theme = "furo"
html_title = "Thaw"
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
nitpicky = True
# Copies of what a code block says would need a lexer for each tool's output.
highlight_language = "text"
