"""The package as others get it: a source archive, a wheel from it, an environment without a clone.

The environment sees the dependencies of the one that runs the tests, and mmlavit from the wheel.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import mmpretrain
import pytest
from conftest import ROOT

from mmlavit import __version__
from mmlavit.shipped import config_names

pytestmark = pytest.mark.slow

CLONE_TOOLS = {'demo.py', 'doctor.py', 'readme_tables.py', 'setup_env.py'}
SHIPPED = ('CITATION.cff', 'LICENSE', 'Makefile', 'MANIFEST.in', 'README.md', 'CHANGELOG.md')
SHIPPED += ('model-index.yml', 'pyproject.toml', 'setup.py')
FOLDERS = ('benchmarks', 'configs', 'docs', 'mmlavit', 'requirements', 'tests', 'tools')
SDIST = f'mmlavit-{__version__}.tar.gz'
PIP, OPTIONS = (sys.executable, '-m', 'pip'), ('--no-deps', '--no-index')


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
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source archive of a copy of this clone, and the wheel that pip makes of it.

    The clone itself stays free of what a build leaves.
    """
    folder = tmp_path_factory.mktemp('built')
    for name in FOLDERS:
        ignore = shutil.ignore_patterns('__pycache__')
        shutil.copytree(ROOT / name, folder / 'clone' / name, ignore=ignore)
    for name in SHIPPED:
        shutil.copy(ROOT / name, folder / 'clone')
    build = "from setuptools import build_meta; build_meta.build_sdist('..')"
    run(sys.executable, '-c', build, cwd=folder / 'clone')
    run(*PIP, 'wheel', '--no-build-isolation', *OPTIONS, SDIST, cwd=folder)
    return folder


def files_of(root: Path) -> set[str]:
    """Files below a folder, but for caches."""
    paths = (path for path in root.rglob('*') if path.is_file())
    return {path.relative_to(root).as_posix() for path in paths if '__pycache__' not in path.parts}


def test_archives_are_complete(built: Path) -> None:
    """A clone in the source; the code and, in ``.mim``, configs and tools in the wheel."""
    with tarfile.open(built / SDIST) as archive:
        names = {name.partition('/')[2] for name in archive.getnames()}
    expected = {f'{folder}/{name}' for folder in FOLDERS for name in files_of(ROOT / folder)}
    assert expected | set(SHIPPED) <= names
    assert not [name for name in names if '__pycache__' in name]
    with zipfile.ZipFile(*built.glob('*.whl')) as archive:
        names = {name for name in archive.namelist() if not name.endswith('/')}
    expected = {f'configs/{name}' for name in files_of(ROOT / 'configs')} | {'model-index.yml'}
    expected |= {f'tools/{name}' for name in files_of(ROOT / 'tools') - CLONE_TOOLS}
    code = {f'mmlavit/{name}' for name in files_of(ROOT / 'mmlavit')}
    info = {name for name in names if name.startswith(f'mmlavit-{__version__}.dist-info/')}
    assert names - info == code | {f'mmlavit/.mim/{name}' for name in expected}


def test_quick_start_from_an_empty_directory(built: Path, tmp_path: Path) -> None:
    """The command makes data and trains; upstream's tool tests a config that inherits."""
    venv = built / 'venv'
    run(sys.executable, '-m', 'venv', '--without-pip', venv, cwd=built)
    (site,) = venv.glob('lib/python*/site-packages')
    # Python reads no .pth file of a folder that a .pth file adds, thus not the editable mmlavit's.
    (site / 'dependencies.pth').write_text(sysconfig.get_path('purelib'))
    install = ('--python', venv / 'bin/python', 'install', *OPTIONS)
    run(*PIP, *install, *built.glob('*.whl'), cwd=built)

    code = (
        'from mmengine.config import Config\n'
        'from mmlavit.shipped import config_names, config_path\n'
        'for name in config_names():\n'
        '    loader = Config.fromfile(config_path(name)).train_dataloader\n'
        '    print(name, loader.dataset.data_root)\n'
    )
    lines = run(venv / 'bin/python', '-c', code, cwd=tmp_path).splitlines()
    roots = dict(line.split() for line in lines)
    assert list(roots) == config_names()
    assert {root.split('/')[0] for root in roots.values()} == {'data'}

    before, command = files_of(venv), venv / 'bin/mmlavit'
    sizes = ('--num-classification', 12, 6, '--num-scenes', 2, 1)
    run(command, 'make_shapes', *sizes, cwd=tmp_path)
    training = ('train', 'lavit-nano_shapes-cls.py', '--cfg-options', 'train_cfg.max_epochs=1')
    run(command, *training, cwd=tmp_path)
    base = "__import__('mmlavit').config_path('shapes/lavit-nano_shapes-cls.py')"
    (tmp_path / 'mine.py').write_text(f'_base_ = [{base}]\ntest_dataloader = dict(batch_size=3)\n')
    upstream = Path(mmpretrain.__file__).parent / '.mim/tools/test.py'
    checkpoint = 'work_dirs/lavit-nano_shapes-cls/epoch_1.pth'
    tested = run(venv / 'bin/python', upstream, 'mine.py', checkpoint, cwd=tmp_path)
    assert '[2/2]' in tested  # 6 images, 3 at a time
    assert 'accuracy/top1' in tested
    assert {path.name for path in tmp_path.iterdir()} == {'data', 'mine.py', 'work_dirs'}
    assert files_of(venv) == before
