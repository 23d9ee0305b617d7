"""Metafiles, configs, models and the pages of READMEs say the same."""

import re
import sys
from pathlib import Path
from typing import Any

import modelindex
import pytest
from conftest import ROOT, load_tool
from mmengine.fileio import load
from mmpretrain.apis.model import ModelHub

from mmlavit.shipped import config_names

INDEX = ROOT / 'model-index.yml'
README = ROOT / 'README.md'
MODELS_OF_INDEX = [model for path in load(INDEX)['Import'] for model in load(ROOT / path)['Models']]
readme_tables = load_tool('readme_tables')


def metrics_of(model: dict[str, Any]) -> dict[str, str]:
    """All figures that a metafile has of a model's results, by the name of the metric."""
    lines = [result['Metrics'] for result in model.get('Results', [])]
    return {name: str(value) for line in lines for name, value in line.items()}


def test_the_index_has_each_config_once_under_its_own_name() -> None:
    """In the metafile of its folder."""
    files = sorted(path.relative_to(ROOT) for path in (ROOT / 'configs').rglob('metafile.yml'))
    assert sorted(map(Path, load(INDEX)['Import'])) == files
    for path in files:
        for model in load(ROOT / path)['Models']:
            assert Path(model['Config']) == path.parent / f'{model["Name"]}.py'
    listed = sorted(model['Config'] for model in MODELS_OF_INDEX)
    assert listed == [f'configs/{name}' for name in config_names()]


def test_mmpretrain_finds_the_models_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The format holds, and its reader, whose models have names for ``mmpretrain.get_model``."""
    errors = modelindex.load(str(INDEX)).check(silent=True)
    # modelindex takes the path from the metafile's folder, OpenMMLab from the root
    assert [error for error in errors if 'Path to README' not in error] == []
    # openmim turns every element of a list into lower case
    values = [value for model in MODELS_OF_INDEX for value in model['Metadata'].values()]
    lists = [value for value in values if isinstance(value, list)]
    assert all(isinstance(element, str) for value in lists for element in value)
    monkeypatch.setattr(ModelHub, '_models_dict', {})
    monkeypatch.setattr(ModelHub, '_ModelHub__mmpretrain_registered', True)
    ModelHub.register_model_index(INDEX, config_prefix=ROOT)
    assert set(ModelHub._models_dict) == {model['Name'].lower() for model in MODELS_OF_INDEX}
    found = ModelHub.get('lavit-tiny_8xb128_in1k')
    assert found.config.model.backbone.arch == 'tiny'
    assert found.full_model.paper['URL'].endswith('2406.00427')


@pytest.mark.parametrize('model', MODELS_OF_INDEX, ids=lambda model: model['Name'])
def test_the_config_and_the_page_of_its_folder_quote_the_metafile(model: dict[str, Any]) -> None:
    """Figures of the paper are marked, and all stand in this order in a row that links the config.

    The comment of the config has those of the paper, too.
    """
    metrics = list(metrics_of(model).values())
    paper = [value for name, value in metrics_of(model).items() if name.endswith(' (paper)')]
    assert paper in ([], metrics)
    comment = re.match(r'(#.*\n)*', (ROOT / model['Config']).read_text('utf-8'))[0]
    comment = re.sub(r'\(.*?\)', '', comment.replace('\n# ', ' '))
    quoted = re.search(r'The paper +reports (.*?)(?:\.?\n|[.;] )', comment)
    assert re.findall(r'\d+\.\d+', quoted[1] if quoted else '') == paper
    page = ROOT / Path(model['Config']).with_name('README.md')
    assert ROOT / model.get('README', page) == page
    link = f'[{model["Name"]}]({model["Name"]}.py)'
    (row,) = [line for line in page.read_text('utf-8').splitlines() if link in line]
    size = f'{model["Metadata"]["Parameters"] / 1e6:.2f} M'
    found = re.findall(rf'{re.escape(size)}|\d+\.\d\b(?! G)', row.replace(link, ''))
    assert found == [size, *metrics]


def test_a_changed_cell_is_found_and_repaired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """README's tables are those of the metafiles; ``--write`` gives the page back."""
    text, page = README.read_text('utf-8'), tmp_path / 'README.md'
    page.write_text(text.replace('| 22.43 M |', '| 33.43 M |'), 'utf-8')
    (tmp_path / 'configs').symlink_to(ROOT / 'configs')
    monkeypatch.setattr(readme_tables, 'ROOT', tmp_path)
    monkeypatch.setattr(sys, 'argv', ['readme_tables.py'])
    with pytest.raises(SystemExit, match='differs'):
        readme_tables.main()
    assert '| 33.43 M |' in capsys.readouterr().out
    sys.argv.append('--write')
    readme_tables.main()
    assert page.read_text('utf-8') == text


@pytest.mark.parametrize('model', load(ROOT / 'configs/shapes/metafile.yml')['Models'])
def test_readme_quotes_what_was_measured_on_shapes(model: dict[str, Any]) -> None:
    """Each model with results has a row, with them in this order."""
    rows = [line for line in README.read_text('utf-8').splitlines() if model['Config'] in line]
    measured = list(metrics_of(model).values())
    assert [re.findall(r'\d+\.\d', row) for row in rows] == ([measured] if measured else [])
