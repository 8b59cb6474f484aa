"""Sphinx configuration."""

project = "tensorfusion"
author = "the TensorFusion in Python authors"
copyright = "2026, the authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "changelog.d"]
html_theme = "furo"
html_title = "tensorfusion"
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
suppress_warnings = ["myst.xref_missing"]
