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
BACKBONE = set(closed_formula(ARCHS['nano'])) - {'head'}
# what comes after the backbone
CONFIGS = {
    'lavit-nano_shapes-cls.py': {'head'},
    'mask-rcnn_lavit-nano_shapes.py': {
        *('neck', 'rpn_head', 'roi_head.bbox_head', 'roi_head.mask_head')
    },
    'retinanet_lavit-nano_shapes.py': {'neck', 'bbox_head'},
    'upernet_lavit-nano_shapes.py': {'decode_head', 'auxiliary_head'},
    'semantic-fpn_lavit-nano_shapes.py': {'neck', 'decode_head'},
}
CASCADE = 'cascade-mask-rcnn_lavit-small_fpn_ms-3x_coco.py'


@pytest.fixture(autouse=True)
def alone(isolated: None) -> None:
    """Leave no default scope behind."""


def totals(arch: str, va_layers: tuple = ()) -> tuple[int, int]:
    """Parameters and multiply-adds of a classifier by arithmetic."""
    params, macs = zip(*closed_formula(ARCHS[arch], va_layers=va_layers).values(), strict=True)
    return sum(params), sum(macs)


def columns(arch: str, va_layers: tuple = ()) -> list[str]:
    """The same as the tables print it."""
    params, macs = totals(arch, va_layers)
    return [f'{params:,}', f'{macs / 1e9:.3f}']


@pytest.mark.parametrize('arch', ARCHS)
@pytest.mark.parametrize('less_attention', [True, False], ids=['LaViT', 'all-VA'])
def test_every_part_equals_the_closed_formula(arch: str, less_attention: bool) -> None:
    """Fused attention, shared by nothing else, counts; so does each part for itself."""
    model = mmlavit.create_model(f'lavit_{arch}', less_attention=less_attention)
    va_layers = ARCHS[arch].va_layers if less_attention else ARCHS[arch].depths
    expected = closed_formula(ARCHS[arch], va_layers=va_layers)
    assert count_complexity(model, (224, 224)) == expected


