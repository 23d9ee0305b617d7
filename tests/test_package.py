"""The package: one version everywhere, bounded dependencies, names found from the toolboxes."""

import re
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from conftest import run_python
from mmengine.config import Config
from packaging.requirements import Requirement

import mmlavit
from mmlavit import __main__ as command
from mmlavit import registry
from mmlavit.shipped import CONFIGS, config_names

ROOT = Path(__file__).parents[1]


def test_version_is_the_head_of_the_changelog() -> None:
    """A release cannot forget its entry in the changelog, nor the other way round."""
    versions = re.findall(r'^## (\d\S*)', (ROOT / 'CHANGELOG.md').read_text(), flags=re.MULTILINE)
    assert versions[0] == mmlavit.__version__


def test_citation_is_of_this_version() -> None:
    """Who cites the package names the version at hand."""
    citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text('utf-8'))
    assert citation['version'] == mmlavit.__version__


def test_installed_distribution_is_this_version() -> None:
    """setup.py reads the version that the package reports."""
    assert metadata.version('mmlavit') == mmlavit.__version__


def test_bounds_of_the_check_are_those_of_the_distribution() -> None:
    """pip and the check at import accept the same versions."""
    requires = [Requirement(text) for text in metadata.requires('mmlavit') or []]
    bounds = {requirement.name: str(requirement.specifier) for requirement in requires}
    for distribution, lower, upper in mmlavit.REQUIRED.values():
        assert sorted(bounds[distribution].split(',')) == [f'<{upper}', f'>={lower}']


@pytest.mark.parametrize('module', mmlavit.REQUIRED)
def test_lower_bound_is_inclusive_and_upper_exclusive(module: str) -> None:
    """The bounds themselves are what the message says they are; a local version is no obstacle."""
    _, lower, upper = mmlavit.REQUIRED[module]
    mmlavit.check_dependency(module, lower)
    mmlavit.check_dependency(module, f'{lower}+cpu')
    with pytest.raises(ImportError):
        mmlavit.check_dependency(module, upper)


@pytest.mark.parametrize('module', mmlavit.REQUIRED)
@pytest.mark.parametrize('found', ['0.1.2', '99.0', None])
def test_refused_dependency_is_named_with_what_was_found_and_required(
    module: str, found: str | None
) -> None:
    """The message holds the version found, the bounds, and a command that mends it."""
    distribution, lower, upper = mmlavit.REQUIRED[module]
    with pytest.raises(ImportError) as error:
        mmlavit.check_dependency(module, found)
    message = str(error.value)
    assert (f'found {module} {found}' if found else f'found no {module}') in message
    assert f'requires {distribution}>={lower},<{upper}' in message
    assert 'make setup' in message
    assert ('pip install --no-build-isolation' in message) == (module == 'mmcv')


def test_import_refuses_an_old_torch(tmp_path: Path) -> None:
    """The check runs at import, not only when it is called."""
    run = run_python("import torch; torch.__version__ = '1.13.1'; import mmlavit", tmp_path)
    assert run.returncode == 1
    assert 'ImportError: mmlavit' in run.stderr
    assert 'found torch 1.13.1' in run.stderr


def test_lookup_under_an_old_torch_says_why(tmp_path: Path) -> None:
    """mmengine's registries swallow the ImportError; its message reaches the user nevertheless."""
    code = (
        "import torch; torch.__version__ = '1.13.1'; from mmengine.registry import MODELS;"
        "MODELS.build(dict(type='mmlavit.LaViT'))"
    )
    run = run_python(code, tmp_path)
    assert run.returncode == 1
    assert 'found torch 1.13.1' in run.stderr


@pytest.mark.parametrize('found', ['2.2.0', '2.4.0'])
def test_hooks_refuse_another_mmcv(found: str, tmp_path: Path) -> None:
    """What runs with the toolboxes says so before a run starts; the models need no mmcv."""
    code = (
        f"import mmcv; mmcv.__version__ = '{found}'; import mmlavit.models; print('models');"
        "from mmengine.registry import HOOKS; HOOKS.build(dict(type='mmlavit.SeedHook'))"
    )
    run = run_python(code, tmp_path)
    assert run.stdout.strip() == 'models'
    assert run.stderr.splitlines()[-1].startswith('ImportError: mmlavit')
    assert f'found mmcv {found}' in run.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ('extra', 'toolboxes'),
    [
        ('cls', ['onedl-mmpretrain']),
        ('det', ['onedl-mmdetection']),
        ('seg', ['onedl-mmsegmentation']),
        ('mminstall', ['onedl-mmdetection', 'onedl-mmpretrain', 'onedl-mmsegmentation']),
    ],
)
def test_extra_brings_mmcv_and_its_toolbox(extra: str, toolboxes: list[str]) -> None:
    """Without an extra, pip installs neither."""
    requires = [Requirement(text) for text in metadata.requires('mmlavit') or []]
    plain = {r.name for r in requires if r.marker is None}
    brought = {r.name for r in requires if r.marker and r.marker.evaluate({'extra': extra})}
    assert brought == {'onedl-mmcv', 'torchvision', *toolboxes}
    assert not plain & brought


