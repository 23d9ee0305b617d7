"""Checkpoints are data: no tool runs code that a file names, unless it is told to."""

import os
import pickle
import shutil
import threading
import zipfile
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import forget_runs, load_tool
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from safetensors.torch import save_file

from mmlavit.checkpoints import load_checkpoint, safe_loading
from mmlavit.errors import UserError
from mmlavit.models import LaViT
from mmlavit.models.factory import create_model

TRANSFER = """
_base_ = '{}.py'
model = dict(backbone=dict(
    init_cfg=dict(type='Pretrained', checkpoint='evil.pth', prefix='backbone.')))
"""
CONFIGS = {
    'lavit': """
_base_ = 'cls.py'
model = dict(
    backbone=dict(_delete_=True, type='mmlavit.LaViT', arch='nano', out_indices=(3, )),
    head=dict(in_channels=256))
""",
    # Nested metainfo, a best score, and a scheduler that stores one of its methods.
    'trained': """
_base_ = 'lavit.py'
train_dataloader = dict(dataset=dict(metainfo=dict(
    classes=['circle', 'square', 'triangle'], extra=dict(depth=dict(of='two')))))
default_hooks = dict(checkpoint=dict(type='CheckpointHook', save_best='accuracy/top1'))
optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW', lr=1e-3))
param_scheduler = [dict(type='OneCycleLR', eta_max=0.01, total_steps=8, by_epoch=False)]
work_dir = 'work_dirs/trained'
""",
    'transfer_lavit': TRANSFER.format('lavit'),
    'transfer_cls': TRANSFER.format('cls'),
}
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
    'check resume': 'check lavit.py --resume evil.pth',
    'check load_from': 'check lavit.py --cfg-options load_from=evil.pth',
}


class Trap:
    """Leaves a file where it is unpickled."""

    def __reduce__(self):
        return os.system, ('touch sprung',)


class Custom:
    """A harmless type that no allow-list knows."""


@pytest.fixture(autouse=True)
def fresh(isolated):
    """Leave no trace of another test, and run no trap unnoticed."""
    Path('sprung').unlink(missing_ok=True)
    for folder in ('out', 'work_dirs/lavit'):
        shutil.rmtree(folder, ignore_errors=True)


def sprung():
    """Whether a trap has been run since this was asked last."""
    found = Path('sprung').exists()
    Path('sprung').unlink(missing_ok=True)
    return found


@pytest.fixture(scope='module')
def trained(workspace):
    """What an epoch of training left: weights, logs, optimizer, schedulers."""
    for name, text in CONFIGS.items():
        (workspace / f'{name}.py').write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace)
        load_tool('train').main(['trained.py'])
    forget_runs()
    return torch.load(workspace / 'work_dirs/trained/epoch_1.pth', weights_only=False)


def save_trap(content, key='meta', **options):
    """A complete checkpoint with a trap in an entry."""
    torch.save({**content, key: {**content[key], 'x': Trap()}}, 'evil.pth', **options)


def save_gadget(content):
    """A file that torch's safe loader with mmengine's list, which has getattr, executes."""

    def word(text):
        return b'X' + len(text).to_bytes(4, 'little') + text.encode()

    def attribute(owner, name):
        return b'c__builtin__\ngetattr\n' + owner + word(name) + b'\x86R'

    builtins = attribute(b'c__builtin__\ngetattr\n', '__self__')
    call = b'ctorch._tensor\n_rebuild_from_type_v2\n(' + attribute(builtins, 'exec')
    code = word("import os; os.system('touch sprung')") + b'\x85'
    trap = b'\x80\x02' + call + b'ctorch\nTensor\n' + code + b'}tR.'
    torch.save(content, 'good.pth')
    rewrite('good.pth', 'evil.pth', lambda pickled: trap)


