"""The cost of a model, part by part."""

from pathlib import Path

import pytest
import torch
from closed_formula import closed_formula
from conftest import Run, load_tool
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import mmlavit
from mmlavit.apis.complexity import count_complexity
from mmlavit.models.backbones.arch import ARCHS

tool = load_tool('complexity')
CONFIGS = {
    'cls': 'shapes/lavit-nano_shapes-cls.py',
    'two-stage': 'shapes/mask-rcnn_lavit-nano_shapes.py',
    'cascade': 'detection/cascade-mask-rcnn_lavit-small_fpn_ms-3x_coco.py',
    'one-stage': 'shapes/retinanet_lavit-nano_shapes.py',
    'upernet': 'shapes/upernet_lavit-nano_shapes.py',
    'semantic-fpn': 'shapes/semantic-fpn_lavit-nano_shapes.py',
}


def config(kind: str) -> str:
    return mmlavit.config_path(CONFIGS[kind])


@pytest.fixture(autouse=True)
def alone(isolated: None) -> None:
    """Leave no default scope behind."""


@pytest.mark.parametrize('arch', ARCHS)
@pytest.mark.parametrize('less_attention', [True, False], ids=['LaViT', 'all-VA'])
def test_every_part_equals_the_closed_formula(arch: str, less_attention: bool) -> None:
    """Fused attention, shared by nothing else, counts; so does each part for itself."""
    model = mmlavit.create_model(f'lavit_{arch}', less_attention=less_attention)
    va_layers = ARCHS[arch].va_layers if less_attention else ARCHS[arch].depths
    expected = closed_formula(ARCHS[arch], va_layers=va_layers)
    assert count_complexity(model, (224, 224)) == expected


