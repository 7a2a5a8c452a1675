"""The documentation site: `sphinx-build -W -n --keep-going docs build/docs`."""

import re

import sapsel_jax as sap

project = "sapsel_jax"
author = "The sapsel_jax authors"
release = version = sap.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["examples"]

html_theme = "sphinx_book_theme"
html_title = f"sapsel_jax {release}"
html_copy_source = False
html_theme_options = {"show_toc_level": 2, "use_download_button": False}

myst_heading_anchors = 3
# The signature names the arguments; the text says what they are.
autodoc_typehints = "none"
autodoc_preserve_defaults = True
# Sections of prose.
napoleon_custom_sections = [("Returns", "prose"), ("Cost", "prose"), ("Source", "prose")]
napoleon_use_ivar = True
napoleon_attr_annotations = False

PUBLIC = {name: f"sapsel_jax.{name}" for name in sap.__all__} | {
    name: f"sapsel_jax.audit.{name}" for name in sap.audit.__all__
}


def to_rst(app, what, name, obj, options, lines):
    """Turns the plain text of a docstring into what napoleon and reStructuredText read."""
    text, examples = "\n".join(lines).split("\nExample:", 1)[0], "\n".join(lines)
    examples = examples[len(text) :]
    text = re.sub(r"^Raises: nothing.*\n(  .*\n)*\n", "", text, flags=re.MULTILINE)
    # "Cost: one pass" is a section whose text begins on its first line.
    text = re.sub(r"^(Raises|Cost|Source): (?=\S)", r"\1:\n  ", text, flags=re.MULTILINE)
    # An indented paragraph of the rule is a formula.
    head, *sections = re.split(r"(?m)^(?=\w+:$)", text)
    head = re.sub(r"\n\n(?=    \S)", "\n\n::\n\n", head)
    prose = [part if part.startswith("    ") else _inline(part) for part in head.split("\n\n")]
    text = "\n\n".join(prose) + "".join(map(_inline, sections))
    lines[:] = (text + examples).split("\n")


def _inline(text):
    """Code in single backticks, with a link where it is a public name; no other markup."""
    parts = re.split(r"`([^`]*)`", text)
    for i, part in enumerate(parts):
        if i % 2 == 0:
            # Code that a letter follows, as in `count`², needs an empty space to end.
            space = r"\ " if i and re.match(r"\w", part) else ""
            parts[i] = space + re.sub(r"([*|\\_])", r"\\\1", part)
        elif part in PUBLIC:
            parts[i] = f":py:obj:`~{PUBLIC[part]}`"
        else:
            parts[i] = f"``{part}``"
    return "".join(parts)


def link_reports(app, docname, source):
    """Links that lead to reports in the repository lead to their pages here."""
    to = "" if docname.startswith("reports/") else "../" * docname.count("/") + "reports/"
    source[0] = re.sub(
        r"\((?:\.\./)+benchmarks/results/([\w-]+)/report\.md\)", rf"({to}\1.md)", source[0]
    )


def setup(app):
    """Before napoleon, which has the priority 500."""
    app.connect("autodoc-process-docstring", to_rst, priority=400)
    app.connect("source-read", link_reports)
