"""torch.export, ONNX and the tool that writes it."""

import json
import re
import sys
import warnings
from itertools import count
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import ROOT, Run, forget_runs, load_tool
from mmengine.config import Config
from small_models import ARCH, randomize
from torch import nn
from torch.export import Dim

from mmlavit.apis.onnx_export import ExportError, export_onnx
from mmlavit.cli.plain_model import build_plain_model
from mmlavit.models import LaViT

tool = load_tool('export_onnx')
# even windows are one class in a residual, whose graph is built in half the time
BACKBONE = dict(arch=dict(ARCH, _delete_=True), window_size=4, init_cfg=None)
PURE = (ROOT / 'tests/tool_configs/pure_python.py').read_text().replace('256', '32')
CONFIGS = {
    'cls': PURE.replace("arch='nano'", f'arch={ARCH}, window_size=4, in_channels=4'),
    'det': "_base_ = '{}/mask-rcnn_lavit-nano_shapes.py'\n"
    f'model = dict(backbone={BACKBONE}, neck=dict(in_channels=[16, 32, 32, 32]))',
    'seg': "_base_ = '{}/upernet_lavit-nano_shapes.py'\n"
    f'model = dict(backbone={BACKBONE}, decode_head=dict(in_channels=[16, 32, 32, 32]), '
    'auxiliary_head=dict(in_channels=32))',
    'binary': "_base_ = '{}/semantic-fpn_lavit-nano_shapes.py'\n"
    f'model = dict(backbone={BACKBONE}, neck=dict(in_channels=[16, 32, 32, 32]), decode_head=dict('
    'num_classes=2, out_channels=1, threshold=0.55, loss_decode=dict(use_sigmoid=True)))',
}
# of images that fill windows and patches, that do not, and that are smaller than one window
SIZES = [(2, 3, 96, 128), (1, 3, 56, 56), (3, 3, 131, 67), (1, 3, 5, 200), (1, 3, 1, 1)]

pytestmark = pytest.mark.usefixtures('empty_directory')


@pytest.fixture(scope='module')
def backbone() -> nn.Module:
    """Two stages, with odd windows."""
    return randomize(LaViT(ARCH, out_indices=(0, 1)))


@pytest.fixture(scope='module')
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str, nn.Module]]:
    """Config, checkpoint and model by task."""
    folder, found = tmp_path_factory.mktemp('saved'), {}
    for name, text in CONFIGS.items():
        config, checkpoint = folder / f'{name}.py', folder / f'{name}.pth'
        config.write_text(text.replace("'{}/", f"'{ROOT}/configs/shapes/"))
        model = randomize(build_plain_model(Config.fromfile(config)))
        forget_runs()
        meta = {'dataset_meta': {'classes': ('circle', 'square')}}
        torch.save({'state_dict': model.state_dict(), 'meta': meta}, checkpoint)
        found[name] = (str(config), str(checkpoint), model)
    return found


def run_graph(graph: bytes | Path, images: torch.Tensor) -> list[np.ndarray]:
    content = graph if isinstance(graph, bytes) else str(graph)
    session = onnxruntime.InferenceSession(content, providers=['CPUExecutionProvider'])
    return session.run(None, {'image': images.numpy()})


