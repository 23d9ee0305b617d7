"""Checkpoints are data: no tool runs code that a file names, unless it is told to."""

import io
import os
import pickle
import re
import shutil
import threading
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from conftest import Run, forget_runs, load_tool
from mmengine.config import Config
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as mmengine_checkpoint
from safetensors.torch import save_file

from mmlavit.checkpoints import load_checkpoint, safe_loading
from mmlavit.cli.launch import build_runner
from mmlavit.errors import UserError
from mmlavit.models import LaViT
from mmlavit.models.factory import create_model

pytestmark = pytest.mark.usefixtures('isolated')

TRAIN, TEST, CHECK = load_tool('train'), load_tool('test'), load_tool('check')
PREDICT, PUBLISH = load_tool('predict'), load_tool('publish_model')
EXPORT, VISUALIZE = load_tool('export_onnx'), load_tool('visualize_attention')

LAVIT = """
_base_ = 'cls.py'
model = dict(
    backbone=dict(_delete_=True, type='mmlavit.LaViT', arch='nano', out_indices=(3, )),
    head=dict(in_channels=256))
"""


class Trap:
    """Leaves a file where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ('touch sprung',)


class Custom:
    """A harmless type that no allow-list knows."""


class Entry(NamedTuple):
    """A way into the project for a checkpoint."""

    tool: ModuleType
    argv: tuple[str, ...]


IMAGES = 'shapes/classification/val'
ENTRIES = {
    'resume': Entry(TRAIN, ('lavit.py', '--resume', '{}')),
    'load_from': Entry(TRAIN, ('lavit.py', '--cfg-options', 'load_from={}')),
    'transfer': Entry(TRAIN, ('transfer.py',)),
    'transfer to ResNet': Entry(TRAIN, ('transfer_resnet.py',)),
    'test': Entry(TEST, ('lavit.py', '{}')),
    'predict': Entry(PREDICT, ('lavit.py', '{}', IMAGES, '--out', 'out')),
    'publish': Entry(PUBLISH, ('{}', '--out', 'out')),
    'export': Entry(EXPORT, ('lavit.py', '{}', '--out', 'out/x.onnx', '--shape', '32', '32')),
    'visualize': Entry(
        VISUALIZE,
        ('lavit.py', '{}', f'{IMAGES}/circle/00000000.png', '--out', 'out', '--stages', '4'),
    ),
}


@pytest.fixture(autouse=True)
def fresh(workspace: Path, isolated: None) -> None:
    """Leave no trace of another test."""
    Path('sprung').unlink(missing_ok=True)
    for folder in ('out', 'work_dirs/lavit'):
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope='module')
def trained(workspace: Path) -> dict[str, Any]:
    """What an epoch of training left: weights, message hub, optimizer, schedulers, EMA."""
    (workspace / 'lavit.py').write_text(LAVIT)
    for name, base in (('transfer', 'lavit'), ('transfer_resnet', 'cls')):
        init_cfg = "dict(type='Pretrained', checkpoint='evil.pth', prefix='backbone.')"
        (workspace / f'{name}.py').write_text(
            f"_base_ = '{base}.py'\nmodel = dict(backbone=dict(init_cfg={init_cfg}))\n"
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace)
        TRAIN.main(['lavit.py', '--work-dir', 'work_dirs/trained'])
    forget_runs()
    return torch.load(workspace / 'work_dirs/trained/epoch_1.pth', weights_only=False)


def save_gadget(content: dict[str, Any], path: str) -> None:
    """Write a zip file that torch's loader with mmengine's list, which has getattr, executes."""

    def word(text: str) -> bytes:
        return b'X' + len(text).to_bytes(4, 'little') + text.encode()

    def attribute(owner: bytes, name: str) -> bytes:
        return b'c__builtin__\ngetattr\n' + owner + word(name) + b'\x86R'

    builtins = attribute(b'c__builtin__\ngetattr\n', '__self__')
    call = b'ctorch._tensor\n_rebuild_from_type_v2\n(' + attribute(builtins, 'exec')
    code = word("import os; os.system('touch sprung')") + b'\x85'
    trap = b'\x80\x02' + call + b'ctorch\nTensor\n' + code + b'}tR.'
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, 'w') as target:
        for name in source.namelist():
            target.writestr(name, trap if name.endswith('data.pkl') else source.read(name))


def save_pickle(content: dict[str, Any], path: str) -> None:
    Path(path).write_bytes(pickle.dumps({**content, 'meta': {**content['meta'], 'x': Trap()}}))


def save_trap(
    content: dict[str, Any], path: str, key: str | None, old_format: bool = False
) -> None:
    """Write a complete checkpoint with a trap in an entry, or a trap alone."""
    evil = Trap() if key is None else {**content, key: {**content[key], 'x': Trap()}}
    torch.save(evil, path, _use_new_zipfile_serialization=not old_format)


# how a file is written, and what it names that is refused
Save = Callable[[dict[str, Any], str], None]
TRAPS: dict[str, tuple[Save, str]] = {
    'alone': (partial(save_trap, key=None), f'{os.system.__module__}.system'),
    'meta': (partial(save_trap, key='meta'), f'{os.system.__module__}.system'),
    'message_hub': (partial(save_trap, key='message_hub'), f'{os.system.__module__}.system'),
    'old format': (
        partial(save_trap, key='meta', old_format=True),
        f'{os.system.__module__}.system',
    ),
    'bare pickle': (save_pickle, f'{os.system.__module__}.system'),
    'gadget': (save_gadget, 'builtins.getattr'),
}


def call(entry: str, path: str, *options: str) -> tuple[ModuleType, list[str]]:
    tool, argv = ENTRIES[entry]
    return tool, [*(word.format(path) for word in argv), *options]


@pytest.mark.parametrize('trap', TRAPS)
@pytest.mark.parametrize('entry', ENTRIES)
def test_no_entry_point_runs_what_a_file_names(
    entry: str, trap: str, trained: dict[str, Any], fails: Run
) -> None:
    """One message names the file, the offending type and the way out; nothing runs."""
    save, named = TRAPS[trap]
    save(trained, 'evil.pth')
    tool, argv = call(entry, 'evil.pth')
    message = fails(tool, *argv)
    assert "checkpoint 'evil.pth' cannot be read safely" in message
    assert named in message
    assert '--trust-checkpoint' in message
    assert message.count('\n') == 1
    assert not Path('sprung').exists()
    assert not Path('out').exists()


@pytest.mark.parametrize('trap', TRAPS)
@pytest.mark.parametrize('options', ['--resume {}', '--cfg-options load_from={}'])
def test_check_reports_what_a_file_names(
    options: str, trap: str, trained: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """It reads checkpoints before training does; a refusal is a finding like any other."""
    save, named = TRAPS[trap]
    save(trained, 'evil.pth')
    argv = ['lavit.py', *options.format('evil.pth').split()]
    assert CHECK.main(argv) == 1
    assert re.search(
        rf"^FAIL  checkpoint 'evil.pth' cannot be read safely: it holds {re.escape(named)}",
        capsys.readouterr().out,
        re.M,
    )
    assert not Path('sprung').exists()
    if trap == 'meta':
        forget_runs()
        CHECK.main([*argv, '--trust-checkpoint'])
        assert Path('sprung').exists()


@pytest.mark.parametrize('entry', ENTRIES)
def test_trust_is_explicit_and_for_one_run(
    entry: str, trained: dict[str, Any], fails: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same file runs its code with --trust-checkpoint, so the traps above are live ones."""
    save_trap(trained, 'evil.pth', 'meta')
    tool, argv = call(entry, 'evil.pth', '--trust-checkpoint')
    tool.main(argv)
    assert Path('sprung').exists()
    Path('sprung').unlink()
    shutil.rmtree('out', ignore_errors=True)
    forget_runs()
    tool, argv = call(entry, 'evil.pth')
    assert 'cannot be read safely' in fails(tool, *argv)
    assert not Path('sprung').exists()


