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


def columns(arch: str, va_layers: tuple = (), more: tuple[int, int] = (0, 0)) -> list[str]:
    """Parameters and multiply-adds of a classifier by arithmetic, as the tables print them."""
    params, macs = zip(*closed_formula(ARCHS[arch], va_layers=va_layers).values(), strict=True)
    return [f'{sum(params) + more[0]:,}', f'{(sum(macs) + more[1]) / 1e9:.3f}']


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


@pytest.mark.parametrize(
    ('config', 'shape'), zip(list(CONFIGS)[::2], ('224x224', '800x1344', '512x512'), strict=True)
)
def test_default_shape_is_that_of_the_task(config: str, shape: str, run: Run) -> None:
    assert f', {shape} px' in run(tool, mmlavit.config_path(config)).splitlines()[0]


@pytest.mark.parametrize('less_attention', [True, False], ids=['LaViT', 'all-VA'])
def test_comparison_shows_the_other_kind_and_the_paper(run: Run, less_attention: bool) -> None:
    """Each figure stands under its own name, and the paper's are called LaViT's."""
    name = 'lavit-small_8xb128_in1k.py' if less_attention else 'lavit-small-all-va_8xb128_in1k.py'
    output = run(tool, mmlavit.config_path(name), '--compare')
    titles = ['LaViT', 'all-VA baseline']
    counts = [columns('small'), columns('small', ARCHS['small'].depths)]
    here, other = counts if less_attention else counts[::-1]
    title = titles[less_attention]
    assert f'parameters, {title}' in output
    total = next(line for line in output.splitlines() if line.startswith('total')).split()
    assert total[1:6] == [*here, 'G', *other]
    rows = [line.replace(' parameters', '').rsplit(maxsplit=4) for line in output.splitlines()[-3:]]
    paper = 'paper' if less_attention else 'paper, LaViT'
    assert {title.strip(): figures for title, *figures, _, _ in rows} == {
        'here': here,
        f'here, {title}': other,
        paper: ['22,400,000', '3.300'],
    }


def test_images_have_the_channels_of_the_backbone(run: Run) -> None:
    """The embedding costs what one of four channels costs, in the comparison too."""
    config = mmlavit.config_path('lavit-tiny_8xb128_in1k.py')
    output = run(tool, config, '--compare', '--cfg-options', 'model.backbone.in_channels=4')
    params, macs = columns('tiny', more=(4 * 4 * 64, 56 * 56 * 4 * 4 * 64))
    assert output.count(params) == output.count(f'{macs} G') == 2


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
    ],
    ids=['mask2former', 'detr'],
)
def test_parts_of_unknown_cost_are_refused(
    base: str, rest: str, message: str, fails: Run, tmp_path: Path
) -> None:
    """Rather than left out of the sum; the message names the model and the part."""
    backbone = "backbone=dict(_delete_=True, type='mmlavit.LaViT', arch='nano')"
    path = tmp_path / 'detector.py'
    path.write_text(f'_base_ = ["mmdet::{base}"]\nmodel = dict({backbone}, {rest})\n')
    assert message in fails(tool, str(path), '--shape', '64', '96')


def test_wrong_input_ends_in_one_message(fails: Run) -> None:
    """Shape, override, which reaches the model, and config are named, with what was expected."""
    config = mmlavit.config_path('lavit-nano_shapes-cls.py')
    assert "'nowhere.py' does not exist" in fails(tool, 'nowhere.py')
    assert '--shape 0 5: expected two positive' in fails(tool, config, '--shape', '0', '5')
    arch = 'model.backbone.arch=smal'
    assert "arch='smal': expected one of" in fails(tool, config, '--cfg-options', arch)
    assert 'the backbone is a ResNet' in fails(tool, 'cls.py', '--compare')
