"""The benchmarks measure what they say, print it, and keep it."""

import importlib
import json
import shutil
import subprocess
import sys
from functools import partial

import pytest
import torch
from closed_formula import closed_formula
from conftest import ROOT, forget_runs
from PIL import Image

from mmlavit.apis.complexity import multiply_adds
from mmlavit.models import LaViT, diagonality_loss
from mmlavit.models.backbones.arch import ARCHS

TINY = ('--arch', 'nano', '--batch', '1', '--rounds', '1', '--min-seconds', '0')


@pytest.fixture
def benchmark(monkeypatch):
    """Import a module of benchmarks/ by its name."""
    monkeypatch.syspath_prepend(str(ROOT / 'benchmarks'))
    yield importlib.import_module
    forget_runs()


@pytest.mark.slow
def test_speed_measures_everything_that_it_offers(benchmark, tmp_path, capsys):
    """Each table has the expected rows, and the JSON file the same figures as the table."""
    plot, kept = tmp_path / 'speed.png', tmp_path / 'speed.json'
    benchmark('speed').main(
        [*TINY, '--sizes', '96x160', '--peers', '--models', '--model-sizes', '64']
        + ['--plot', str(plot), '--json', str(kept)]
    )
    printed = capsys.readouterr().out
    table = [[cell.strip() for cell in line.split('|')[1:-1]] for line in printed.splitlines()]
    content = json.loads(kept.read_text())
    assert content['command'] in printed
    assert f'commit {content["machine"]["commit"]}, ' in printed
    rows = {
        row['model']: row for row in content['rows'] if row['part'] == 'backbones'
    }  # fmt: skip
    lavit, no_dp, checkpointed = (
        f'LaViT{rest}' for rest in ('', ', no DP loss', ', activation checkpointing')
    )
    assert list(rows) == [lavit, 'Swin-T', no_dp, checkpointed]
    for name, row in rows.items():
        assert ('forward' in row) == (name not in (no_dp, checkpointed))
        assert row['memory'] > 0
        line = next(line for line in table if line and line[0] == name)
        assert line[1] == f'{row["parameters"] / 1e6:.2f}'
        assert line[-2] == f'{row["memory"] / 2**20:.0f}'
    swin, mine = (
        rows[name]['training']['milliseconds']['eager']['median'] for name in ('Swin-T', lavit)
    )
    assert rows[lavit]['training']['speed_over_swin']['median'] == pytest.approx(swin / mine)
    assert rows['Swin-T']['forward']['speed_over_swin']['median'] == 1
    models = [row for row in content['rows'] if row['part'] == 'models']
    assert [(row['model'], row['backbone']) for row in models] == [
        (model, name) for model in ('Mask R-CNN', 'UperNet') for name in ('LaViT', 'Swin-T')
    ]
    assert models[0]['boxes'] is not None
    with Image.open(plot) as image:
        assert image.format == 'PNG'


def test_layers_runs_from_any_directory(tmp_path):
    """The tables have a row for every stage, size and pass, and ratios of their own columns."""
    done = subprocess.run(
        [sys.executable, str(ROOT / 'benchmarks/layers.py'), *TINY, '--threads', '1']
        + ['--sizes', '64', '96', '--json', 'layers.json'],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / 'layers.json').read_text())['rows']
    modules, models = ([row for row in rows if row['part'] == p] for p in ('attention', 'model'))
    assert [(row['mode'], row['stage'], row['map']) for row in modules] == [
        (mode, stage, f'{side}x{side}')
        for mode in ('forward', 'training')
        for stage, side in enumerate((16, 8, 4, 2), start=1)
    ]
    assert [row['size'] for row in models] == ['64x64', '96x96']
    for row in models:
        assert 0 < row['residual_share']['median'] < 1
        la, plain = (
            row[mode]['la_milliseconds']['median'] for mode in ('training', 'training, no DP loss')
        )
        assert row['diagonality_share']['median'] == pytest.approx(1 - plain / la)
        assert row['forward']['la_over_va']['median'] == pytest.approx(
            row['forward']['la_milliseconds']['median']
            / row['forward']['va_milliseconds']['median']
        )
        assert done.stdout.count(f'| {row["size"]} |') == 3


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
    assert {name: list(ways) for name, ways in found.items()} == {
        'works': ['eager', 'compiled'],
        'breaks': ['eager'],
    }
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