def test_a_trusted_type_loads(trained: dict[str, Any], fails: Run, run: Run) -> None:
    """A custom class is refused by its name, and is there where the file is trusted."""
    torch.save({**trained, 'meta': {'custom': Custom()}}, 'custom.pth')
    assert 'it holds test_safety.Custom' in fails(PUBLISH, 'custom.pth', '--out', 'out')
    run(PUBLISH, 'custom.pth', '--out', 'out', '--trust-checkpoint')
    (path,) = Path('out').iterdir()
    assert isinstance(torch.load(path, weights_only=False)['meta']['custom'], Custom)


def test_a_declared_type_is_data() -> None:
    """What a program declares safe to torch loads without trusting the rest of the file."""
    torch.save({'state_dict': {}, 'meta': {'custom': Custom()}}, 'custom.pth')
    with torch.serialization.safe_globals([Custom]):
        assert isinstance(load_checkpoint('custom.pth')['meta']['custom'], Custom)
        torch.save({'state_dict': {}, 'meta': {'custom': Custom(), 'x': Trap()}}, 'evil.pth')
        with pytest.raises(UserError, match='system'):
            load_checkpoint('evil.pth')


@pytest.mark.parametrize('runner', ['mmlavit.PortableRunner', 'FlexibleRunner'])
def test_resuming_executes_no_config_of_the_file(
    runner: str, trained: dict[str, Any], run: Run
) -> None:
    """mmengine's runners execute meta.config of a file; here it is not even there."""
    config = "import os\nos.system('touch sprung')\n"
    torch.save({**trained, 'meta': {**trained['meta'], 'config': config}}, 'evil.pth')
    Path('runner.py').write_text(
        f"_base_ = 'lavit.py'\nrunner_type = '{runner}'\nenv_cfg = dict()\ncustom_hooks = []\n"
        "train_cfg = dict(max_epochs=2)\nwork_dir = 'work_dirs/lavit'\n"
    )
    run(TRAIN, 'runner.py', '--resume', 'evil.pth')
    assert torch.load('work_dirs/lavit/epoch_2.pth', weights_only=False)['meta']['epoch'] == 2
    assert not Path('sprung').exists()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address under which the workspace is served; model names that mmengine resolves to it."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.setenv('MMENGINE_HOME', str(tmp_path / 'mmengine'))
    handler = partial(Quiet, directory=str(workspace))
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        address = f'http://127.0.0.1:{running.server_port}'
        names = f'{{"remote": "{address}/evil.pth", "local": "evil.pth"}}'
        (tmp_path / 'mmengine').mkdir()
        (tmp_path / 'mmengine/open_mmlab.json').write_text(names)
        yield address
        running.shutdown()
        thread.join()


