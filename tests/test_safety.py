"""Checkpoints are data: no tool runs code that a file names, unless it is told to."""

import io
import os
import pickle
import shutil
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run, forget_runs, load_tool
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from safetensors.torch import save_file

from mmlavit.checkpoints import load_checkpoint, safe_loading
from mmlavit.errors import UserError
from mmlavit.models import LaViT
from mmlavit.models.factory import create_model

pytestmark = pytest.mark.usefixtures('isolated')

LAVIT = """
_base_ = 'cls.py'
model = dict(
    backbone=dict(_delete_=True, type='mmlavit.LaViT', arch='nano', out_indices=(3, )),
    head=dict(in_channels=256))
"""
# Nested metainfo, a best score, and a scheduler that stores one of its methods.
TRAINED = """
_base_ = 'lavit.py'
train_dataloader = dict(dataset=dict(metainfo=dict(
    classes=['circle', 'square', 'triangle'], extra=dict(depth=dict(of='two')))))
default_hooks = dict(checkpoint=dict(type='CheckpointHook', save_best='accuracy/top1'))
optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW', lr=1e-3))
param_scheduler = [dict(type='OneCycleLR', eta_max=0.01, total_steps=8, by_epoch=False)]
work_dir = 'work_dirs/trained'
"""
TRANSFER = """
_base_ = '{}.py'
model = dict(backbone=dict(
    init_cfg=dict(type='Pretrained', checkpoint='evil.pth', prefix='backbone.')))
"""
IMAGES = 'shapes/classification/val'
ENTRIES = {
    'resume': 'train lavit.py --resume evil.pth',
    'load_from': 'train lavit.py --cfg-options load_from=evil.pth',
    'transfer': 'train transfer_lavit.py',
    'transfer to ResNet': 'train transfer_cls.py',
    'test': 'test lavit.py evil.pth',
    'predict': f'predict lavit.py evil.pth {IMAGES} --out out',
    'publish': 'publish_model evil.pth --out out',
    'export': 'export_onnx lavit.py evil.pth --out out/x.onnx --shape 32 32',
    'visualize': f'visualize_attention lavit.py evil.pth {IMAGES}/circle/00000000.png '
    '--out out --stages 4',
}


class Trap:
    """Leaves a file where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ('touch sprung',)


class Custom:
    """A harmless type that no allow-list knows."""


@pytest.fixture(autouse=True)
def fresh(workspace: Path, isolated: None) -> None:
    """Leave no trace of another test."""
    Path('sprung').unlink(missing_ok=True)
    for folder in ('out', 'work_dirs/lavit'):
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope='module')
def trained(workspace: Path) -> dict[str, Any]:
    """What an epoch of training left: weights, logs, optimizer, schedulers."""
    configs = {'lavit': LAVIT, 'trained': TRAINED}
    configs |= {f'transfer_{base}': TRANSFER.format(base) for base in ('lavit', 'cls')}
    for name, text in configs.items():
        (workspace / f'{name}.py').write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace)
        load_tool('train').main(['trained.py'])
    forget_runs()
    return torch.load(workspace / 'work_dirs/trained/epoch_1.pth', weights_only=False)


def save_trap(content: dict[str, Any], key: str = 'meta', **options: Any) -> None:
    """A complete checkpoint with a trap in an entry."""
    torch.save({**content, key: {**content[key], 'x': Trap()}}, 'evil.pth', **options)


def save_gadget(content: dict[str, Any]) -> None:
    """A file that torch's safe loader with mmengine's list, which has getattr, executes."""

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
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile('evil.pth', 'w') as target:
        for name in source.namelist():
            target.writestr(name, trap if name.endswith('data.pkl') else source.read(name))


SYSTEM = f'{os.system.__module__}.system'
# how a file is written, and what the message says that it holds
TRAPS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    'alone': (lambda content: torch.save(Trap(), 'evil.pth'), SYSTEM),
    'meta': (save_trap, SYSTEM),
    'message_hub': (partial(save_trap, key='message_hub'), SYSTEM),
    'old format': (partial(save_trap, _use_new_zipfile_serialization=False), SYSTEM),
    'pickle': (
        lambda content: Path('evil.pth').write_bytes(pickle.dumps({'meta': Trap()})),
        'Unsupported operand',
    ),
    'gadget': (save_gadget, 'builtins.getattr'),
}


@pytest.mark.parametrize('trap', TRAPS)
def test_nothing_that_a_file_names_is_run(trap: str, trained: dict[str, Any]) -> None:
    """One line names the file, what is refused and the way out; the traps are live ones."""
    save, named = TRAPS[trap]
    save(trained)
    with pytest.raises(UserError) as error:
        load_checkpoint('evil.pth')
    message = str(error.value)
    assert message.startswith(f"checkpoint 'evil.pth' cannot be read safely: it holds {named}")
    assert message.endswith('--trust-checkpoint loads it for one run')
    assert '\n' not in message
    assert not Path('sprung').exists()
    # behind their code, some hold no checkpoint
    with safe_loading(trust=True), suppress(UserError):
        load_checkpoint('evil.pth')
    assert Path('sprung').exists()


@pytest.mark.parametrize('entry', ENTRIES)
def test_no_entry_point_runs_what_a_file_names(
    entry: str, trained: dict[str, Any], fails: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither trap springs, and with --trust-checkpoint the first does, for that run alone."""
    name, *argv = ENTRIES[entry].split()
    tool = load_tool(name)
    save_trap(trained)
    tool.main([*argv, '--trust-checkpoint'])
    assert Path('sprung').exists()
    Path('sprung').unlink()
    shutil.rmtree('out', ignore_errors=True)
    for save in (save_trap, save_gadget):
        forget_runs()
        save(trained)
        message = fails(tool, *argv)
        assert "checkpoint 'evil.pth' cannot be read safely" in message
        assert message.count('\n') == 1
    assert not Path('sprung').exists()
    assert not Path('out').exists()


