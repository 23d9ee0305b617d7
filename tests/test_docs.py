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
from importlib.util import find_spec
from inspect import isclass, isfunction
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import forget_runs
from mmengine.config import Config
from mmengine.registry import HOOKS, MODELS, init_default_scope

import mmlavit
from mmlavit.shipped import CONFIGS, config_names

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').rglob('*.md'))]

FENCE = re.compile(r'(?:^<!-- (\w+) -->\n)?^```([^\n]*)\n(.*?)^```$', re.MULTILINE | re.DOTALL)
LINK = re.compile(r'\]\((?!\w+:)([^)\s#]*)(?:#([^)\s]+))?\)')
HEADING = re.compile(r'^#+ +(.+)$', re.MULTILINE)
# What a page names as a file of the repository.
NAMED_FILE = re.compile(
    r'(?<![\w/.-])(?:benchmarks|configs|mmlavit|requirements|tests|tools)/[\w./-]*\.(?:py|sh|txt)\b'
)
# A command: the script, and what follows it on the same and on continued lines.
COMMAND = re.compile(
    r'(?:(?:python|bash) (?:tools|benchmarks)/|python -m mmlavit )(\w+)(?:\.py|\.sh)?\b'
    r'((?:\\\n|[^\n`|#])*)'
)
CHECKPOINT = re.compile(r'([\w.-]+)/(epoch|iter)_(\d+)\.pth')
ASSIGNMENT = re.compile(r'(?:^|(?<= ))(\w+)=([^\s$]+)(?=[\s])', re.MULTILINE)
OPTION = re.compile(r'(?<![\w-])--[a-z][\w-]*')


class Block(NamedTuple):
    """A fenced block of a page."""

    page: Path
    mark: str
    language: str
    text: str
    line: int


def name(item: Path | Block) -> str:
    """What a test of it is called."""
    page = item.page if isinstance(item, Block) else item
    line = f':{item.line}' if isinstance(item, Block) else ''
    return f'{page.relative_to(ROOT)}{line}'


BLOCKS = [
    Block(page, found[1] or '', found[2], found[3], text.count('\n', 0, found.start()) + 1)
    for page in PAGES
    for text in [page.read_text('utf-8')]
    for found in FENCE.finditer(text)
]
PYTHON_BLOCKS = [block for block in BLOCKS if block.language == 'python']


@cache
def anchors(page: Path) -> set[str]:
    """The anchors that a Markdown viewer gives the headings of a page."""
    headings = HEADING.findall(FENCE.sub('', page.read_text('utf-8')))
    return {re.sub(r'[^\w\- ]', '', text.lower()).replace(' ', '-') for text in headings}


@cache
def options(script: str) -> set[str]:
    """The options in the help of a script in tools/ or benchmarks/."""
    script = re.sub(r'^(?:dist|slurm)_(?=train$|test$)', '', script)
    path = next(
        p for p in (ROOT / f'tools/{script}.py', ROOT / f'benchmarks/{script}.py') if p.exists()
    )
    if 'Parser' not in path.read_text('utf-8'):
        return set()  # it would not print its help, but do its work
    printed = io.StringIO()
    before = sys.argv, sys.path[:]
    sys.argv = [str(path), '--help']
    sys.path.insert(0, str(path.parent))
    try:
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            runpy.run_path(str(path), run_name='__main__')
    finally:
        sys.argv, sys.path[:] = before
    return set(OPTION.findall(printed.getvalue()))