def test_package_imports_without_the_toolboxes(tmp_path: Path) -> None:
    """Neither the package nor its registries pull in mmcv, mmdet, mmseg or mmpretrain."""
    code = (
        'import sys, mmlavit.registry;'
        "print([name for name in ('mmcv', 'mmdet', 'mmseg', 'mmpretrain') if name in sys.modules])"
    )
    run = run_python(code, tmp_path)
    assert run.stdout.strip() == '[]', run.stderr


@pytest.mark.parametrize('toolbox', ['mmpretrain', 'mmdet', 'mmseg'])
def test_backbone_is_found_from_each_toolbox_without_custom_imports(
    toolbox: str, tmp_path: Path
) -> None:
    """A fresh process in another folder resolves the name through the toolbox's own registry."""
    code = (
        f'from {toolbox}.registry import MODELS;'
        "found = MODELS.get('mmlavit.LaViT'); print('found', found.__module__, found.__name__)"
    )
    run = run_python(code, tmp_path)
    assert 'found mmlavit.models.backbones.lavit LaViT' in run.stdout, run.stderr


@pytest.mark.parametrize('name', registry.__all__)
def test_registries_are_children_in_the_scope_of_the_package(name: str) -> None:
    """Each is the child ``mmlavit`` of mmengine's registry of the same kind, and can be filled."""
    child = getattr(registry, name)
    assert child.scope == 'mmlavit'
    assert child.parent.scope == 'mmengine'
    assert child.parent.children['mmlavit'] is child
    child.import_from_location()


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


def test_missing_config_is_named_with_the_closest_one() -> None:
    with pytest.raises(FileNotFoundError, match='shape-cls.py.*mean shapes/lavit-nano_shapes-cls'):
        mmlavit.config_path('lavit-nano_shape-cls.py')
    with pytest.raises(FileNotFoundError, match="'resnet.py'.*python -m mmlavit configs"):
        mmlavit.config_path('resnet.py')


def test_inheriting_config_is_read_by_a_tool_that_knows_no_mmlavit(tmp_path: Path) -> None:
    """What upstream's tools do first; the types stay in the scope of their toolbox."""
    base = "__import__('mmlavit').config_path('shapes/upernet_lavit-nano_shapes.py')"
    (tmp_path / 'mine.py').write_text(f'_base_ = [{base}]\nmodel = dict(test_cfg=dict(a=1))\n')
    code = (
        'from mmengine.config import Config; cfg = Config.fromfile("mine.py");'
        'print(cfg.model.type, cfg.model.get("_scope_"), cfg.model.test_cfg.a, cfg.default_scope)'
    )
    run = run_python(code, tmp_path)
    assert run.stdout.split() == ['EncoderDecoder', 'None', '1', 'mmseg'], run.stderr


def test_command_lists_and_finds_configs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``python -m mmlavit configs``, and what stands for a config among a tool's arguments."""
    monkeypatch.chdir(tmp_path)
    command.main(['configs'])
    assert capsys.readouterr().out.split() == config_names()
    name = 'lavit-nano_shapes-cls.py'
    command.main(['configs', name])
    assert capsys.readouterr().out.strip() == command.find_config(name) == mmlavit.config_path(name)
    assert command.find_config('--amp') == '--amp'
    assert command.find_config('mine.py') == 'mine.py'
    (tmp_path / name).touch()
    assert command.find_config(name) == name


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        (['trian'], "invalid choice: 'trian'"),
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


def test_quick_start_of_a_clone_reads_its_data_from_any_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where configs/shapes look is below the clone, whatever the working directory."""
    monkeypatch.chdir(tmp_path)
    layouts = {'mmpretrain': 'classification', 'mmdet': 'coco', 'mmseg': 'ade20k'}
    for path in (ROOT / 'configs/shapes').glob('*.py'):
        cfg = Config.fromfile(path)
        expected = ROOT / 'data/shapes' / layouts[cfg.default_scope]
        for split in ('train', 'val', 'test'):
            assert Path(cfg[f'{split}_dataloader'].dataset.data_root).resolve() == expected