def assert_equal(found: list[np.ndarray], expected: list[torch.Tensor]) -> None:
    for theirs, ours in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(theirs), ours, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_exported_program_equals_the_model() -> None:
    """torch.export for all sizes, on windows that are full and on those that are not."""
    backbone = randomize(LaViT(ARCH, window_size=4, out_indices=(0, 1)))
    images, shapes = torch.randn(2, 3, 90, 131), (dict.fromkeys((0, 2, 3), Dim.DYNAMIC),)
    program = torch.export.export(backbone, (images,), dynamic_shapes=shapes).module()
    for size in [(3, 3, 112, 224), (5, 3, 97, 100), (4, 3, 301, 90)]:
        tested = torch.randn(size)
        for found, expected in zip(program(tested), backbone(tested), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize('dynamo', [False, pytest.param(True, marks=pytest.mark.slow)])
@torch.no_grad()
def test_one_graph_serves_all_sizes(dynamo: bool, backbone: nn.Module) -> None:
    """Any number of images of any size; also by the older exporter, which torch still has."""
    if dynamo:
        options = dict(dynamic_batch=True, dynamic_size=True)
        graph: bytes | Path = export_onnx(backbone, (3, 96, 128), ['a', 'b'], **options).content
    else:
        graph, axes = Path('model.onnx'), {0: 'batch', 2: 'height', 3: 'width'}
        with warnings.catch_warnings(action='ignore'):
            torch.onnx.export(
                backbone, (torch.randn(SIZES[0]),), graph, dynamo=False, input_names=['image'],
                dynamic_axes={'image': axes},
            )  # fmt: skip
    for size in SIZES:
        images = torch.randn(size)
        assert_equal(run_graph(graph, images), backbone(images))


CALLS = count(1)


class Counting(nn.Module):
    """Adds how often it was called: no graph can hold that."""

    def __init__(self, model: nn.Module | None = None) -> None:
        super().__init__()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.mean((1, 2, 3)) + next(CALLS)


class Deciding(nn.Module):
    """Computes what depends on a pixel."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image if image[0, 0, 0, 0] > 0 else -image


def test_what_no_graph_computes_is_refused() -> None:
    """What onnxruntime computes is compared, not only whether it runs."""
    for module, message in (
        (Counting(), '1x3x32x32, onnxruntime deviates by'),
        (Deciding(), 'torch cannot export it: .*data-dependent'),
    ):
        with pytest.raises(ExportError, match=message):
            export_onnx(module, (3, 32, 32), ['out'])


@pytest.mark.slow
def test_classifier_gives_its_logits(saved: dict, run: Run) -> None:
    """Of a pure Python config: any number of images of four channels; the file describes itself."""
    config, checkpoint, model = saved['cls']
    out, options = Path('new/model.onnx'), ('--shape', '64', '96', '--dynamic-batch')
    output = run(tool, config, checkpoint, '--out', str(out), *options)
    assert f'written: {out}' in output
    assert '1x4x64x96, 3x4x64x96' in output
    images = torch.randn(5, 4, 64, 96)
    with torch.no_grad():
        assert_equal(run_graph(out, images), [model(images, mode='tensor')])
    texts = onnxruntime.InferenceSession(str(out)).get_modelmeta().custom_metadata_map
    assert json.loads(texts['classes']) == ['circle', 'square']
    normalization = json.loads(texts['normalization'])
    assert normalization.pop('to_rgb')
    assert normalization == {'mean': [123.675, 116.28, 103.53], 'std': [58.395, 57.12, 57.375]}


META = dict(img_shape=(64, 96), ori_shape=(64, 96), pad_shape=(64, 96))


@pytest.mark.slow
@torch.no_grad()
def test_segmentor_gives_what_mmseg_infers(saved: dict, run: Run) -> None:
    """Logits at the size of the image."""
    config, checkpoint, model = saved['seg']
    options = ('--out', 'model.onnx', '--shape', '64', '96', '--dynamic-batch')
    run(tool, config, checkpoint, *options)
    images = torch.randn(3, 3, 64, 96)
    expected = model.inference(images, [META] * 3)
    assert_equal(run_graph(Path('model.onnx'), images), [expected])


@pytest.mark.slow
@torch.no_grad()
def test_labels_are_those_of_mmseg(saved: dict, run: Run) -> None:
    """Of several logits the largest decides, of a single one the threshold."""
    images = torch.randn(1, 3, 64, 96)
    for name in ('seg', 'binary'):
        config, checkpoint, model = saved[name]
        (sample,) = model.postprocess_result(model.inference(images, [META]))
        found = tool.Labels(model)(images)
        assert len(found.unique()) > 1
        assert torch.equal(found, sample.pred_sem_seg.data.long())
    run(tool, config, checkpoint, '--out', 'model.onnx', '--shape', '64', '96', '--argmax')
    (labels,) = run_graph(Path('model.onnx'), images)
    assert labels.shape == (1, 64, 96)
    assert (labels == found.numpy()).mean() > 0.999


def test_backbone_of_a_detector_gives_its_maps(saved: dict, run: Run) -> None:
    """The five levels of the FPN; the heads stay out."""
    config, checkpoint, model = saved['det']
    options = ('--out', 'model.onnx', '--shape', '64', '96', '--backbone-only')
    assert 'image -> map0, map1, map2, map3, map4' in run(tool, config, checkpoint, *options)
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert_equal(run_graph(Path('model.onnx'), images), model.extract_feat(images))


def test_a_deviating_graph_leaves_no_file(
    saved: dict, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1, one message, and an older file stays as it was."""
    config, checkpoint, _ = saved['cls']
    monkeypatch.setattr(tool, 'Classifier', Counting)
    out = Path('model.onnx')
    for content in (None, b'older'):
        if content:
            out.write_bytes(content)
        with pytest.raises(SystemExit) as exit_info:
            tool.main([config, checkpoint, '--out', str(out), '--overwrite'])
        assert exit_info.value.code == 1
        assert 'deviates by' in capsys.readouterr().err
        assert (out.read_bytes() if out.exists() else None) == content
        assert len(list(Path().iterdir())) == (content is not None)


@pytest.mark.parametrize(
    ('name', 'options', 'message'),
    [
        ('det', [], 'heads of a detector are not exported.*--backbone-only'),
        ('seg', ['--dynamic-size'], "--dynamic-size: mmseg's heads"),
        ('cls', ['--argmax'], '--argmax: needs a config of mmseg'),
        ('cls', ['--shape', '0', '8'], '--shape 0 8: expected two positive'),
        ('seg', ['--cfg-options', 'model.backbone.out_indeces=3'], 'out_indeces'),
        # the checkpoint has no such head
        ('seg', ['--cfg-options', 'model.decode_head.channels=8'], 'does not belong to this Enc'),
    ],
)
def test_what_cannot_be_is_said_at_once(
    name: str, options: list[str], message: str, saved: dict, fails: Run
) -> None:
    """One message, and no file."""
    config, checkpoint, _ = saved[name]
    assert re.search(message, fails(tool, config, checkpoint, '--out', 'model.onnx', *options))
    assert not Path('model.onnx').exists()


def test_what_stops_it_comes_before_anything_is_read(
    fails: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only --overwrite replaces a file; where a package is missing, the extra is named."""
    argv = ('config.py', 'model.pth', '--out', 'model.onnx')
    Path('model.onnx').write_text('mine')
    assert 'exists; --overwrite' in fails(tool, *argv)
    assert Path('model.onnx').read_text() == 'mine'
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    error = fails(tool, *argv)
    assert "needs onnxruntime: install the extra `export`, as with `pip install 'mmlavit[" in error