@pytest.mark.parametrize('page', PAGES, ids=name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    """Every relative link of a page has a target in the repository, with its anchor."""
    broken = []
    for link, anchor in LINK.findall(FENCE.sub('', page.read_text('utf-8'))):
        target = (page.parent / link).resolve() if link else page
        if not target.exists():
            broken.append(link)
        elif anchor and anchor not in anchors(target):
            broken.append(f'{link}#{anchor}')
    assert not broken


@pytest.mark.parametrize('page', PAGES, ids=name)
def test_named_files_exist(page: Path) -> None:
    """A script, config, module or requirement file that a page names is there."""
    named = set(NAMED_FILE.findall(page.read_text('utf-8')))
    assert not [path for path in sorted(named) if not (ROOT / path).is_file()]


@pytest.mark.parametrize('page', PAGES, ids=name)
def test_commands_have_their_options(page: Path) -> None:
    """Every option of a command in a page is in the help of its script."""
    unknown = [
        f'{script} {option}'
        for script, rest in COMMAND.findall(page.read_text('utf-8'))
        for option in OPTION.findall(rest)
        if option not in options(script)
    ]
    assert not unknown


@pytest.mark.parametrize('page', PAGES, ids=name)
def test_checkpoints_are_the_last_of_their_config(page: Path) -> None:
    """A page names the file that training with the config of that name leaves at its end."""
    configs = {Path(path).stem: path for path in config_names()}
    for folder, unit, number in CHECKPOINT.findall(page.read_text('utf-8')):
        if folder in configs:
            cfg = Config.fromfile(CONFIGS / configs[folder])
            assert int(number) == cfg.train_cfg[f'max_{unit}s'], f'{folder}/{unit}_{number}.pth'


@pytest.mark.parametrize('block', [b for b in BLOCKS if b.language == 'bash'], ids=name)
def test_shell_blocks_name_configs_and_scripts_that_exist(block: Block) -> None:
    """As a path in the checkout, by the name of a shipped config, or a config of the same page."""
    text = block.text
    for variable, value in ASSIGNMENT.findall(text):
        text = text.replace(f'${variable}', value)
    shipped = {Path(path).name for path in config_names()}
    own = set(re.findall(r'^# (\w+\.py)$', block.page.read_text('utf-8'), re.MULTILINE))
    named = re.findall(r'[\w./$-]+\.py\b', text)
    assert not [path for path in named if path not in shipped | own and not (ROOT / path).exists()]


@pytest.mark.parametrize('block', PYTHON_BLOCKS, ids=name)
def test_python_is_python(block: Block) -> None:
    """A Python block is at least valid syntax."""
    ast.parse(block.text)


@pytest.mark.parametrize('block', [b for b in PYTHON_BLOCKS if b.mark == 'run'], ids=name)
def test_program_runs(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block marked as a program runs by itself, in any directory."""
    monkeypatch.chdir(tmp_path)
    exec(compile(block.text, name(block), 'exec'), {'__name__': '__main__'})


@pytest.mark.parametrize('block', [b for b in PYTHON_BLOCKS if b.mark == 'config'], ids=name)
def test_config_builds_its_model(block: Block, tmp_path: Path) -> None:
    """A block marked as a config is read in the root of a checkout; model and hooks are built."""
    (tmp_path / 'configs').symlink_to(ROOT / 'configs')
    path = tmp_path / 'config.py'
    path.write_text(block.text)
    forget_runs()
    try:
        cfg = Config.fromfile(path)
        init_default_scope(cfg.default_scope)
        MODELS.build(cfg.model)
        for hook in cfg.get('custom_hooks') or []:
            HOOKS.build(hook)
    finally:
        forget_runs()


def test_every_mark_is_known() -> None:
    """A misspelt mark would silently switch the test of its block off."""
    comment = re.compile(r'^<!-- *(.*?) *-->\n+```python', re.MULTILINE)
    marks = [mark for page in PAGES for mark in comment.findall(page.read_text('utf-8'))]
    assert set(marks) == {'run', 'config'}
    assert len(marks) == sum(bool(block.mark) for block in PYTHON_BLOCKS)


@pytest.fixture(scope='module')
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages as a site, built without a warning and without a network."""
    folder = tmp_path_factory.mktemp('site')
    nowhere = dict.fromkeys(('http_proxy', 'https_proxy', 'all_proxy'), 'http://127.0.0.1:9')
    build = subprocess.run(
        [sys.executable, '-m', 'sphinx', '-W', '--keep-going', '-q']
        + ['-d', str(folder / 'doctrees'), str(ROOT / 'docs'), str(folder / 'site')],
        env=os.environ | nowhere,
        capture_output=True,
        text=True,
    )
    assert build.returncode == 0, build.stderr
    return folder / 'site'


needs_sphinx = pytest.mark.skipif(
    find_spec('sphinx') is None, reason='Sphinx is not installed: make setup'
)


@pytest.mark.slow
@needs_sphinx
def test_site_has_every_page_and_fetches_nothing(site: Path) -> None:
    """Every page is in the navigation, every reference resolves, and pages are complete."""
    fetched = re.compile(r'<(?:script|link|img|iframe)\b[^>]*(?:src|href)="(?:https?:)?//[^"]*"')
    html = {page: page.read_text('utf-8') for page in site.rglob('*.html')}
    assert {p.with_suffix('').name for p in (ROOT / 'docs').rglob('*.md')} <= {p.stem for p in html}
    assert not [found for text in html.values() for found in fetched.findall(text)]
    assert 'LessAttention' in html[site / 'api/models.html']


@pytest.mark.slow
@needs_sphinx
def test_reference_has_every_public_name(site: Path) -> None:
    """Functions and classes of each ``__all__``; not those of tools, nor timm's names."""
    inventory = (site / 'objects.inv').read_bytes().split(b'\n', 4)[4]
    entries = re.findall(r'^(\S+) py:', zlib.decompress(inventory).decode(), re.MULTILINE)
    documented = {entry.rpartition('.')[2] for entry in entries if entry.startswith('mmlavit.')}
    missing = []
    for module in pkgutil.walk_packages(mmlavit.__path__, 'mmlavit.'):
        if not re.match(r'mmlavit\.(checks|cli|timm|__main__)\b', module.name):
            code = import_module(module.name)
            public = {name: getattr(code, name) for name in getattr(code, '__all__', [])}
            objects = {n for n, value in public.items() if isclass(value) or isfunction(value)}
            missing += [f'{module.name}.{name}' for name in sorted(objects - documented)]
    assert not missing
    assert {'mmlavit.create_model', 'mmlavit.list_models', 'mmlavit.config_path'} <= set(entries)
