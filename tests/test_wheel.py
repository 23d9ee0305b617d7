"""The package as others get it: a source archive, a wheel from it, an environment without a clone.

The environment sees the dependencies of the one that runs the tests, and mmlavit from the wheel.
"""

import fnmatch
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import mmpretrain
import pytest
from conftest import ROOT

from mmlavit import __version__
from mmlavit.shipped import config_names

pytestmark = pytest.mark.slow

CLONE_TOOLS = {'demo.py', 'doctor.py', 'readme_tables.py', 'setup_env.py'}
# not part of a clone, however its owner left it
LEFTOVERS = ('.*', '*.egg-info', '__pycache__', 'build', 'data', 'dist', 'work_dirs')
OWN_CONFIG = """
_base_ = [__import__('mmlavit').config_path('shapes/lavit-nano_shapes-cls.py')]
test_dataloader = dict(batch_size=3)
"""


def run(*command: object, cwd: Path) -> str:
    """Run a command that must succeed, with nothing of this interpreter's path."""
    env = {key: value for key, value in os.environ.items() if not key.startswith('PYTHON')}
    words = [str(word) for word in command]
    done = subprocess.run(
        words, cwd=cwd, env=env | {'OMP_NUM_THREADS': '1'}, capture_output=True, text=True
    )
    assert done.returncode == 0, f'{" ".join(words)}\n{done.stdout}\n{done.stderr}'
    return done.stdout


@pytest.fixture(scope='module')
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source archive of a copy of this clone, which stays free of what a build leaves."""
    folder = tmp_path_factory.mktemp('sdist')
    clone = folder / 'clone'
    shutil.copytree(ROOT, clone, ignore=lambda path, names: ignored(Path(path), names))
    build = "import sys; from setuptools import build_meta; build_meta.build_sdist('..')"
    run(sys.executable, '-c', build, cwd=clone)
    return folder / f'mmlavit-{__version__}.tar.gz'


def ignored(path: Path, names: list[str]) -> set[str]:
    """What a copy of the clone leaves out; deeper down, only caches."""
    patterns = LEFTOVERS if path == ROOT else ('__pycache__',)
    return {name for pattern in patterns for name in fnmatch.filter(names, pattern)}


@pytest.fixture(scope='module')
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that pip builds from the source archive."""
    folder = tmp_path_factory.mktemp('wheel')
    pip = (sys.executable, '-m', 'pip', 'wheel', '--no-deps', '--no-build-isolation')
    run(*pip, '--no-index', '--wheel-dir', folder, sdist, cwd=folder)
    (built,) = folder.glob('*.whl')
    return built


@pytest.fixture(scope='module')
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the wheel."""
    venv = tmp_path_factory.mktemp('venv')
    run(sys.executable, '-m', 'venv', '--without-pip', venv, cwd=venv)
    (site,) = venv.glob('lib/python*/site-packages')
    # Python reads no .pth file of a folder that a .pth file adds, thus not the editable mmlavit's.
    (site / 'dependencies.pth').write_text(sysconfig.get_path('purelib'))
    pip = (sys.executable, '-m', 'pip', '--python', venv / 'bin/python', 'install', '--no-deps')
    run(*pip, '--no-index', wheel, cwd=venv)
    return venv / 'bin/python'


def files_of(root: Path) -> set[str]:
    """Files below a folder, but for caches."""
    paths = (path for path in root.rglob('*') if path.is_file())
    return {path.relative_to(root).as_posix() for path in paths if '__pycache__' not in path.parts}


def test_source_archive_is_complete(sdist: Path) -> None:
    """It holds what builds, documents, tests and cites the package, and no leftovers."""
    with tarfile.open(sdist) as archive:
        names = {name.partition('/')[2] for name in archive.getnames()}
    for folder in ('configs', 'docs', 'mmlavit', 'requirements', 'tests', 'tools'):
        assert {f'{folder}/{name}' for name in files_of(ROOT / folder)} <= names
    assert {'CITATION.cff', 'LICENSE', 'README.md', 'model-index.yml', 'setup.py'} <= names
    assert [name for name in names if name.endswith('.pyc') or '__pycache__' in name] == []


def test_wheel_carries_configs_and_tools(wheel: Path) -> None:
    """All configs, and every tool but those of a clone, lie in ``mmlavit/.mim``."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith('/')}
    tops = {PurePosixPath(name).parts[0] for name in names}
    assert tops == {'mmlavit', f'mmlavit-{__version__}.dist-info'}
    expected = {f'configs/{name}' for name in files_of(ROOT / 'configs')}
    expected |= {f'tools/{name}' for name in files_of(ROOT / 'tools') - CLONE_TOOLS}
    prefix = 'mmlavit/.mim/'
    shipped = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    assert shipped == expected | {'model-index.yml'}
    code = {f'mmlavit/{name}' for name in files_of(ROOT / 'mmlavit')}
    assert {name for name in names if name.startswith('mmlavit/')} - code == {
        prefix + name for name in shipped
    }


