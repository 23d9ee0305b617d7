"""The package: one version everywhere, bounded dependencies, names found from the toolboxes."""

import re
import sys
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, run_python
from mmengine.config import Config
from packaging.requirements import Requirement

import mmlavit
from mmlavit import __main__ as command
from mmlavit.shipped import CONFIGS, config_names


def test_one_version_everywhere() -> None:
    """Package, distribution, changelog and citation; pip and the import accept the same bounds."""
    versions = re.findall(r'^## (\d\S*)', (ROOT / 'CHANGELOG.md').read_text(), flags=re.MULTILINE)
    citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text('utf-8'))['version']
    assert versions[0] == citation == metadata.version('mmlavit') == mmlavit.__version__
    requires = [Requirement(text) for text in metadata.requires('mmlavit') or []]
    bounds = {requirement.name: str(requirement.specifier) for requirement in requires}
    for distribution, lower, upper in mmlavit.REQUIRED.values():
        assert sorted(bounds[distribution].split(',')) == [f'<{upper}', f'>={lower}']


@pytest.mark.parametrize('module', mmlavit.REQUIRED)
def test_another_version_is_refused_with_what_was_found_and_required(module: str) -> None:
    """The lower bound is inclusive; the message has a command that repairs it."""
    distribution, lower, upper = mmlavit.REQUIRED[module]
    mmlavit.check_dependency(module, lower)
    mmlavit.check_dependency(module, f'{lower}+cpu')
    for found in ('0.1.2', upper, None):
        with pytest.raises(ImportError) as error:
            mmlavit.check_dependency(module, found)
        message = str(error.value)
        assert (f'found {module} {found}' if found else f'found no {module}') in message
        assert f'requires {distribution}>={lower},<{upper}' in message
        assert ('pip install --no-build-isolation' in message) == (module == 'mmcv')


def test_what_cannot_run_says_why_where_it_is_looked_up(tmp_path: Path) -> None:
    """mmengine's registries swallow an ImportError; the models need no mmcv, the hooks do."""
    code = (
        'import {0}; {0}.__version__ = {1!r}; from mmengine.registry import HOOKS, MODELS;'
        "MODELS.build(dict(type='mmlavit.LaViT')); print('models');"
        "HOOKS.build(dict(type='mmlavit.StopHook'))"
    )
    for module, version, printed in (('torch', '1.13.1', ''), ('mmcv', '2.2.0', 'models\n')):
        run = run_python(code.format(module, version), tmp_path)
        assert run.returncode == 1
        assert run.stdout == printed
        assert f'found {module} {version}' in run.stderr


@pytest.mark.parametrize(
    ('extra', 'toolboxes'),
    [('det', ['detection']), ('mminstall', ['detection', 'pretrain', 'segmentation'])],
)
def test_extra_brings_mmcv_and_its_toolbox(extra: str, toolboxes: list[str]) -> None:
    """Without an extra, pip installs neither."""
    requires = [Requirement(text) for text in metadata.requires('mmlavit') or []]
    plain = {r.name for r in requires if r.marker is None}
    brought = {r.name for r in requires if r.marker and r.marker.evaluate({'extra': extra})}
    assert brought == {'onedl-mmcv', 'torchvision', *(f'onedl-mm{name}' for name in toolboxes)}
    assert not plain & brought


def test_toolboxes_find_the_backbone_and_are_not_imported_by_it(tmp_path: Path) -> None:
    """In another folder and without custom_imports, through each toolbox's own registry."""
    code = """if True:
        import sys, mmlavit.registry, mmlavit.models
        print([name for name in ('mmcv', 'mmpretrain', 'mmdet', 'mmseg') if name in sys.modules])
        import mmpretrain.registry, mmdet.registry, mmseg.registry
        for toolbox in (mmpretrain, mmdet, mmseg):
            print(toolbox.registry.MODELS.get('mmlavit.LaViT').__name__)"""
    run = run_python(code, tmp_path)
    assert run.stdout.split() == ['[]', 'LaViT', 'LaViT', 'LaViT'], run.stderr


def test_shipped_config_is_found_by_path_and_by_name() -> None:
    """A file name is enough, since no two configs share one; a base needs its path."""
    names = config_names()
    assert len({Path(name).name for name in names}) == len(names)
    for name in names:
        found = mmlavit.config_path(Path(name).name)
        assert found == mmlavit.config_path(name) == str(CONFIGS / name)
        assert Path(found).is_file()
    assert Path(mmlavit.config_path('_base_/models/lavit_cls.py')).is_file()
    assert not [name for name in names if '_base_' in name]
    with pytest.raises(FileNotFoundError, match='shape-cls.py.*mean shapes/lavit-nano_shapes-cls'):
        mmlavit.config_path('lavit-nano_shape-cls.py')


def test_command_runs_what_it_names(
    empty_directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shipped config may go by its file's name, unless there is a file of that name."""
    monkeypatch.setattr(sys, 'argv', [])
    command.main(['configs'])
    assert capsys.readouterr().out.split() == config_names()
    name = 'lavit-nano_shapes-cls.py'
    command.main(['configs', name])
    assert capsys.readouterr().out.strip() == mmlavit.config_path(name)
    command.main(['complexity', name, '--shape', '32', '32'])
    assert mmlavit.config_path(name) in capsys.readouterr().out
    Path(name).write_text('default_scope = None')
    with pytest.raises(SystemExit):
        command.main(['complexity', name])
    assert f'error: {name}: default_scope is None' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        ([], 'required: COMMAND'),
        (['configs', 'resnet.py'], "no config 'resnet.py'"),
        (['train', 'resnet.py'], "config file 'resnet.py' does not exist"),
    ],
)
def test_command_stops_with_one_line(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        command.main(argv)
    assert error.value.code == 2
    written = capsys.readouterr().err
    assert message in written
    assert len(written.splitlines()) == 1


def test_quick_start_of_a_clone_reads_its_data_from_any_directory(empty_directory: Path) -> None:
    """Where configs/shapes look is below the clone, whatever the working directory."""
    layouts = {'mmpretrain': 'classification', 'mmdet': 'coco', 'mmseg': 'ade20k'}
    for path in (ROOT / 'configs/shapes').glob('*.py'):
        cfg = Config.fromfile(path)
        expected = ROOT / 'data/shapes' / layouts[cfg.default_scope]
        for split in ('train', 'val', 'test'):
            assert Path(cfg[f'{split}_dataloader'].dataset.data_root).resolve() == expected
