"""How `make docs` builds the site: Sphinx, MyST, furo. Warnings are errors, and every reference leads somewhere."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any

from docutils import nodes

import neuronforget

project = "neuronforget"
author = "the neuronforget authors"
copyright = author
release = version = neuronforget.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
root_doc = "index"
nitpicky = True
# Other projects' types are named in signatures and not linked: the build asks no other host for their indices.
nitpick_ignore_regex = [("py:.*", r"(?!neuronforget\.).*")]
nitpick_ignore = [("py:class", "neuronforget.losses.parts.F")]  # what a mark takes and gives back: any loss

myst_heading_anchors = 4  # the same anchors that a forge makes
myst_links_external_new_tab = False

default_role = "literal"  # docstrings write `name` for code
add_module_names = False
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"neuronforget {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}

COLUMN = 736  # pixels between the margins of a page on a desk
LEAST = 0.75  # of its own size, below which a picture's words are too small

#: Public modules, in the order in which a name that several export is looked up.
PUBLIC = "neuronforget corpora scores select erase losses metrics testbed figures auditing".split()


def _homes() -> dict[str, str]:
    """Where an object is defined -> the name under which it is documented."""
    homes: dict[str, str] = {}
    for name in PUBLIC:
        module = neuronforget if name == "neuronforget" else import_module(f"neuronforget.{name}")
        for member in module.__all__:
            found = getattr(module, member)
            if hasattr(found, "__qualname__"):
                homes.setdefault(f"{found.__module__}.{found.__qualname__}", f"{module.__name__}.{member}")
    return homes


HOMES = _homes()


def resolve(app: Any, env: Any, node: Any, contnode: Any) -> Any:
    """Lead a type named by the file that defines it to its place in the reference."""
    if node.get("refdomain") != "py" or (home := HOMES.get(node["reftarget"])) is None:
        return None
    return env.domains["py"].resolve_xref(env, node["refdoc"], app.builder, "obj", home, node, contnode)


def readable(app: Any, kind: str, name: str, found: Any, options: Any, signature: Any, result: Any) -> Any:
    """Write a default that a dataclass makes anew as `...`: Sphinx cannot read what Python prints for it."""
    return (signature and signature.replace("<factory>", "..."), result)


def unbroken(app: Any, doctree: Any, name: str) -> None:
    """Keep a value and its interval on one line of a table's cell: a wide table scrolls."""
    for cell in doctree.findall(nodes.entry):
        for text in list(cell.findall(nodes.Text)):
            if " ± " in text:
                text.parent.replace(text, nodes.Text(text.replace(" ± ", "\u00a0±\u00a0")))


def spaced(app: Any, name: str, source: list[str]) -> None:
    """Put a picture's words for the blind on one line: MyST would join the words on both sides of a line's end."""
    source[0] = re.sub(r"!\[[^\]]*\]", lambda found: found[0].replace("\n", " "), source[0])


def legible(app: Any, doctree: Any, name: str) -> None:
    """Give each picture the width that its words need: what is wider than the page scrolls (`_static/site.css`)."""
    for image in doctree.findall(nodes.image):
        path = Path(app.srcdir, image["uri"])
        width = re.search(r'<svg[^>]* width="([\d.]+)"', path.read_text(encoding="utf-8"))
        if width is None:
            raise ValueError(f"{path} does not say how wide it is")
        wide = LEAST * float(width[1]) > COLUMN
        image["width"] = f"{float(width[1]) * (LEAST if wide else 1):.0f}px"
        image["classes"] += ["picture", *(["wide"] if wide else [])]


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", spaced)
    app.connect("doctree-resolved", unbroken)
    app.connect("doctree-resolved", legible)
    app.connect("autodoc-process-signature", readable)
    app.connect("missing-reference", resolve)
