"""Metafiles, configs, models, README and docs say the same."""

import re
import sys
from pathlib import Path
from typing import Any

import modelindex
import pytest
import torch
from conftest import ROOT, load_tool
from mmengine.config import Config
from mmengine.fileio import load
from mmengine.registry import MODELS, DefaultScope
from mmpretrain.apis.model import ModelHub
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmlavit.models.backbones.arch import ARCHS
from mmlavit.shipped import config_names

INDEX = ROOT / 'model-index.yml'
README = ROOT / 'README.md'
MODELS_OF_INDEX = [model for path in load(INDEX)['Import'] for model in load(ROOT / path)['Models']]
readme_tables = load_tool('readme_tables')
every_model = pytest.mark.parametrize(
    'model', MODELS_OF_INDEX, ids=[model['Name'] for model in MODELS_OF_INDEX]
)


def metrics_of(model: dict[str, Any]) -> dict[str, float]:
    """All figures that a metafile has of a model's results, by the name of the metric."""
    lines = [result['Metrics'] for result in model.get('Results', [])]
    return {name: value for line in lines for name, value in line.items()}


def build(cfg: Config) -> torch.nn.Module:
    """The model of a config, without a checkpoint."""
    cfg.model.backbone.init_cfg = None
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MODELS.build(cfg.model).eval()


def test_the_index_imports_every_metafile_and_each_holds_the_configs_of_its_folder() -> None:
    """No config is forgotten, listed twice, or under a name that is not its own."""
    imported = load(INDEX)['Import']
    assert sorted(imported) == sorted(
        path.relative_to(ROOT).as_posix() for path in (ROOT / 'configs').rglob('metafile.yml')
    )
    for path in imported:
        for model in load(ROOT / path)['Models']:
            assert Path(model['Config']) == Path(path).parent / f'{model["Name"]}.py'
    listed = [model['Config'] for model in MODELS_OF_INDEX]
    assert sorted(listed) == [f'configs/{name}' for name in config_names()]


def test_mmpretrain_finds_the_models_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The format holds, and its reader, whose models have names for ``mmpretrain.get_model``."""
    assert modelindex.load(str(INDEX)).check(silent=True) == []
    monkeypatch.setattr(ModelHub, '_models_dict', {})
    monkeypatch.setattr(ModelHub, '_ModelHub__mmpretrain_registered', True)
    ModelHub.register_model_index(INDEX, config_prefix=ROOT)
    assert set(ModelHub._models_dict) == {model['Name'].lower() for model in MODELS_OF_INDEX}
    found = ModelHub.get('lavit-tiny_8xb128_in1k')
    assert found.config.model.backbone.arch == 'tiny'
    assert found.full_model.paper['URL'].endswith('2406.00427')


@every_model
def test_figures_are_those_of_the_model(model: dict[str, Any]) -> None:
    """Parameters, multiply-adds and the schedule, as the config gives them."""
    meta = model['Metadata']
    cfg = Config.fromfile(ROOT / model['Config'])
    built = build(cfg)
    assert meta['Parameters'] == round(sum(p.numel() for p in built.parameters()), -4)
    assert meta['Batch Size'] == cfg.auto_scale_lr.base_batch_size
    assert meta.get('Epochs') == cfg.train_cfg.get('max_epochs')
    assert meta.get('Iterations') == cfg.train_cfg.get('max_iters')
    assert 'Weights' not in model
    if model['Config'].startswith('configs/classification/'):
        # the counter does not know the fused kernel of a CPU
        fused = sdpa_kernel(SDPBackend.MATH)
        with FlopCounterMode(display=False) as counter, torch.no_grad(), fused:
            built(torch.zeros(1, 3, 224, 224))
        assert meta['FLOPs'] == round(counter.get_total_flops() / 2, -7)
    if 'Depths' in meta:
        texts = [meta[key] for key in ('Channels', 'Depths', 'VA Layers')]
        shape = [tuple(int(value) for value in text.split(', ')) for text in texts]
        assert shape == list(ARCHS[cfg.model.backbone.arch][:3])


@every_model
def test_the_config_quotes_the_paper_as_the_metafile_does(model: dict[str, Any]) -> None:
    """Each figure of the paper's is marked, and is the one in the comment of the config."""
    comment = re.match(r'(#.*\n)*', (ROOT / model['Config']).read_text('utf-8'))[0]
    comment = re.sub(r'\(.*?\)', '', comment.replace('\n# ', ' '))
    quoted = re.search(r'The paper +reports (.*?)(?:\.?\n|[.;] )', comment)
    metrics = metrics_of(model)
    values = [] if model['Metadata']['Training Data'] == 'Shapes' else list(metrics.values())
    assert len(values) == sum(name.endswith(' (paper)') for name in metrics)
    found = re.findall(r'\d+\.\d+', quoted[1]) if quoted else []
    assert found == [str(value) for value in values]


@every_model
def test_lists_of_metadata_hold_texts(model: dict[str, Any]) -> None:
    """openmim, which lists and searches models, turns every element into lower case."""
    lists = [value for value in model['Metadata'].values() if isinstance(value, list)]
    assert all(isinstance(element, str) for value in lists for element in value)


def test_readme_has_the_tables_of_the_metafiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``make lint`` looks at them."""
    monkeypatch.setattr(sys, 'argv', ['readme_tables.py'])
    readme_tables.main()


@pytest.mark.parametrize('cell', ['| 46.2 box AP, 67.2 AP50, 49.1 AP75 |', '| 22.43 M |'])
def test_a_changed_cell_is_found_and_repaired(
    cell: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The message shows the line; ``--write`` gives the page back."""
    text = README.read_text('utf-8')
    changed = cell.replace('2', '3')
    assert cell in text
    page = tmp_path / 'README.md'
    page.write_text(text.replace(cell, changed), 'utf-8')
    (tmp_path / 'configs').symlink_to(ROOT / 'configs')
    monkeypatch.setattr(readme_tables, 'ROOT', tmp_path)
    monkeypatch.setattr(sys, 'argv', ['readme_tables.py'])
    with pytest.raises(SystemExit, match='differs'):
        readme_tables.main()
    assert changed in capsys.readouterr().out
    sys.argv.append('--write')
    readme_tables.main()
    assert page.read_text('utf-8') == text


def test_a_page_without_the_marks_is_refused() -> None:
    """A table cannot get lost without a word."""
    with pytest.raises(SystemExit, match='0 tables between <!-- table: classification -->'):
        readme_tables.renew('no table')


@pytest.mark.parametrize('model', load(ROOT / 'configs/shapes/metafile.yml')['Models'])
def test_readme_quotes_what_was_measured_on_shapes(model: dict[str, Any]) -> None:
    """Each model with results has a row, with them in this order."""
    rows = [line for line in README.read_text('utf-8').splitlines() if model['Config'] in line]
    quoted = [re.findall(r'\d+\.\d', row) for row in rows]
    measured = [str(value) for value in metrics_of(model).values()]
    assert quoted == ([measured] if measured else [])
