"""Metafiles, configs, models, README and docs say the same."""

import re
from pathlib import Path
from typing import Any

import modelindex
import pytest
import torch
from conftest import ROOT, Run, load_tool
from mmengine.config import Config
from mmengine.fileio import load
from mmengine.registry import MODELS, DefaultScope
from mmpretrain.apis.model import ModelHub
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmlavit.models.backbones.arch import ARCHS
from mmlavit.shipped import config_names

INDEX = ROOT / 'model-index.yml'
MODELS_OF_INDEX = [model for path in load(INDEX)['Import'] for model in load(ROOT / path)['Models']]
readme_tables = load_tool('readme_tables')
every_model = pytest.mark.parametrize(
    'model', MODELS_OF_INDEX, ids=[model['Name'] for model in MODELS_OF_INDEX]
)


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
    metrics = readme_tables.metrics_of(model)
    values = [] if model['Metadata']['Training Data'] == 'Shapes' else list(metrics.values())
    assert len(values) == sum(name.endswith(' (paper)') for name in metrics)
    found = re.findall(r'\d+\.\d+', quoted[1]) if quoted else []
    assert found == [str(value) for value in values]


@every_model
def test_lists_of_metadata_hold_texts(model: dict[str, Any]) -> None:
    """openmim, which lists and searches models, turns every element into lower case."""
    lists = [value for value in model['Metadata'].values() if isinstance(value, list)]
    assert all(isinstance(element, str) for value in lists for element in value)


def test_pages_have_the_tables_of_the_metafiles(run: Run) -> None:
    """README and docs agree with them, and each table is on a page."""
    assert 'those of the metafiles' in run(readme_tables)


@pytest.mark.parametrize(
    ('page', 'cell'),
    [
        ('README.md', '| 46.2 box AP |'),
        ('README.md', '| 30.62 M | COCO | 12 epochs |'),
        ('docs/pretraining.md', '| 10.96 M |'),
        ('docs/segmentation.md', '| 2e-4 |'),
    ],
)
def test_a_changed_cell_is_found_and_mended(
    page: str, cell: str, run: Run, fails: Run, tmp_path: Path
) -> None:
    """The message names the page and the line; --write gives the table back."""
    text = (ROOT / page).read_text('utf-8')
    copy, changed = tmp_path / 'page.md', cell.replace('6', '7').replace('2e', '3e')
    assert cell in text
    copy.write_text(text.replace(cell, changed), 'utf-8')
    message = fails(readme_tables, str(copy))
    assert str(copy) in message
    assert changed in message.partition('expected')[0]
    run(readme_tables, str(copy), '--write')
    assert copy.read_text('utf-8') == text


def test_damaged_markers_are_named(fails: Run, tmp_path: Path, monkeypatch: Any) -> None:
    """A table without an end, of an unknown name, or on no page."""
    page = tmp_path / 'README.md'
    for text, message in (
        ('<!-- table: dense -->\n| |\n', '<!-- end of table --> behind <!-- table: dense -->'),
        ('<!-- table: dens -->\n<!-- end of table -->\n', "table 'dens': expected one of"),
    ):
        page.write_text(text)
        assert message in fails(readme_tables, str(page), '--write')
        assert page.read_text() == text
    page.write_text('no table')
    monkeypatch.setattr(readme_tables, 'ROOT', tmp_path)
    assert 'no page has <!-- table: classification -->' in fails(readme_tables)