@pytest.mark.parametrize('config', CONFIGS)
def test_parts_sum_to_what_a_real_image_costs(config: str) -> None:
    """Counting on the meta device gives the same as running the model, whatever the size."""
    path, shape = mmlavit.config_path(config), (65, 100)
    model = tool.build_plain_model(tool.read_config(path, None)).eval()
    parameters = sum(p.numel() for p in model.parameters())
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        features = model.extract_feat(torch.randn(1, 3, *shape))
        for name in CONFIGS[config] & {'head', 'decode_head', 'bbox_head', 'rpn_head'}:
            getattr(model, name)(features)
        if hasattr(model, 'roi_head'):
            model.roi_head.bbox_head(torch.randn(100, 64, 7, 7))
            model.roi_head.mask_head(torch.randn(20, 64, 10, 10))
    found = count_complexity(model, shape)
    assert set(found) == BACKBONE | CONFIGS[config]
    assert tool.total(found) == (parameters, counter.get_total_flops() // 2)


def test_rows_add_up_to_the_last_one(run: Run) -> None:
    """Also with a head for each step of a cascade."""
    output = run(tool, mmlavit.config_path(CASCADE), '--shape', '64', '96')
    assert ', 64x96 px' in output
    rows = [line.rsplit(maxsplit=3) for line in output.splitlines() if line.endswith(' G')]
    numbers = {name.strip(): (int(p.replace(',', '')), float(g)) for name, p, g, _ in rows}
    total = numbers.pop('total')
    assert sum(p for p, _ in numbers.values()) == total[0]
    assert sum(g for _, g in numbers.values()) == pytest.approx(total[1], abs=0.0005 * len(rows))
    assert {'roi_head.bbox_head', 'roi_head.mask_head'} < set(numbers)
    assert '1000 regions for the box heads, 100 for the mask heads' in output


def test_default_shape_is_that_of_the_task(run: Run) -> None:
    shapes = ('224x224', '800x1344', '800x1344', '512x512', '512x512')
    for config, shape in zip(CONFIGS, shapes, strict=True):
        assert f', {shape} px' in run(tool, mmlavit.config_path(config)).splitlines()[0]


@pytest.mark.parametrize('less_attention', [True, False], ids=['LaViT', 'all-VA'])
def test_comparison_shows_the_other_kind_and_the_paper(run: Run, less_attention: bool) -> None:
    """Each figure stands under its own name, and the paper's are called LaViT's."""
    name = 'lavit-small_8xb128_in1k.py' if less_attention else 'lavit-small-all-va_8xb128_in1k.py'
    output = run(tool, mmlavit.config_path(name), '--compare')
    lavit, all_va = columns('small'), columns('small', ARCHS['small'].depths)
    here, other, title = (lavit, all_va, 'all-VA baseline')
    if not less_attention:
        here, other, title = (all_va, lavit, 'LaViT')
    assert f'parameters, {title}' in output
    total = next(line for line in output.splitlines() if line.startswith('total')).split()
    assert total[1:6] == [*here, 'G', *other]
    shown = {}
    for line in output.splitlines()[-3:]:
        words = line.replace(' parameters', '').rsplit(maxsplit=4)
        shown[words[0].strip()] = words[1:3]
    paper = 'paper' if less_attention else 'paper, LaViT'
    assert shown == {
        'here': here,
        f'here, {title}': other,
        paper: ['22,400,000', '3.300'],
    }


def write_config(path: Path, base: str, model: str) -> str:
    """A config that changes the model of another."""
    path.write_text(f'_base_ = [{base!r}]\nmodel = dict({model})\n')
    return str(path)


def test_images_have_the_channels_of_the_backbone(run: Run, tmp_path: Path) -> None:
    """The embedding costs what one of four channels costs, in the comparison too."""
    base = mmlavit.config_path('lavit-tiny_8xb128_in1k.py')
    path = write_config(tmp_path / 'four.py', base, 'backbone=dict(in_channels=4)')
    output = run(tool, path, '--compare')
    params, macs = totals('tiny')
    assert output.count(f'{params + 4 * 4 * 64:,}') == 2
    assert output.count(f'{(macs + 56 * 56 * 4 * 4 * 64) / 1e9:.3f} G') == 2


@pytest.mark.parametrize(
    ('base', 'rest', 'message'),
    [
        (
            'mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
            'panoptic_head=dict(in_channels=[32, 64, 128, 256])',
            'a Mask2Former cannot be counted: it is not known what panoptic_head costs',
        ),
        (
            'detr/detr_r50_8xb2-150e_coco.py',
            'neck=dict(in_channels=[32, 64, 128, 256], num_outs=4)',
            'a DETR cannot be counted on an image of 64x96: ',
        ),
        (
            'dynamic_rcnn/dynamic-rcnn_r50_fpn_1x_coco.py',
            'neck=dict(in_channels=[32, 64, 128, 256]), test_cfg=dict(rcnn=dict(max_per_img=None))',
            'model.test_cfg: rpn.max_per_img and rcnn.max_per_img must be set',
        ),
    ],
    ids=['mask2former', 'detr', 'dynamic_rcnn'],
)
def test_parts_of_unknown_cost_are_refused(
    base: str, rest: str, message: str, fails: Run, tmp_path: Path
) -> None:
    """Rather than left out of the sum; the message names the model and the part."""
    backbone = "backbone=dict(_delete_=True, type='mmlavit.LaViT', arch='nano')"
    path = write_config(tmp_path / 'detector.py', f'mmdet::{base}', f'{backbone}, {rest}')
    assert message in fails(tool, path, '--shape', '64', '96')


def test_mask_heads_are_named_only_where_there_are_any(run: Run, tmp_path: Path) -> None:
    """Faster R-CNN has none."""
    base = mmlavit.config_path('mask-rcnn_lavit-nano_shapes.py')
    path = write_config(tmp_path / 'faster.py', base, 'roi_head=dict(mask_head=None)')
    output = run(tool, path, '--shape', '64', '96')
    assert 'RoI heads: 100 regions for the box heads, the most that test_cfg lets' in output


def test_wrong_input_ends_in_one_message(fails: Run) -> None:
    """Shape, override, which reaches the model, and config are named, with what was expected."""
    config = mmlavit.config_path('lavit-nano_shapes-cls.py')
    assert "'nowhere.py' does not exist" in fails(tool, 'nowhere.py')
    assert '--shape 0 5: expected two positive' in fails(tool, config, '--shape', '0', '5')
    arch = 'model.backbone.arch=smal'
    assert "arch='smal': expected one of" in fails(tool, config, '--cfg-options', arch)
    assert 'the backbone is a ResNet' in fails(tool, 'cls.py', '--compare')