def test_every_shipped_config_is_read_from_an_empty_directory(python: Path, tmp_path: Path) -> None:
    """Their bases are found, and none looks for data in the environment."""
    code = (
        'import mmlavit; print(mmlavit.__file__)\n'
        'from mmengine.config import Config\n'
        'from mmlavit.shipped import config_names, config_path\n'
        'for name in config_names():\n'
        '    loader = Config.fromfile(config_path(name)).train_dataloader\n'
        '    print(name, loader.dataset.data_root)\n'
    )
    location, *lines = run(python, '-c', code, cwd=tmp_path).splitlines()
    assert Path(location).is_relative_to(python.parents[1])
    roots = dict(line.split() for line in lines)
    assert list(roots) == config_names()
    assert {root.split('/')[0] for root in roots.values()} == {'data'}


def test_quick_start_from_an_empty_directory(python: Path, tmp_path: Path) -> None:
    """Make Shapes, train and test, transfer, and inherit from a config with upstream's own tool."""
    site = python.parents[1]
    before = files_of(site)
    mmlavit = (python, '-m', 'mmlavit')
    sizes = ('--num-classification', 12, 6, '--num-scenes', 2, 1)
    run(*mmlavit, 'make_shapes', *sizes, cwd=tmp_path)
    config = 'lavit-nano_shapes-cls.py'
    options = ('--cfg-options', 'train_cfg.max_epochs=1', 'default_hooks.logger.interval=1')
    assert 'loss_dp' in run(*mmlavit, 'train', config, *options, cwd=tmp_path)
    checkpoint = tmp_path / 'work_dirs/lavit-nano_shapes-cls/epoch_1.pth'
    assert 'accuracy/top1' in run(*mmlavit, 'test', config, checkpoint, cwd=tmp_path)

    start = f'model.backbone.init_cfg.checkpoint={checkpoint}'
    log = 'default_hooks.logger.interval=1'
    for name, last, step, loss in (
        ('mask-rcnn_lavit-nano_shapes', 'epoch_1.pth', 'train_cfg.max_epochs=1', 'loss_mask'),
        ('upernet_lavit-nano_shapes', 'iter_1.pth', 'train_cfg.max_iters=1', 'decode.loss_ce'),
    ):
        options = ('--no-validate', '--cfg-options', start, step, log)
        if name.startswith('upernet'):
            options += ('default_hooks.checkpoint.interval=1', 'train_dataloader.batch_size=2')
        trained = run(*mmlavit, 'train', f'{name}.py', *options, cwd=tmp_path)
        assert f'{loss}: ' in trained
        assert (tmp_path / 'work_dirs' / name / last).is_file()

    (tmp_path / 'mine.py').write_text(OWN_CONFIG)
    upstream = Path(mmpretrain.__file__).parent / '.mim/tools/test.py'
    tested = run(python, upstream, 'mine.py', checkpoint, cwd=tmp_path)
    assert '[2/2]' in tested  # 6 images, 3 at a time
    assert 'accuracy/top1' in tested

    assert {path.name for path in tmp_path.iterdir()} == {'data', 'mine.py', 'work_dirs'}
    assert files_of(site) == before
