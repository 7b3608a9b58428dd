"""The documentation site: Sphinx, pages in Markdown by MyST, the theme furo; nothing is fetched while it builds.

scripts/docs [FOLDER]    builds it, strictly, into build/docs
"""

from __future__ import annotations

import pkgutil
import re
import sys
from typing import Any

from fastsample.version import __version__

project = "fastsample"
author = "the fastsample authors"
copyright = author
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build", "_static"]
html_theme = "furo"
html_title = "fastsample"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_copy_source = False
html_show_copyright = False

myst_heading_anchors = 3

default_role = "code"
autodoc_typehints = "signature"
maximum_signature_line_length = 140  # of the text with the types' whole names
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_display_short_literal_types = True
python_use_unqualified_type_names = True
nitpicky = True
nitpick_ignore_regex = [("py:class", ".*")]  # types in signatures, which need no page; other references are checked

_ARGUMENT = re.compile(r"([a-z_]\w*): (?=\S)")


def house_docstring(app: Any, what: str, name: str, it: object, options: Any, lines: list[str]) -> None:
    """From the house's docstrings to reStructuredText, paragraph by paragraph."""
    lines[:] = "\n\n".join(_paragraph(text) for text in re.split(r"\n\s*\n", "\n".join(lines))).split("\n")


def _paragraph(text: str) -> str:
    """An indented paragraph is code; lines `name: what it is` are a list, continued by indented lines."""
    lines = text.split("\n")
    if all(line.startswith("    ") for line in lines):
        return "::\n\n" + text
    made: list[str] = []
    listed = False
    for line in lines:
        argument = _ARGUMENT.match(line)
        if argument:
            made += ["", "* " + _ARGUMENT.sub(r"**\1**: ", line, count=1)]
        elif listed and line.startswith("    "):
            made.append("  " + line.strip())
        else:
            made += ["", line] if listed else [line]
        listed = argument is not None or (listed and line.startswith("    "))
    return "\n".join(made)


def plain_signature(
    app: Any, what: str, name: str, it: object, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """A default that a dataclass makes anew is no expression, without which Sphinx leaves the types as they are."""
    return signature and signature.replace("<factory>", "..."), returns


def inner_reference(app: Any, env: Any, node: Any, content: Any) -> Any:
    """What docstrings say of modules without a page here is shown as code, where it exists at all."""
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py":
        return None
    if target.startswith("fastsample."):
        try:
            pkgutil.resolve_name(target)
        except (ImportError, AttributeError):
            return None
        return content
    ours = [module for name, module in sys.modules.items() if name.split(".")[0] == "fastsample"]
    return content if any(hasattr(module, target.split(".")[0]) for module in ours) else None


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", house_docstring)
    app.connect("autodoc-process-signature", plain_signature)
    app.connect("missing-reference", inner_reference)