def rewrite(source, target, change):
    """Change the pickle inside of a checkpoint."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, 'w') as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, change(content) if name.endswith('data.pkl') else content)


SYSTEM = f'{os.system.__module__}.system'
# how a file is written, and what the message says that it holds
TRAPS = {
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
def test_nothing_that_a_file_names_is_run(trap, trained):
    """One line names the file, what is refused and the way out; the traps are live ones."""
    save, named = TRAPS[trap]
    save(trained)
    with pytest.raises(UserError) as error:
        load_checkpoint('evil.pth')
    message = str(error.value)
    assert message.startswith(f"checkpoint 'evil.pth' cannot be read safely: it holds {named}")
    assert message.endswith('--trust-checkpoint loads it for one run') and '\n' not in message
    assert not sprung()
    # behind their code, some hold no checkpoint
    with safe_loading(trust=True), suppress(UserError):
        load_checkpoint('evil.pth')
    assert sprung()


@pytest.mark.parametrize('entry', ENTRIES)
def test_no_entry_point_runs_what_a_file_names(entry, trained, capsys):
    """Neither trap springs, and with --trust-checkpoint the first does, for that run alone."""
    name, *argv = ENTRIES[entry].split()
    tool = load_tool(name)
    # what fits no model ends a run of LaViT once it is loaded
    save_trap({**trained, 'state_dict': {'backbone.x': torch.zeros(1)}})
    with suppress(SystemExit):
        tool.main([*argv, '--trust-checkpoint'])
    assert sprung()
    shutil.rmtree('out', ignore_errors=True)
    for save in (save_trap, save_gadget):
        forget_runs()
        save(trained)
        capsys.readouterr()
        try:
            code = tool.main(argv)
        except SystemExit as stop:
            code = stop.code
        # a refusal is a finding of check.py like any other
        assert code == 1 if name == 'check' else code == 2
        out, err = capsys.readouterr()
        lines = [line for line in (out + err).splitlines() if 'cannot be read safely' in line]
        assert len(lines) == 1 and "checkpoint 'evil.pth'" in lines[0]
        assert 'Traceback' not in out + err
    assert not sprung() and not Path('out').exists()


def test_models_refuse_without_a_tool(trained):
    """The transfer in upstream's own tools, and models by name."""
    init_cfg = dict(type='Pretrained', checkpoint='evil.pth', prefix='backbone.')
    for save in (save_trap, save_gadget):
        save(trained)
        with pytest.raises(UserError, match='cannot be read safely'):
            LaViT('nano', init_cfg=init_cfg).init_weights()
        for options in (dict(features_only=True), dict(num_classes=3)):
            with pytest.raises(UserError, match='cannot be read safely'):
                create_model('lavit_nano', checkpoint_path='evil.pth', **options)
    assert not sprung()


def test_every_load_of_the_process_is_safe(trained, monkeypatch):
    """Also one that asks for the contrary, in code or by torch's variable."""
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    save_trap(trained)
    before = dict(os.environ)
    with safe_loading(), safe_loading(trust=True):
        with pytest.raises(pickle.UnpicklingError):
            torch.load('evil.pth', weights_only=False)
        with pytest.raises(UserError):
            CheckpointLoader.load_checkpoint('evil.pth')
    assert not sprung() and dict(os.environ) == before
    CheckpointLoader.load_checkpoint('evil.pth')
    assert sprung()


def test_a_type_of_ones_own(trained, fails, run):
    """Refused by its name; data where the program declares it or the file is trusted."""
    publish = load_tool('publish_model')
    torch.save({**trained, 'meta': {'custom': Custom()}}, 'custom.pth')
    assert 'it holds test_safety.Custom' in fails(publish, 'custom.pth', '--out', 'out')
    run(publish, 'custom.pth', '--out', 'out/x.pth', '--trust-checkpoint')
    with torch.serialization.safe_globals([Custom]):
        assert isinstance(load_checkpoint('out/x.pth')['meta']['custom'], Custom)
        torch.save({'state_dict': {}, 'meta': {'custom': Custom(), 'x': Trap()}}, 'evil.pth')
        with pytest.raises(UserError, match='system'):
            load_checkpoint('evil.pth')


