"""The pages: links lead somewhere, snippets run, commands exist, the site builds without a warning.

In a page, ``<!-- run -->`` before a Python block marks a program, and ``<!-- config -->`` a config
file in the root of a checkout. Other Python blocks need only be Python.
"""

import ast
import contextlib
import io
import os
import pkgutil
import re
import runpy
import subprocess
import sys
import zlib
from functools import cache
from importlib import import_module
from inspect import isclass, isfunction
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import ROOT, forget_runs
from mmengine.config import Config
from mmengine.registry import HOOKS, MODELS, init_default_scope
from mmengine.visualization import Visualizer

import mmlavit
from mmlavit.shipped import CONFIGS, config_names

PAGES = [
    ROOT / 'README.md',
    *sorted(CONFIGS.glob('*/README.md')),
    *sorted((ROOT / 'docs').rglob('*.md')),
]
SCRIPTS = {
    path.stem: path for name in ('tools', 'benchmarks') for path in (ROOT / name).rglob('*.py')
}

FENCE = re.compile(r'(?:^<!-- (\w+) -->\n)?^```([^\n]*)\n(.*?)^```$', re.MULTILINE | re.DOTALL)
LINK = re.compile(r'\]\((?!\w+:)([^)\s#]*)(?:#([^)\s]+))?\)')
HEADING = re.compile(r'^#+ +(.+)$', re.MULTILINE)
# What a page names as a file of the repository.
NAMED_FILE = re.compile(
    r'(?<![\w/.-])(?:benchmarks|configs|mmlavit|requirements|tests|tools)/[\w./-]*\.(?:py|sh|txt)\b'
)
# A command: the script, and what follows it on the same and on continued lines.
COMMAND = re.compile(
    r'(?:(?:python|bash) (?:tools|benchmarks)/(?:\w+/)?|(?:`|^)(?:python -m )?mmlavit )'
    r'(?:(?:dist|slurm)_)?(\w+)(?:\.py|\.sh)?\b((?:\\\n|[^\n`|#])*)',
    re.MULTILINE,
)
CHECKPOINT = re.compile(r'([\w.-]+)/(epoch|iter)_(\d+)\.pth')
OPTION = re.compile(r'(?<![\w-])--[a-z][\w-]*')


class Block(NamedTuple):
    """A fenced block of Python."""

    name: str  # of its page, with its line
    mark: str
    text: str


def name(item: Path | Block) -> str:
    """What a test of it is called."""
    return item.name if isinstance(item, Block) else str(item.relative_to(ROOT))


PYTHON_BLOCKS = [
    Block(f'{name(page)}:{text.count(chr(10), 0, found.start()) + 1}', found[1] or '', found[3])
    for page in PAGES
    for text in [page.read_text('utf-8')]
    for found in FENCE.finditer(text)
    if found[2] == 'python'
]


@cache
def anchors(page: Path) -> set[str]:
    """The anchors that a Markdown viewer gives the headings of a page."""
    headings = HEADING.findall(FENCE.sub('', page.read_text('utf-8')))
    return {re.sub(r'[^\w\- ]', '', text.lower()).replace(' ', '-') for text in headings}


@cache
def options(path: Path) -> set[str]:
    """The options in the help of a script."""
    if 'parser' not in path.read_text('utf-8').lower():
        return set()  # it would not print its help, but do its work
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(sys, 'argv', [str(path), '--help'])
        patch.syspath_prepend(path.parent)
        with contextlib.suppress(SystemExit):
            runpy.run_path(str(path), run_name='__main__')
    return set(OPTION.findall(printed.getvalue()))


