"""The benchmarks measure what they say, print it, and keep it."""

import importlib
import json
import re
import subprocess
import sys

import pytest
from closed_formula import closed_formula
from conftest import ROOT, forget_runs
from PIL import Image

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
        [*TINY, '--sizes', '64x96', '--peers', '--growth', '--models', '--model-sizes', '64']
        + ['--plot', str(plot), '--json', str(kept)]
    )
    printed = [line.split('|')[1:-1] for line in capsys.readouterr().out.splitlines()]
    table = [[cell.strip() for cell in line] for line in printed]
    rows = json.loads(kept.read_text())['rows']
    parts = {name: [row for row in rows if row['part'] == name] for name in
             ('backbones', 'growth', 'models')}  # fmt: skip
    names = ['LaViT', 'Swin-T', 'LaViT, activation checkpointing']
    assert [row['model'] for row in parts['backbones']] == names
    for row in parts['backbones']:
        assert row['train']['milliseconds']['median'] > 0
        assert 0 < row['train']['share_of_peak']['median'] < 1
        assert row['memory'] > 0
        line = next(line for line in table if line and line[0] == row['model'])
        assert line[1] == f'{row["parameters"] / 1e6:.2f}'
        assert line[-2] == f'{row["memory"] / 2**20:.0f}'
    lavit, swin, checkpointed = parts['backbones']
    assert 'forward' not in checkpointed
    assert swin['forward']['speed_over_swin']['median'] == 1
    ratio = swin['train']['milliseconds']['median'] / lavit['train']['milliseconds']['median']
    assert lavit['train']['speed_over_swin']['median'] == pytest.approx(ratio)
    assert [(row['model'], row['large']) for row in parts['growth']] == [
        ('LaViT', '128x192'),
        ('Swin-T', '128x192'),
    ]
    assert [(row['model'], row['backbone']) for row in parts['models']] == [
        (model, name) for model in ('Mask R-CNN', 'UperNet') for name in ('LaViT', 'Swin-T')
    ]
    assert parts['models'][0]['boxes'] is not None
    with Image.open(plot) as image:
        assert image.format == 'PNG'


@pytest.mark.slow
def test_layers_runs_from_any_directory(tmp_path):
    """The four tables have a row for every window, size and stage that they can."""
    done = subprocess.run(
        [sys.executable, str(ROOT / 'benchmarks/layers.py'), *TINY, '--threads', '1']
        + ['--sizes', '64', '96', '--windows', '7', '4', '--json', 'layers.json'],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r'\|\s+LA over VA', done.stdout)) == 3
    rows = json.loads((tmp_path / 'layers.json').read_text())['rows']
    found = {}
    for row in rows:
        found.setdefault(row['part'], []).append(
            (row.get('window'), row['size'], row.get('stage') or row.get('mode'))
        )
    # maps of 16, 8, 4 and 2 tokens a side
    modules = [
        (window, '64x64', stage)
        for window, last in ((7, 2), (4, 3))
        for stage in range(1, last + 1)
    ]
    both = [(window, size) for window in (7, 4) for size in ('64x64', '96x96')]
    assert found == {
            'attention, forward': modules,
        'attention, training': modules,
        'residual': [(*pair, None) for pair in both],
        'model': [
            (None, size, mode) for size in ('64x64', '96x96') for mode in ('forward', 'training')
        ],
    }  # fmt: skip
    for row in rows:
        if row['part'] == 'residual':
            assert 0 < row['share']['median'] < 1
        else:
            assert row['la_over_va']['median'] == pytest.approx(
                row['la_milliseconds']['median'] / row['va_milliseconds']['median']
            )


@pytest.mark.parametrize(
    ('peer', 'billions'),
    # as published, with a 1000-way head, which adds no more than 0.002
    [('swin', 4.5), ('pvtv2', 4.0), ('convnext', 4.5), ('resnet', 4.1)],
)
def test_multiply_adds_are_those_published(benchmark, peer, billions):
    """Attention counts, fused or not, and so do convolutions."""
    config = benchmark('subjects').PEERS[peer][1]
    counted = benchmark('counting').multiply_adds(config, (224, 224))
    assert counted / 1e9 == pytest.approx(billions, abs=0.1)


def test_multiply_adds_of_lavit_do_not_depend_on_tiles(benchmark):
    """At sizes whose maps take several tiles on a CPU."""
    for side in (448, 512):
        counted = benchmark('counting').multiply_adds(dict(type='mmlavit.LaViT'), (side, side))
        parts = closed_formula(ARCHS['small'], side=side, fitted=True)
        assert counted == sum(macs for part, (_, macs) in parts.items() if part != 'head')


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
        (['--compile', '--models'], '--models: Mask R-CNN'),
        (['--compile', '--mode', 'train'], 'add --no-memory'),
    ],
)
def test_wrong_options_end_in_one_message(benchmark, fails, argv, expected):
    """Nothing is measured before all options are known to fit."""
    small = (*TINY, '--sizes', '32', '--mode', 'forward', '--peers')
    assert expected in fails(benchmark('speed'), *small, *argv)


def test_border_windows_compares_two_ways_of_one_model(benchmark, tmp_path, capsys, fails):
    """A row for each pass; a GPU, where windows are whole, is refused before anything is timed."""
    module, kept = benchmark('border_windows'), tmp_path / 'windows.json'
    module.main([*TINY, '--sizes', '64x96', '--json', str(kept)])
    printed = capsys.readouterr().out
    rows = json.loads(kept.read_text())['rows']
    assert [(row['mode'], row['size']) for row in rows] == [
        ('forward', '64x96'),
        ('training', '64x96'),
    ]
    for row in rows:
        fitted, whole, ratio = (
            row[key]['median']
            for key in ('fitted_milliseconds', 'whole_milliseconds', 'fitted_over_whole')
        )
        assert ratio == pytest.approx(fitted / whole)
        assert f'{ratio:.2f} ± 0.00' in printed
    assert 'only on a CPU' in fails(module, *TINY, '--device', 'meta')