@pytest.mark.parametrize('kind', ['cls', 'two-stage', 'one-stage', 'upernet', 'semantic-fpn'])
@pytest.mark.parametrize('shape', [(96, 160), (65, 100)])
def test_parts_sum_to_what_a_real_image_costs(kind: str, shape: tuple[int, int]) -> None:
    """Counting on the meta device gives the same as running the model, whatever the size."""
    model = tool.build_plain_model(tool.read_config(config(kind), None)).eval()
    parameters = sum(p.numel() for p in model.parameters())
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        features = model.extract_feat(torch.randn(1, 3, *shape))
        for name in ('head', 'decode_head', 'bbox_head', 'rpn_head'):
            if hasattr(model, name):
                getattr(model, name)(features)
        if kind == 'two-stage':
            model.roi_head.bbox_head(torch.randn(100, 64, 7, 7))
            model.roi_head.mask_head(torch.randn(20, 64, 10, 10))
    found = tool.total(count_complexity(model, shape))
    assert found == (parameters, counter.get_total_flops() // 2)


@pytest.mark.parametrize('kind', CONFIGS)
def test_table_lists_all_parts_and_their_sum(kind: str, run: Run) -> None:
    """The rows of the printed table add up to its last one."""
    output = run(tool, config(kind))
    lines = output[output.index('part') :].splitlines()
    rows = [line.rsplit(maxsplit=3) for line in lines if line.endswith(' G')]
    numbers = {name.strip(): (int(p.replace(',', '')), float(g)) for name, p, g, _ in rows}
    total = numbers.pop('total')
    assert sum(p for p, _ in numbers.values()) == total[0]
    assert sum(g for _, g in numbers.values()) == pytest.approx(total[1], abs=0.0005 * len(rows))
    assert {'embedding', 'FFN', 'less attention (LA)', 'attention residual (AR)'} < set(numbers)
    heads = {
        'cls': {'head'},
        'two-stage': {'neck', 'rpn_head', 'roi_head.bbox_head', 'roi_head.mask_head'},
        'cascade': {'neck', 'rpn_head', 'roi_head.bbox_head', 'roi_head.mask_head'},
        'one-stage': {'neck', 'bbox_head'},
        'upernet': {'decode_head', 'auxiliary_head'},
        'semantic-fpn': {'neck', 'decode_head'},
    }
    assert heads[kind] == set(numbers) - set(closed_formula(ARCHS['nano'])) | heads[kind] & {'head'}
    for name in heads[kind]:
        assert (numbers[name][1] > 0) == (name not in ('auxiliary_head', 'head'))
    assert ('100 for the mask heads' in output) == (kind == 'cascade')
    assert ('RoI heads: 100 regions' in output) == (kind == 'two-stage')


def test_default_shape_is_that_of_the_task(run: Run) -> None:
    """224x224 for a classifier, 800x1344 for a detector, 512x512 for a segmentor."""
    for kind, shape in (('cls', '224x224'), ('one-stage', '800x1344'), ('upernet', '512x512')):
        assert f', {shape} px' in run(tool, config(kind)).splitlines()[0]
    assert ', 64x96 px' in run(tool, config('cls'), '--shape', '64', '96')


def test_comparison_shows_the_baseline_and_the_paper(run: Run) -> None:
    """The baseline's total is its closed formula's, and the paper's figures are the paper's."""
    path = mmlavit.config_path('lavit-small_8xb128_in1k.py')
    output = run(tool, path, '--compare')
    total = next(line for line in output.splitlines() if line.startswith('total')).split()
    arch = ARCHS['small']
    for column, va_layers in ((1, arch.va_layers), (4, arch.depths)):
        parts = closed_formula(arch, va_layers=va_layers).values()
        params, macs = map(sum, zip(*parts, strict=True))
        assert total[column : column + 2] == [f'{params:,}', f'{macs / 1e9:.3f}']
    paper = next(line for line in output.splitlines() if 'paper' in line)
    assert paper.split()[1:5] == ['22,400,000', 'parameters', '3.300', 'G']
    assert {k: tuple(v) for k, v in tool.published().items()} == {
        'tiny': (10_900_000, 1_600_000_000),
        'small': (22_400_000, 3_300_000_000),
        'base': (39_600_000, 6_100_000_000),
    }


def test_comparison_of_an_all_va_model_shows_lavit(run: Run) -> None:
    """Each figure stands under its own name, and the paper's are called LaViT's."""
    output = run(tool, mmlavit.config_path('lavit-small-all-va_8xb128_in1k.py'), '--compare')
    arch, shown = ARCHS['small'], {}
    for line in output.splitlines():
        title, found, rest = line.partition(' parameters ')
        if found and rest.endswith('multiply-adds'):
            *words, parameters = title.split()
            shown[' '.join(words)] = [parameters, rest.split()[0]]
    expected = {'paper, LaViT': ['22,400,000', '3.300']}
    for title, va_layers in (('here', arch.depths), ('here, LaViT', arch.va_layers)):
        parts = closed_formula(arch, va_layers=va_layers).values()
        params, macs = map(sum, zip(*parts, strict=True))
        expected[title] = [f'{params:,}', f'{macs / 1e9:.3f}']
    assert shown == expected
    assert 'parameters, LaViT' in output


def write_config(path: Path, base: str, text: str) -> str:
    """A config that inherits from another."""
    path.write_text(f'_base_ = [{base!r}]\n{text}\n')
    return str(path)


def test_images_have_the_channels_of_the_backbone(run: Run, tmp_path: Path) -> None:
    """The embedding costs what one of four channels costs, in the comparison too."""
    path = write_config(
        tmp_path / 'four.py',
        mmlavit.config_path('lavit-tiny_8xb128_in1k.py'),
        'model = dict(backbone=dict(in_channels=4))',
    )
    output = run(tool, path, '--compare')
    params, macs = map(sum, zip(*closed_formula(ARCHS['tiny']).values(), strict=True))
    params, macs = params + 4 * 4 * 64, macs + 56 * 56 * 4 * 4 * 64
    assert output.count(f'{params:,}') == 2
    assert output.count(f'{macs / 1e9:.3f} G') == 2


DETECTORS = {
    'mask2former/mask2former_r50_8xb2-lsj-50e_coco.py': (
        'panoptic_head=dict(in_channels=[32, 64, 128, 256])',
        'a Mask2Former cannot be counted: it is not known what panoptic_head costs',
    ),
    'detr/detr_r50_8xb2-150e_coco.py': (
        'neck=dict(in_channels=[32, 64, 128, 256], num_outs=4)',
        'a DETR cannot be counted on an image of 64x96: ',
    ),
    'dynamic_rcnn/dynamic-rcnn_r50_fpn_1x_coco.py': (
        'neck=dict(in_channels=[32, 64, 128, 256]), test_cfg=dict(rcnn=dict(max_per_img=None))',
        'model.test_cfg: rpn.max_per_img and rcnn.max_per_img must be set',
    ),
}


@pytest.mark.parametrize('base', DETECTORS, ids=lambda base: base.partition('/')[0])
def test_parts_of_unknown_cost_are_refused(base: str, fails: Run, tmp_path: Path) -> None:
    """Rather than left out of the sum; the message names the model and the part."""
    rest, message = DETECTORS[base]
    backbone = "dict(_delete_=True, type='mmlavit.LaViT', arch='nano')"
    path = write_config(
        tmp_path / 'detector.py', f'mmdet::{base}', f'model = dict(backbone={backbone}, {rest})'
    )
    assert message in fails(tool, path, '--shape', '64', '96')


def test_mask_heads_are_named_only_where_there_are_any(run: Run, tmp_path: Path) -> None:
    """Faster R-CNN has none."""
    path = write_config(
        tmp_path / 'faster.py', config('two-stage'), 'model = dict(roi_head=dict(mask_head=None))'
    )
    output = run(tool, path, '--shape', '64', '96')
    assert 'RoI heads: 100 regions for the box heads, the most that test_cfg lets' in output


def test_overrides_reach_the_model(run: Run) -> None:
    """--cfg-options changes what is counted."""
    plain = run(tool, config('cls'))
    changed = run(tool, config('cls'), '--cfg-options', 'model.backbone.attention_residual=False')
    assert 'attention residual' in plain
    assert 'attention residual' not in changed


def test_wrong_input_ends_in_one_message(fails: Run) -> None:
    """Shape, override and config are named, with what was expected."""
    assert "'nowhere.py' does not exist" in fails(tool, 'nowhere.py')
    assert '--shape 0 5: expected two positive' in fails(tool, config('cls'), '--shape', '0', '5')
    arch = 'model.backbone.arch=smal'
    assert "arch='smal': expected one of" in fails(tool, config('cls'), '--cfg-options', arch)
    assert 'the backbone is a ResNet' in fails(tool, 'cls.py', '--compare')