@pytest.mark.parametrize('runner', ['mmlavit.PortableRunner', 'FlexibleRunner'])
def test_resuming_executes_no_config_of_the_file(runner, trained, run):
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
    assert not sprung()


def stored(content):
    """Bytes that tell apart whatever a checkpoint holds, types included."""
    buffer = BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def test_what_training_stores_loads_as_it_was(trained):
    """All types of a run are on the allow-list; the test above resumes from it."""
    assert stored(load_checkpoint('work_dirs/trained/epoch_1.pth')) == stored(trained)
    assert {'state_dict', 'message_hub', 'optimizer', 'param_schedulers'} <= set(trained)
    assert 'best_score' in trained['message_hub']['runtime_info']


def test_values_of_older_numpy_load():
    """Published checkpoints name numpy's modules as they were called before version 2."""
    values = [np.float64(0.5), np.int64(3), np.arange(6, dtype=np.uint8).reshape(2, 3), slice(1, 2)]
    values += [np.array(['a', 'bc']), HistoryBuffer([1.0, 2.0], [1, 1])]
    torch.save({'state_dict': {}, 'meta': {'values': values}}, 'new.pth')
    rewrite('new.pth', 'old.pth', lambda text: text.replace(b'numpy._core.', b'numpy.core.'))
    expected = stored(torch.load('new.pth', weights_only=False))
    assert stored(load_checkpoint('old.pth')) == stored(load_checkpoint('new.pth')) == expected


@pytest.fixture
def server(workspace, tmp_path, monkeypatch):
    """Address under which the workspace is served; model names that mmengine resolves to it."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.setenv('MMENGINE_HOME', str(tmp_path))
    handler = partial(SimpleHTTPRequestHandler, directory=str(workspace))
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        address = f'http://127.0.0.1:{running.server_port}'
        names = f'{{"remote": "{address}/evil.pth", "local": "evil.pth"}}'
        (tmp_path / 'open_mmlab.json').write_text(names)
        yield address
        running.shutdown()
        thread.join()


@pytest.mark.parametrize('source', ['{}/evil.pth', 'openmmlab://remote', 'openmmlab://local'])
def test_what_a_name_or_url_leads_to_is_data(source, server, trained, tmp_path):
    """Downloads and names that mmengine resolves are refused alike; mmengine executes URLs."""
    save_trap(trained)
    shutil.copy('evil.pth', tmp_path)
    source = source.format(server)
    with pytest.raises(UserError, match=f'cannot be read safely: it holds {SYSTEM}'):
        load_checkpoint(source)
    assert not sprung()
    CheckpointLoader.load_checkpoint(source, 'cpu')
    assert sprung()


@pytest.mark.parametrize('trust', [False, True])
def test_good_downloads_load_and_a_disguise_is_refused(trust, server, trained):
    """From a file and a URL; a pickle named .safetensors is not unpickled, whoever trusts it."""
    torch.save(trained, 'good.pth')
    save_file(trained['state_dict'], 'good.safetensors')
    Path('cut.safetensors').write_bytes(Path('good.safetensors').read_bytes()[:-9])
    save_trap(trained, _use_new_zipfile_serialization=False)
    shutil.copy('evil.pth', 'evil.safetensors')
    with safe_loading(trust):
        for source in ('good.safetensors', f'{server}/good.safetensors', f'{server}/good.pth'):
            found = load_checkpoint(source)['state_dict']
            torch.testing.assert_close(dict(found), dict(trained['state_dict']), rtol=0, atol=0)
        for source, reason in (
            ('evil.safetensors', 'is damaged, or was not written by safetensors'),
            (f'{server}/evil.safetensors', 'cannot be read: SafetensorError'),
            ('cut.safetensors', 'cannot be read: SafetensorError'),
            (f'{server}/none.pth', 'cannot be read: .*404'),
            ('openmmlab://none', 'cannot be read: .*none'),
        ):
            with pytest.raises(UserError, match=reason):
                load_checkpoint(source)
    assert not sprung()