@pytest.mark.parametrize('source', ['{}/evil.pth', 'openmmlab://remote', 'openmmlab://local'])
def test_what_a_name_or_url_leads_to_is_data(
    source: str, server: str, trained: dict[str, Any], tmp_path: Path, fails: Run
) -> None:
    """Downloads and names that mmengine resolves are refused alike; mmengine executes URLs."""
    save_trap(trained, 'evil.pth', 'meta')
    shutil.copy('evil.pth', tmp_path / 'mmengine/evil.pth')
    source = source.format(server)
    message = fails(TRAIN, 'lavit.py', '--cfg-options', f'load_from={source}')
    assert 'cannot be read safely' in message
    assert f'{os.system.__module__}.system' in message
    assert not Path('sprung').exists()
    CheckpointLoader.load_checkpoint(source, 'cpu')
    assert Path('sprung').exists()


def test_a_good_download_loads(server: str, trained: dict[str, Any]) -> None:
    """A URL is read like the file, and a name without a file is one message."""
    torch.save(trained, 'good.pth')
    content = load_checkpoint(f'{server}/good.pth')
    assert content.keys() == trained.keys()
    for key, value in trained['state_dict'].items():
        assert torch.equal(content['state_dict'][key], value), key
    for source in (f'{server}/none.pth', 'openmmlab://none'):
        with pytest.raises(UserError, match=r'cannot be read: .*(404|none)'):
            load_checkpoint(source)


@pytest.mark.parametrize('trust', [False, True])
def test_safetensors_are_data_and_a_disguise_is_refused(
    trust: bool, server: str, trained: dict[str, Any]
) -> None:
    """From a file and a URL; a pickle of that name is not unpickled, whoever trusts it."""
    save_file(trained['state_dict'], 'good.safetensors')
    save_trap(trained, 'evil.safetensors', 'meta', old_format=True)
    with safe_loading(trust):
        for source in ('good.safetensors', f'{server}/good.safetensors'):
            content = load_checkpoint(source)
            assert content['state_dict'].keys() == trained['state_dict'].keys()
        for source in ('evil.safetensors', f'{server}/evil.safetensors'):
            with pytest.raises(UserError, match='is damaged|cannot be read: SafetensorError'):
                load_checkpoint(source)
    assert not Path('sprung').exists()


def test_library_use_is_safe_and_leaves_mmengine_alone(trained: dict[str, Any]) -> None:
    """Without a tool, all that loads refuses too; mmengine's loader stays as it was."""
    upstream = mmengine_checkpoint._safe_torch_load, mmengine_checkpoint.load_url
    save_trap(trained, 'evil.pth', 'message_hub')
    init_cfg = dict(type='Pretrained', checkpoint='evil.pth', prefix='backbone.')
    with pytest.raises(UserError, match='cannot be read safely'):
        LaViT('nano', init_cfg=init_cfg).init_weights()
    for options in (dict(features_only=True), dict(num_classes=3)):
        with pytest.raises(UserError, match='cannot be read safely'):
            create_model('lavit_nano', checkpoint_path='evil.pth', **options)
    cfg = Config.fromfile('lavit.py')
    cfg.update(work_dir='work_dirs/lavit', load_from='evil.pth', launcher='none')
    with pytest.raises(UserError, match='cannot be read safely'):
        build_runner(cfg).train()
    assert not Path('sprung').exists()
    assert upstream == (mmengine_checkpoint._safe_torch_load, mmengine_checkpoint.load_url)


def test_the_outermost_decision_holds(trained: dict[str, Any]) -> None:
    """What is called cannot trust a file that its caller does not, nor the other way round."""
    save_trap(trained, 'evil.pth', 'meta')
    with safe_loading(), safe_loading(trust=True), pytest.raises(UserError):
        load_checkpoint('evil.pth')
    assert not Path('sprung').exists()
    with safe_loading(trust=True):
        load_checkpoint('evil.pth')
    assert Path('sprung').exists()


@pytest.mark.parametrize('key', ['meta', 'state_dict', 'message_hub'])
def test_entries_of_another_type_are_refused(key: str, trained: dict[str, Any]) -> None:
    """Readers take these for dicts."""
    torch.save({**trained, key: ['config']}, 'odd.pth')
    with pytest.raises(UserError, match=rf"'odd.pth': found a list as {key}, expected a dict"):
        load_checkpoint('odd.pth')
