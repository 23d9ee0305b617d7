"""The benchmarks measure what they say, print it, and keep it."""

import importlib
import json
from functools import partial
from itertools import product

import pytest
import torch
from conftest import ROOT, forget_runs
from mmengine.registry import MODELS, DefaultScope
from PIL import Image

from mmlavit.apis.complexity import multiply_adds
from mmlavit.models import LaViT, diagonality_loss

TINY = ('--arch', 'nano', '--batch', '1', '--rounds', '1', '--min-seconds', '0')


@pytest.fixture
def benchmark(monkeypatch):
    """Import a module of benchmarks/ by its name."""
    monkeypatch.syspath_prepend(str(ROOT / 'benchmarks'))
    yield importlib.import_module
    forget_runs()


@pytest.mark.slow
def test_speed_prints_and_keeps_the_same_figures(benchmark, tmp_path, capsys):
    kept = tmp_path / 'speed.json'
    argv = ['--sizes', '96x160', '--peers', '--no-memory', '--json', str(kept)]
    benchmark('speed').main([*TINY, *argv])
    printed = capsys.readouterr().out
    content = json.loads(kept.read_text())
    assert content['command'] in printed
    assert f'commit {content["machine"]["commit"]}, ' in printed
    rows = {row['model']: row for row in content['rows']}
    others = ['LaViT, no DP loss', 'LaViT, activation checkpointing']
    assert list(rows) == ['LaViT', 'Swin-T', *others]
    for name, row in rows.items():
        assert ('forward' in row) == (name not in others)
        assert f'| {name} ' in printed and f'{row["parameters"] / 1e6:.2f}' in printed
    swin, mine = (rows[name]['training'] for name in ('Swin-T', 'LaViT'))
    ratio = swin['milliseconds']['eager']['median'] / mine['milliseconds']['eager']['median']
    assert mine['speed_over_swin']['median'] == pytest.approx(ratio)


@pytest.mark.slow
def test_memory_is_that_of_the_activations(benchmark):
    """More than a map of the first hidden layer takes, and far from what loads torch."""
    setting = benchmark('timing').Setting(torch.device('cpu'), torch.float32, 1, 1, 0, False)
    subject = benchmark('subjects').subjects_of('nano', [])['LaViT']
    found = benchmark('memory').training_memory(subject, (320, 320), 4, setting)
    assert 4 * 80 * 80 * 128 * 4 < found < 1e9


def test_layers_prints_ratios_of_its_own_columns(benchmark, monkeypatch, tmp_path, capsys):
    """A row for every stage, size and pass, whatever the working directory."""
    monkeypatch.chdir(tmp_path)
    argv = ['--sizes', '64', '32', '--json', 'layers.json']
    benchmark('layers').main([*TINY, *argv])
    printed = capsys.readouterr().out
    rows = json.loads((tmp_path / 'layers.json').read_text())['rows']
    modules, models = ([row for row in rows if row['part'] == p] for p in ('attention', 'model'))
    assert [(row['mode'], row['stage'], row['map']) for row in modules] == [
        (mode, stage, f'{side}x{side}')
        for mode in ('forward', 'training')
        for stage, side in enumerate((16, 8, 4, 2), start=1)
    ]
    assert [row['size'] for row in models] == ['64x64', '32x32']
    for row in models:
        assert 0 < row['residual_share']['median'] < 1
        la, va, ratio = (value['median'] for value in row['training'].values())
        assert ratio == pytest.approx(la / va)
        plain = row['training, no DP loss']['la_milliseconds']['median']
        assert row['diagonality_share']['median'] == pytest.approx(1 - plain / la)
        assert printed.count(f'| {row["size"]} |') == 3


