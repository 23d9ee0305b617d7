"""What the tests share."""

import importlib.util
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer

from mmlavit.datasets import ShapesSpec, write_shapes
from mmlavit.engine import PortableRunner

ROOT = Path(__file__).resolve().parent.parent
# images of the workspace, in each split
TRAIN_IMAGES, TEST_IMAGES = 12, 6
TRAIN_SCENES, TEST_SCENES = 4, 2
# mmengine's SyncBN does not run without a process group.
BN = ('--cfg-options', 'model.backbone.norm_cfg.type=BN')
SEG_BN = ('--cfg-options', 'model.decode_head.norm_cfg.type=BN')

# the layouts of configs/real_data, and what of Shapes stands for their files in the tests
REAL_DATA = {
    'cifar10/train': 'classification/train',
    'cifar10/test': 'classification/val',
    'bccd/train': 'coco/train2017',
    'bccd/test': 'coco/val2017',
    'bccd/train.json': 'coco/annotations/instances_train2017.json',
    'bccd/test.json': 'coco/annotations/instances_val2017.json',
    'camvid/images/train': 'ade20k/images/training',
    'camvid/images/val': 'ade20k/images/validation',
    'camvid/images/test': 'ade20k/images/validation',
    'camvid/masks/train': 'ade20k/annotations/training',
    'camvid/masks/val': 'ade20k/annotations/validation',
    'camvid/masks/test': 'ade20k/annotations/validation',
}

Run = Callable[..., str]

# A shell lets what it starts in the background ignore Ctrl-C, and children inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope='session')
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small copy of Shapes: a handful of images a split, in the layouts of photographs, too."""
    root = tmp_path_factory.mktemp('data') / 'shapes'
    write_shapes(root, ShapesSpec(num_classification=(6, 3), num_scenes=(4, 2)))
    for link, target in REAL_DATA.items():
        (root / link).parent.mkdir(parents=True, exist_ok=True)
        (root / link).symlink_to(root / target)
    return root


def load_tool(name: str) -> ModuleType:
    """Import a script of tools/ as a module."""
    (path,) = (ROOT / 'tools').rglob(f'{name}.py')
    spec = importlib.util.spec_from_file_location(f'tools_{name}', path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def forget_runs() -> None:
    """Drop scopes, loggers and the like: a run that starts in the same second would get them."""
    for manager in (DefaultScope, MessageHub, MMLogger, Visualizer, *Visualizer.__subclasses__()):
        manager._instance_dict.clear()


@pytest.fixture(scope='module')
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory outside the repository, with a space in its name, data and configs."""
    root = tmp_path_factory.mktemp('work space')
    spec = ShapesSpec(
        num_classification=(TRAIN_IMAGES, TEST_IMAGES),
        num_scenes=(TRAIN_SCENES, TEST_SCENES),
        classification_size=32,
        scene_size=64,
    )
    write_shapes(root / 'shapes', spec)
    shutil.copytree(ROOT / 'tests/tool_configs', root, dirs_exist_ok=True)
    return root


@pytest.fixture
def isolated(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Work in the workspace, and leave no default scope, logger or variable behind."""
    monkeypatch.chdir(workspace)
    monkeypatch.setenv('LOCAL_RANK', '0')
    yield
    forget_runs()


@pytest.fixture
def data(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the workspace to spoil, in which the tools are started."""
    root = shutil.copytree(workspace, tmp_path / 'work')
    monkeypatch.chdir(root)
    monkeypatch.setenv('LOCAL_RANK', '0')
    yield root
    forget_runs()


@pytest.fixture
def empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Work in an empty directory, and leave no default scope, logger or variable behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('LOCAL_RANK', '0')
    forget_runs()
    yield tmp_path
    forget_runs()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a tool in this process and return what it printed."""

    def call(tool: ModuleType, *argv: str) -> str:
        forget_runs()
        tool.main(argv)
        return capsys.readouterr().out

    return call


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a tool that must stop with exit code 2 and no traceback, and return its message."""

    def call(tool: ModuleType, *argv: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            tool.main(argv)
        assert exit_info.value.code == 2
        message = capsys.readouterr().err
        assert 'Traceback' not in message
        return message

    return call


@pytest.fixture(scope='module')
def checkpoint(workspace: Path) -> str:
    """A checkpoint of cls.py with random weights."""
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace)
        cfg = Config.fromfile('cls.py')
        cfg.work_dir = 'work_dirs/checkpoint'
        model = PortableRunner.from_cfg(cfg).model
    forget_runs()
    path = workspace / 'cls.pth'
    torch.save({'state_dict': model.state_dict(), 'meta': {}}, path)
    return str(path)


def edit(path: Path, change: Callable[[Any], object]) -> None:
    """Change an annotation file in place."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def run_python(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter that knows the package only as an installed one."""
    env = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}
    env['OMP_NUM_THREADS'] = '1'
    return subprocess.run(
        [sys.executable, '-c', code], cwd=cwd, env=env, capture_output=True, text=True
    )


def metrics_of(output: str) -> dict[str, float]:
    """Metrics in the last line of a test's log, without the times."""
    line = output.rpartition('(test) [')[2].partition('\n')[0]
    found = re.findall(r'([\w/-]+): (-?[\d.]+)', line)
    return {name: float(value) for name, value in found if not name.endswith('time')}


def predictions(path: str) -> list[dict]:
    """Predictions that a test wrote to ``--out``."""
    return pickle.loads(Path(path).read_bytes())
