"""Sphinx: ``make docs`` builds docs/_build/index.html."""

from __future__ import annotations

import re
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

HERE = Path(__file__).parent

project, author, copyright = "advssl", "The advssl developers", "The advssl developers"
release = installed("advssl")
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build", "jupyter_execute"]  # the latter is left there by myst_nb
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the tests run it
html_theme = "furo"
html_title = "advssl"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0072b2", "color-brand-content": "#0072b2"},
    "dark_css_variables": {"color-brand-primary": "#56b4e9", "color-brand-content": "#56b4e9"},
}
html_math_renderer = "mathml"
napoleon_custom_sections = ["Convention"]
autodoc_member_order = "bysource"
autodoc_typehints = "description"


def inline_svg(app: Any, doctree: nodes.document, _: str) -> None:
    """Figures as part of the page, so that they have its colours, light and dark."""
    for image in [*doctree.findall(nodes.image)]:
        if image["uri"].endswith(".svg"):
            text = (Path(app.srcdir) / image["uri"]).read_text(encoding="utf-8")
            text = re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)
            text = re.sub(r'<svg role="img" aria-label="[^"]*"', "<svg", text)  # its file's name
            label = nodes.Text(image.get("alt", "")).astext().replace('"', "&quot;")
            # Text stays legible on a phone: what does not fit there is moved sideways.
            (width,) = re.findall(r'<svg [^>]*?width="([\d.]+)pt"', text)
            least = f'style="min-width: {0.69 * float(width):.0f}pt"'
            text = text.replace("<svg ", f'<svg {least} role="img" aria-label="{label}" ', 1)
            figure = f'<div class="drawing" tabindex="0">{text}</div>'
            image.parent.replace(image, nodes.raw("", figure, format="html"))


def inline_math(translator: Any, node: nodes.math) -> None:
    translator.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def display_math(translator: Any, node: nodes.math_block) -> None:
    translator.body.append(
        f'<div class="math" tabindex="0">{tex2mathml(node.astext(), as_block=True)}</div>'
    )
    raise nodes.SkipNode


def setup(app: Any) -> None:
    """MathML by docutils: no script, and no service that a page would ask."""
    app.add_html_math_renderer("mathml", (inline_math, None), (display_math, None))
    app.connect("doctree-resolved", inline_svg)