def test_the_faster_way_of_each_module_counts(benchmark, capsys):
    """One that torch cannot compile is timed as it is, and named."""
    timing = benchmark('timing')
    setting = timing.Setting(torch.device('cpu'), torch.float32, 1, 3, 0, True)
    module = torch.nn.Identity()

    def refuse(run):
        if run is not module:
            raise RuntimeError('a graph break')

    calls = {'works': (module, lambda run: run(1)), 'breaks': (module, refuse)}
    found = timing.time_ways(calls, setting, 'title')
    ways = {name: list(found[name]) for name in found}
    assert ways == {'works': ['eager', 'compiled'], 'breaks': ['eager']}
    assert 'breaks cannot be compiled: RuntimeError: a graph break' in capsys.readouterr().err
    fast = found['works']['eager']
    assert timing.best({'eager': fast + 1, 'compiled': fast}) is fast


def test_the_diagonality_loss_is_that_of_training(benchmark):
    """It adds what the hook of the configs adds, and nothing is left of it without it."""
    loss_of = benchmark('recipe').TrainingLoss
    model, images = LaViT('nano').eval(), torch.randn(2, 3, 64, 96)
    plain = loss_of(model, False)(images)
    layers = [layer for layer in model.forward_trace(images)[1] if layer.kind == 'LA']
    found = [diagonality_loss(layer.logits, layer.windows) for layer in layers]
    with_loss = loss_of(model, True)
    for _ in range(2):
        torch.testing.assert_close(with_loss(images), plain + sum(found) / len(found))


def test_kernels_are_counted_with_what_they_move(benchmark):
    """A view is none; an operand that is expanded is read once."""
    count = benchmark('kernels').count
    x, y, bias = torch.ones(4, 6), torch.ones(4, 8), torch.ones(1, 8)
    found = count(lambda: (x.t().reshape(24).view(6, 4) @ y) + bias.expand(6, 8))
    assert dict(found.kernels) == {'aten.clone.default': 1, 'aten.mm.default': 1,
                                   'aten.add.Tensor': 1}  # fmt: skip
    assert found.bytes == 4 * ((24 + 24) + (24 + 32 + 48) + (48 + 8 + 48))


def test_backward_pass_is_counted_as_torch_runs_it(benchmark):
    """On a CPU, where torch's engine can be asked as well."""
    kernels, recipe, backward = map(benchmark, ('kernels', 'recipe', 'backward'))
    loss = recipe.TrainingLoss(LaViT('nano'), True)
    images = torch.randn(1, 3, 64, 96)
    mine = kernels.count(partial(backward.backward, loss(images)))
    torchs = kernels.count(loss(images).backward)
    assert (mine.kernels, mine.bytes) == (torchs.kernels, torchs.bytes)


def test_kernels_of_both_models_and_backends_in_all_passes(benchmark, tmp_path, capsys):
    """Without a GPU."""
    kept = tmp_path / 'kernels.json'
    argv = ['--arch', 'nano', '--size', '96', '--batch', '2', '--json', str(kept)]
    benchmark('kernels').main(argv)
    printed = capsys.readouterr().out
    rows = json.loads(kept.read_text())['rows']
    found = {(row['model'], row['backend'], row['mode']): row['bytes'] for row in rows}
    assert len(found) == len(rows) == 10
    assert all(f' {row["kernels"]} |' in printed for row in rows)
    modes = ('forward', 'training, no DP loss', 'training')
    forward, plain, training = (found['LaViT', 'definition', mode] for mode in modes)
    assert forward < plain < training
    assert found['LaViT', 'auto', 'training'] < training / 1.5


@pytest.mark.parametrize(
    ('peer', 'billions'),
    # as published, with a 1000-way head, which adds no more than 0.002
    [('swin', 4.5), ('convnext', 4.5)],
)
def test_multiply_adds_are_those_published(benchmark, peer, billions):
    """Attention counts, fused or not, and so do convolutions."""
    subjects = benchmark('subjects')
    model = subjects.build_backbone(subjects.PEERS[peer][1], torch.device('cpu'))
    assert multiply_adds(model, (224, 224))[''] / 1e9 == pytest.approx(billions, abs=0.1)