@pytest.mark.parametrize('page', PAGES, ids=name)
def test_what_a_page_names_exists(page: Path) -> None:
    """Links with their anchors, files, options of commands; training ends in its checkpoint."""
    text = page.read_text('utf-8')
    broken = [path for path in NAMED_FILE.findall(text) if not (ROOT / path).is_file()]
    for link, anchor in LINK.findall(FENCE.sub('', text)):
        target = (page.parent / link).resolve() if link else page
        if not target.exists() or anchor and anchor not in anchors(target):
            broken.append(f'{link}#{anchor}')
    broken += [
        f'{script} {option}'
        for script, rest in COMMAND.findall(text)
        for option in OPTION.findall(rest)
        if script not in SCRIPTS or option not in options(SCRIPTS[script])
    ]
    assert not broken
    configs = {Path(path).stem: path for path in config_names()}
    for folder, unit, number in CHECKPOINT.findall(text):
        if folder in configs:
            cfg = Config.fromfile(CONFIGS / configs[folder])
            assert int(number) == cfg.train_cfg[f'max_{unit}s'], f'{folder}/{unit}_{number}.pth'


@pytest.mark.parametrize('block', PYTHON_BLOCKS, ids=name)
def test_python_is_python_and_runs_as_it_is_marked(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program in any directory; a config builds its model and hooks."""
    monkeypatch.chdir(tmp_path)
    ast.parse(block.text)
    if block.mark == 'run':
        exec(compile(block.text, block.name, 'exec'), {'__name__': '__main__'})
    elif block.mark == 'config':
        Path('configs').symlink_to(ROOT / 'configs')
        Path('config.py').write_text(block.text)
        forget_runs()
        try:
            cfg = Config.fromfile('config.py')
            init_default_scope(cfg.default_scope)
            MODELS.build(cfg.model)
            Visualizer.get_instance('docs')  # a hook asks for one
            for hook in [*(cfg.get('custom_hooks') or []), *cfg.get('default_hooks', {}).values()]:
                HOOKS.build(hook)
        finally:
            forget_runs()
    else:
        assert not block.mark, 'a misspelt mark would switch the test of its block off'


@pytest.mark.slow
def test_the_site_builds_complete_and_fetches_nothing(tmp_path: Path) -> None:
    """Without a warning or a network, with every page and with every public name.

    Public are functions and classes of each ``__all__``; not those of tools, nor timm's names.
    """
    pytest.importorskip('sphinx')
    nowhere = dict.fromkeys(('http_proxy', 'https_proxy', 'all_proxy'), 'http://127.0.0.1:9')
    build = subprocess.run(
        [sys.executable, '-m', 'sphinx', '-W', '--keep-going', '-q']
        + ['-d', str(tmp_path / 'doctrees'), str(ROOT / 'docs'), str(tmp_path / 'site')],
        env=os.environ | nowhere,
        capture_output=True,
        text=True,
    )
    assert build.returncode == 0, build.stderr
    site = tmp_path / 'site'
    html = {page: page.read_text('utf-8') for page in site.rglob('*.html')}
    assert {p.with_suffix('').name for p in (ROOT / 'docs').rglob('*.md')} <= {p.stem for p in html}
    fetched = re.compile(r'<(?:script|link|img|iframe)\b[^>]*(?:src|href)="(?:https?:)?//[^"]*"')
    assert not [found for text in html.values() for found in fetched.findall(text)]
    # what a page names of the code opens its source
    links = re.findall(r'href="(_modules/[^"#]*)#([^"]*)"', html[site / 'paper_to_code.html'])
    assert links
    assert not [link for link in links if f'id="{link[1]}"' not in html[site / link[0]]]
    inventory = zlib.decompress((site / 'objects.inv').read_bytes().split(b'\n', 4)[4]).decode()
    documented = set(re.findall(r'^mmlavit\S*\.(\w+) py:', inventory, re.MULTILINE))
    for module in pkgutil.walk_packages(mmlavit.__path__, 'mmlavit.'):
        if not re.match(r'mmlavit\.(checks|cli|timm|__main__)\b', module.name):
            code = import_module(module.name)
            names = getattr(code, '__all__', [])
            public = {n for n in names if isclass(getattr(code, n)) or isfunction(getattr(code, n))}
            assert public <= documented, module.name
