"""Sphinx builds the site of this folder: `make docs`."""

from mmlavit import __version__

project = 'mmlavit'
author = 'mmlavit contributors'
project_copyright = '%Y, mmlavit contributors'
version = release = __version__

extensions = [
    'myst_parser',
    'sphinx.ext.autodoc',
    'sphinx.ext.napoleon',
    'sphinx.ext.viewcode',
    'sphinx_copybutton',
]
html_theme = 'furo'
html_title = f'mmlavit {version}'

# The anchors are those of a Markdown viewer: paper_to_code.md#equations.
myst_heading_anchors = 3

autodoc_default_options = {'members': True, 'show-inheritance': True}
autodoc_inherit_docstrings = False
autodoc_member_order = 'bysource'
autodoc_typehints_format = 'short'
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