@pytest.mark.parametrize(
    ('argv', 'expected'),
    [
        (['--sizes', '224x'], "'224x'"),
        (['--batch', '1', '2'], '2 values for 1 sizes'),
        (['--json', 'nowhere/figures.json'], "'nowhere/figures.json'"),
        (['--device', 'gpu'], "'gpu' cannot be used"),
    ],
)
def test_wrong_options_end_in_one_message(benchmark, fails, argv, expected):
    """Nothing is measured before all options are known to fit."""
    small = (*TINY, '--sizes', '32', '--mode', 'forward', '--peers')
    assert expected in fails(benchmark('speed'), *small, *argv)


@pytest.mark.parametrize('task', ['cifar10', 'bccd', 'camvid'])
def test_peers_of_one_size_fit_the_models_of_photographs(benchmark, task, shapes, tmp_path, capsys):
    """All within 15 % of LaViT's parameters, and with maps that neck and head take."""
    tasks, models = benchmark('real_data'), benchmark('real_data_models')
    args = tasks.parse_args([task, '--data', str(shapes), '--out', str(tmp_path)])
    with pytest.raises(SystemExit):
        tasks.parse_args([task, '--data', str(tmp_path)])
    assert f'{tmp_path / task} is missing' in capsys.readouterr().err
    if task == 'cifar10':
        args.images = 4
        cfg = tasks.make_config(tasks.Run(task, 'scratch', 'lavit', 1e-3, 0), args)
        assert cfg.train_dataloader.dataset.indices == [0, 3, 4]  # of six, and 1 is held out
    reference = None
    for name in models.ALL:
        cfg = tasks.make_config(tasks.Run(task, 'scratch', name, 1e-3, 0), args)
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            model = MODELS.build(cfg.model)
        size = sum(p.numel() for p in model.backbone.parameters())
        reference = reference or size
        assert 0.85 * reference < size < 1.15 * reference, name
        assert model.extract_feat(torch.randn(2, 3, 64, 64))


@pytest.mark.slow
def test_photographs_are_learnt_once(benchmark, tmp_path, monkeypatch, capsys):
    """Each rate trains once, the best one with all seeds, and what is there is not run again."""
    tasks = benchmark('real_data')
    few_rates = tasks.TASKS['cifar10']._replace(rates=(1e-3,))
    monkeypatch.setitem(tasks.TASKS, 'cifar10', few_rates)
    for split, i in product(('train', 'test'), range(10)):
        folder = tmp_path / 'cifar10' / split / f'class {i}'
        folder.mkdir(parents=True)
        Image.new('RGB', (32, 32), (20 * i, 0, 0)).save(folder / '0.png')
    kept, drawn = tmp_path / 'found.json', tmp_path / 'curves.png'
    argv = ['cifar10', '--data', str(tmp_path), '--out', str(tmp_path / 'runs'), '--models',
            'lavit', '--seeds', '0', '--json', str(kept), '--png', str(drawn)]  # fmt: skip
    tasks.main(argv)
    *_, row = json.loads(kept.read_text())['rows']
    assert [int(epoch) for epoch in row['curve']] == list(range(1, 11))
    assert f'{row["parameters"] / 1e6:.2f} M' in capsys.readouterr().out
    (result,) = (tmp_path / 'runs').glob('*/*/result.json')
    written = result.stat().st_mtime_ns
    tasks.main(argv)
    assert result.stat().st_mtime_ns == written
    assert f'| {row["test"]:.2f} |' in capsys.readouterr().out
    assert drawn.stat().st_size
    with pytest.raises(SystemExit):
        benchmark('real_data_attention').main([str(tmp_path)])
    assert f"'{tmp_path}': expected the folder of a run" in capsys.readouterr().err
    measured = ['--json', str(tmp_path / 'attention.json')]
    benchmark('real_data_attention').main([str(result.parent), *measured])
    layers = json.loads((tmp_path / 'attention.json').read_text())['rows'][0]['layers']
    assert [layer['kind'] for layer in layers] == ['VA', 'VA', 'LA', 'VA', 'LA', 'VA']
    assert '1.00 VA' in capsys.readouterr().out  # all tokens of one color are alike