def test_commit_is_unknown_outside_a_checkout(benchmark, tmp_path):
    """Also within the checkout of something else."""
    for name in ('common.py', 'timing.py'):
        target = tmp_path / 'copy/benchmarks' / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / 'benchmarks' / name, target)
    subprocess.run(['git', 'init', '-q', str(tmp_path)], check=True)
    code = 'import common; print(common.commit())'
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=target.parent, capture_output=True, text=True
    )
    assert done.stdout == 'unknown\n', done.stderr


def test_kernels_are_counted_with_what_they_move(benchmark):
    """A view is none; an operand that is expanded is read once."""
    count = benchmark('kernels').count
    x, y, bias = torch.ones(4, 6), torch.ones(4, 8), torch.ones(1, 8)
    found = count(lambda: (x.t().reshape(24).view(6, 4) @ y) + bias.expand(6, 8))
    assert dict(found.kernels) == {'aten.clone.default': 1, 'aten.mm.default': 1,
                                   'aten.add.Tensor': 1}  # fmt: skip
    moved = (24 + 24) + (24 + 32 + 48) + (48 + 8 + 48)
    assert found.bytes == 4 * moved


def test_backward_pass_is_counted_as_torch_runs_it(benchmark):
    """On a CPU, where torch's engine can be asked as well."""
    kernels, recipe, backward = map(benchmark, ('kernels', 'recipe', 'backward'))
    loss = recipe.TrainingLoss(LaViT('nano'), True)
    images = torch.randn(1, 3, 64, 96)
    mine = kernels.count(partial(backward.backward, loss(images)))
    torchs = kernels.count(loss(images).backward)
    assert mine.kernels == torchs.kernels
    assert mine.bytes == torchs.bytes


def test_kernels_do_not_depend_on_the_batch_and_bytes_do(benchmark, tmp_path, capsys):
    """Rows for both models, both backends and all passes, without a GPU."""
    found = {}
    for batch in (2, 8):
        kept = tmp_path / f'{batch}.json'
        benchmark('kernels').main(
            ['--arch', 'nano', '--size', '96', '--batch', str(batch), '--json', str(kept)]
        )
        printed = capsys.readouterr().out
        for row in json.loads(kept.read_text())['rows']:
            key = row['model'], row['backend'], row['mode']
            found.setdefault(key, []).append((row['kernels'], row['bytes']))
            assert f' {row["kernels"]} |' in printed
    assert len(found) == 10
    for (kernels, few), (same, many) in found.values():
        assert kernels == same
        assert few < many < 4 * few
    for backend in ('definition', 'auto'):
        forward, plain, training = (
            found['LaViT', backend, mode][0][0]
            for mode in ('forward', 'training, no DP loss', 'training')
        )
        assert forward < plain < training


@pytest.mark.parametrize(
    ('peer', 'billions'),
    # as published, with a 1000-way head, which adds no more than 0.002
    [('swin', 4.5), ('pvtv2', 4.0), ('convnext', 4.5), ('resnet', 4.1)],
)
def test_multiply_adds_are_those_published(benchmark, peer, billions):
    """Attention counts, fused or not, and so do convolutions."""
    subjects = benchmark('subjects')
    model = subjects.build_backbone(subjects.PEERS[peer][1], torch.device('cpu'))
    assert multiply_adds(model, (224, 224))[''] / 1e9 == pytest.approx(billions, abs=0.1)


def test_multiply_adds_of_lavit_count_whole_windows():
    """At sizes whose maps end within a window."""
    for side in (448, 512):
        parts = closed_formula(ARCHS['small'], side=side)
        expected = sum(macs for part, (_, macs) in parts.items() if part != 'head')
        assert multiply_adds(LaViT('small'), (side, side))[''] == expected


@pytest.mark.parametrize(
    ('argv', 'expected'),
    [
        (['--sizes', '224x'], "'224x'"),
        (['--sizes', '0x64'], 'HEIGHTxWIDTH'),
        (['--batch', '1', '2'], '2 values for 1 sizes'),
        (['--json', 'nowhere/figures.json'], "'nowhere/figures.json'"),
        (['--device', 'gpu'], "'gpu' cannot be used"),
        (['--peers', 'swim'], "'swim'"),
        (['--rounds', '0'], 'at least 1'),
        (['--no-backbones', '--plot', 'speed.png'], 'nothing to draw'),
    ],
)
def test_wrong_options_end_in_one_message(benchmark, fails, argv, expected):
    """Nothing is measured before all options are known to fit."""
    small = (*TINY, '--sizes', '32', '--mode', 'forward', '--peers')
    assert expected in fails(benchmark('speed'), *small, *argv)
