"""Sphinx: ``make docs`` builds docs/_build/index.html."""

from importlib.metadata import version as installed

project, author, copyright = "advssl", "The advssl developers", "The advssl developers"
release = installed("advssl")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3
html_theme = "furo"
napoleon_custom_sections = ["Convention"]
autodoc_member_order = "bysource"
autodoc_typehints = "description"
suppress_warnings = ["myst.xref_missing"]  # links from a page into the repository
