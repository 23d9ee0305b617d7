"""Sphinx builds the site of this folder: `make docs`."""

import re

from docutils import nodes
from sphinx.addnodes import download_reference
from sphinx.application import Sphinx

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


def offer_readmes(app: Sphinx, page: str, source: list[str]) -> None:
    """Let a link to a page that is not of the site download it."""
    link = r'\[([^\]]+)\]\((\.\./[\w/]*README\.md)(?:#[^)]*)?\)'
    source[0] = re.sub(link, r'{download}`\1 <\2>`', source[0])


def open_sources(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Let a link to a module of the package open its source instead of downloading the file."""
    documented = {name.rpartition('.')[2] for name in app.env.get_domain('py').objects}
    for link in list(doctree.findall(download_reference)):
        module = re.fullmatch(r'(?:\.\./)+(mmlavit/.*)\.py', link['reftarget'])
        name = link.astext()
        if module and name.partition('.')[0] in documented:
            uri = f'{"../" * page.count("/")}_modules/{module[1]}.html#{name}'
            link.replace_self(nodes.reference('', '', *link.children, refuri=uri))


def setup(app: Sphinx) -> None:
    app.connect('source-read', offer_readmes)
    app.connect('doctree-resolved', open_sources)