@pytest.mark.parametrize('option', ['--resume evil.pth', '--cfg-options load_from=evil.pth'])
def test_check_reports_what_a_file_names(
    option: str, trained: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """It reads checkpoints before training does; a refusal is a finding like any other."""
    check, argv = load_tool('check'), ['lavit.py', *option.split()]
    for save in (save_trap, save_gadget):
        save(trained)
        assert check.main(argv) == 1
        assert "FAIL  checkpoint 'evil.pth' cannot be read safely" in capsys.readouterr().out
        assert not Path('sprung').exists()
    save_trap(trained)
    check.main([*argv, '--trust-checkpoint'])
    assert Path('sprung').exists()


def test_models_refuse_without_a_tool(trained: dict[str, Any]) -> None:
    """The transfer in upstream's own tools, and models by name."""
    for save in (save_trap, save_gadget):
        save(trained)
        init_cfg = dict(type='Pretrained', checkpoint='evil.pth', prefix='backbone.')
        with pytest.raises(UserError, match='cannot be read safely'):
            LaViT('nano', init_cfg=init_cfg).init_weights()
        for options in (dict(features_only=True), dict(num_classes=3)):
            with pytest.raises(UserError, match='cannot be read safely'):
                create_model('lavit_nano', checkpoint_path='evil.pth', **options)
    assert not Path('sprung').exists()


def test_every_load_of_the_process_is_safe(
    trained: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that asks for the contrary, in code or by torch's variable."""
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    save_trap(trained)
    before = dict(os.environ)
    with safe_loading(), safe_loading(trust=True):
        with pytest.raises(pickle.UnpicklingError):
            torch.load('evil.pth', weights_only=False)
        with pytest.raises(UserError):
            CheckpointLoader.load_checkpoint('evil.pth')
    assert not Path('sprung').exists()
    assert dict(os.environ) == before
    CheckpointLoader.load_checkpoint('evil.pth')
    assert Path('sprung').exists()


def test_a_type_of_ones_own(trained: dict[str, Any], fails: Run, run: Run) -> None:
    """Refused by its name; data where the program declares it or the file is trusted."""
    publish = load_tool('publish_model')
    torch.save({**trained, 'meta': {'custom': Custom()}}, 'custom.pth')
    assert 'it holds test_safety.Custom' in fails(publish, 'custom.pth', '--out', 'out')
    run(publish, 'custom.pth', '--out', 'out', '--trust-checkpoint')
    (path,) = Path('out').iterdir()
    assert isinstance(torch.load(path, weights_only=False)['meta']['custom'], Custom)
    with torch.serialization.safe_globals([Custom]):
        assert isinstance(load_checkpoint('custom.pth')['meta']['custom'], Custom)
        torch.save({'state_dict': {}, 'meta': {'custom': Custom(), 'x': Trap()}}, 'evil.pth')
        with pytest.raises(UserError, match='system'):
            load_checkpoint('evil.pth')


@pytest.mark.parametrize('runner', ['mmlavit.PortableRunner', 'FlexibleRunner'])
def test_resuming_executes_no_config_of_the_file(
    runner: str, trained: dict[str, Any], run: Run
) -> None:
    """mmengine's runners execute meta.config of a file that they resume; here it is dropped."""
    config = "import os\nos.system('touch sprung')\n"
    torch.save({**trained, 'meta': {**trained['meta'], 'config': config}}, 'evil.pth')
    Path('runner.py').write_text(
        f"_base_ = 'trained.py'\nrunner_type = '{runner}'\nenv_cfg = dict()\ncustom_hooks = []\n"
        'train_cfg = dict(_delete_=True, by_epoch=True, max_epochs=2)\n'
        "work_dir = 'work_dirs/lavit'\n"
    )
    run(load_tool('train'), 'runner.py', '--resume', 'evil.pth')
    assert load_checkpoint('work_dirs/lavit/epoch_2.pth')['meta']['epoch'] == 2
    assert not Path('sprung').exists()


def plain(value: Any) -> Any:
    """Something that can be compared, types included."""
    if isinstance(value, dict):
        return type(value), {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value), [plain(item) for item in value]
    if isinstance(value, HistoryBuffer):
        return 'history', [column.tolist() for column in value.data]
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return type(value), str(value.dtype), value.shape, np.asarray(value).tobytes()
    return type(value), value


def test_what_training_stores_loads_as_it_was(trained: dict[str, Any]) -> None:
    """All types of a run are on the allow-list; the test above resumes from it."""
    assert plain(load_checkpoint('work_dirs/trained/epoch_1.pth')) == plain(trained)
    assert {'state_dict', 'message_hub', 'optimizer', 'param_schedulers'} <= set(trained)
    assert 'best_score' in trained['message_hub']['runtime_info']


def test_values_of_older_numpy_load() -> None:
    """Published checkpoints name numpy's modules as they were called before version 2."""
    values = {
        'score': np.float64(0.5),
        'count': np.int64(3),
        'palette': np.arange(6, dtype=np.uint8).reshape(2, 3),
        'names': np.array(['a', 'bc']),
        'history': HistoryBuffer([1.0, 2.0], [1, 1]),
        'part': slice(1, 2),
    }
    torch.save({'state_dict': {}, 'meta': values}, 'new.pth')
    with zipfile.ZipFile('new.pth') as source, zipfile.ZipFile('old.pth', 'w') as target:
        for name in source.namelist():
            content = source.read(name)
            assert not name.endswith('data.pkl') or b'numpy._core.multiarray' in content
            target.writestr(name, content.replace(b'numpy._core.', b'numpy.core.'))
    for path in ('new.pth', 'old.pth'):
        assert plain(load_checkpoint(path)['meta']) == plain(values)


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
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
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
    save_trap(trained)
    shutil.copy('evil.pth', tmp_path / 'mmengine/evil.pth')
    source = source.format(server)
    message = fails(load_tool('train'), 'lavit.py', '--cfg-options', f'load_from={source}')
    assert f'cannot be read safely: it holds {SYSTEM}' in message
    assert not Path('sprung').exists()
    CheckpointLoader.load_checkpoint(source, 'cpu')
    assert Path('sprung').exists()


@pytest.mark.parametrize('trust', [False, True])
def test_good_downloads_load_and_a_disguise_is_refused(
    trust: bool, server: str, trained: dict[str, Any]
) -> None:
    """From a file and a URL; a pickle named .safetensors is not unpickled, whoever trusts it."""
    torch.save(trained, 'good.pth')
    save_file(trained['state_dict'], 'good.safetensors')
    save_trap(trained, _use_new_zipfile_serialization=False)
    shutil.copy('evil.pth', 'evil.safetensors')
    with safe_loading(trust):
        for source in ('good.safetensors', f'{server}/good.safetensors', f'{server}/good.pth'):
            found = load_checkpoint(source)['state_dict']
            assert plain({**found}) == plain({**trained['state_dict']})
        for source in ('evil.safetensors', f'{server}/evil.safetensors'):
            with pytest.raises(UserError, match='is damaged|cannot be read: SafetensorError'):
                load_checkpoint(source)
        for source in (f'{server}/none.pth', 'openmmlab://none'):
            with pytest.raises(UserError, match=r'cannot be read: .*(404|none)'):
                load_checkpoint(source)
    assert not Path('sprung').exists()


@pytest.mark.parametrize('key', ['meta', 'state_dict', 'message_hub'])
def test_entries_of_another_type_are_refused(key: str, trained: dict[str, Any]) -> None:
    """Readers take these for dicts."""
    torch.save({**trained, key: ['config']}, 'odd.pth')
    with pytest.raises(UserError, match=rf"'odd.pth': found a list as {key}, expected a dict"):
        load_checkpoint('odd.pth')
