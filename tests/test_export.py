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
from conftest import Run, forget_runs, load_tool
from mmengine.config import Config
from small_models import ARCH, randomize
from torch import nn
from torch.export import Dim

import mmlavit
from mmlavit.apis.onnx_export import ExportError, export_onnx
from mmlavit.cli.plain_model import build_plain_model
from mmlavit.models import LaViT

tool = load_tool('export_onnx')
BASES = {
    'cls': ('shapes/lavit-nano_shapes-cls.py', 'head=dict(in_channels=32)'),
    'det': ('shapes/mask-rcnn_lavit-nano_shapes.py', 'neck=dict(in_channels=[16, 32, 32, 32])'),
    'seg': (
        'shapes/upernet_lavit-nano_shapes.py',
        'decode_head=dict(in_channels=[16, 32, 32, 32]), auxiliary_head=dict(in_channels=32)',
    ),
    'fpn': ('shapes/semantic-fpn_lavit-nano_shapes.py', 'neck=dict(in_channels=[16, 32, 32, 32])'),
    'binary': (
        'shapes/semantic-fpn_lavit-nano_shapes.py',
        'neck=dict(in_channels=[16, 32, 32, 32]), decode_head=dict(num_classes=2, out_channels=1, '
        'threshold=0.55, loss_decode=dict(use_sigmoid=True))',
    ),
    'four channels': ('shapes/lavit-nano_shapes-cls.py', 'head=dict(in_channels=32)'),
}


@pytest.fixture(scope='module')
def backbone() -> nn.Module:
    """Two stages."""
    return randomize(LaViT(ARCH, out_indices=(0, 1)))


@pytest.fixture(scope='module')
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str, nn.Module]]:
    """Config, checkpoint and model by task."""
    folder, found = tmp_path_factory.mktemp('saved'), {}
    for name, (base, rest) in BASES.items():
        config, checkpoint = folder / f'{name}.py', folder / f'{name}.pth'
        # even windows are one class in a residual, whose graph is built in half the time; the
        # classifier has the default, odd ones
        window = 7 if name == 'cls' else 4
        backbone = dict(arch=dict(ARCH, _delete_=True), window_size=window, init_cfg=None)
        if name == 'four channels':
            backbone['in_channels'] = 4
        config.write_text(
            f'_base_ = [{mmlavit.config_path(base)!r}]\n'
            f'model = dict(backbone={backbone!r}, {rest})\n'
        )
        model = randomize(build_plain_model(Config.fromfile(config)))
        forget_runs()
        meta = {'dataset_meta': {'classes': ('circle', 'square')}}
        torch.save({'state_dict': model.state_dict(), 'meta': meta}, checkpoint)
        found[name] = (str(config), str(checkpoint), model)
    return found


@pytest.fixture(autouse=True)
def alone(empty_directory: Path) -> None:
    """Leave no default scope behind."""


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])


def close(found: np.ndarray, expected: torch.Tensor) -> bool:
    return np.allclose(found, expected.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('axes', [(), (0,), (0, 2, 3)], ids=['static', 'batch', 'sizes'])
def test_exported_program_equals_the_model(backbone: nn.Module, axes: tuple[int, ...]) -> None:
    """torch.export, on windows that are full and on those that are not."""
    images = torch.randn(2, 3, 90, 131)
    others = {
        (): [],
        (0,): [(5, 3, 90, 131)],
        (0, 2, 3): [(3, 3, 112, 224), (5, 3, 97, 100), (4, 3, 301, 90)],
    }[axes]
    with torch.no_grad():
        shapes = (dict.fromkeys(axes, Dim.DYNAMIC),)
        program = torch.export.export(backbone, (images,), dynamic_shapes=shapes).module()
        for tested in (images, *(torch.randn(size) for size in others)):
            for found, expected in zip(program(tested), backbone(tested), strict=True):
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_the_older_onnx_exporter_serves_all_sizes_too(backbone: nn.Module, tmp_path: Path) -> None:
    """`dynamo=False`, which torch still has: any number of images of any size."""
    path, axes = tmp_path / 'model.onnx', {0: 'batch', 2: 'height', 3: 'width'}
    with warnings.catch_warnings(action='ignore'), torch.no_grad():
        torch.onnx.export(
            backbone, (torch.randn(2, 3, 96, 128),), path, dynamo=False, input_names=['image'],
            dynamic_axes={'image': axes},
        )  # fmt: skip
    graph = session(path)
    for size in [(2, 3, 96, 128), (1, 3, 56, 56), (3, 3, 131, 67), (1, 3, 5, 200), (1, 3, 1, 1)]:
        images = torch.randn(size)
        with torch.no_grad():
            expected = backbone(images)
        for found, ours in zip(graph.run(None, {'image': images.numpy()}), expected, strict=True):
            assert close(found, ours), size


@pytest.mark.slow
def test_one_graph_serves_all_sizes(backbone: nn.Module, tmp_path: Path) -> None:
    """Sides that fill windows and patches, that do not, and that are smaller than one window."""
    result = export_onnx(backbone, (96, 128), ['a', 'b'], dynamic_batch=True, dynamic_size=True)
    (tmp_path / 'model.onnx').write_bytes(result.content)
    graph = session(tmp_path / 'model.onnx')
    for size in [(2, 3, 96, 128), (1, 3, 56, 56), (3, 3, 131, 67), (1, 3, 5, 200), (1, 3, 1, 1)]:
        images = torch.randn(size)
        with torch.no_grad():
            expected = backbone(images)
        for found, ours in zip(graph.run(None, {'image': images.numpy()}), expected, strict=True):
            assert found.shape == ours.shape
            assert close(found, ours), size


CALLS = count(1)


class Counting(nn.Module):
    """Adds how often it was called: no graph can hold that."""

    def __init__(self, model: nn.Module | None = None) -> None:
        super().__init__()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.mean((1, 2, 3)) + next(CALLS)


class Rounding(Counting):
    """The same with whole numbers."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return super().forward(image).long()


class Deciding(nn.Module):
    """Computes what depends on a pixel."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image if image[0, 0, 0, 0] > 0 else -image


@pytest.mark.parametrize('module', [Counting(), Rounding()], ids=['real', 'whole'])
def test_a_graph_that_deviates_is_refused(module: nn.Module) -> None:
    """What onnxruntime computes is compared, not only whether it runs."""
    with pytest.raises(ExportError, match='1x3x32x32, onnxruntime deviates by'):
        export_onnx(module, (32, 32), ['out'])


def test_a_model_that_decides_by_pixels_is_refused() -> None:
    """The reason is torch's, in one line."""
    with pytest.raises(ExportError, match='torch cannot export it: .*data-dependent'):
        export_onnx(Deciding(), (32, 32), ['out'])


@pytest.mark.slow
def test_classifier_gives_its_logits(saved: dict, run: Run, tmp_path: Path) -> None:
    """Any number of images, with the names and the normalization in the file."""
    config, checkpoint, model = saved['cls']
    out = tmp_path / 'new/model.onnx'
    output = run(
        tool, config, checkpoint, '--out', str(out), '--shape', '64', '96', '--dynamic-batch'
    )
    assert f'written: {out}' in output
    assert '1x3x64x96, 3x3x64x96' in output
    graph, images = session(out), torch.randn(4, 3, 64, 96)
    with torch.no_grad():
        expected = model(images, mode='tensor')
    assert close(graph.run(['logits'], {'image': images.numpy()})[0], expected)
    texts = graph.get_modelmeta().custom_metadata_map
    assert json.loads(texts['classes']) == ['circle', 'square']
    normalization = json.loads(texts['normalization'])
    assert normalization == {
        'mean': [123.675, 116.28, 103.53],
        'std': [58.395, 57.12, 57.375],
        'to_rgb': True,
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'output', 'batch'),
    [('seg', 'logits', 1), ('seg', 'logits', 3), ('fpn', 'labels', 2), ('binary', 'labels', 1)],
)
def test_segmentor_gives_what_mmseg_predicts(
    name: str, output: str, batch: int, saved: dict, run: Run, tmp_path: Path
) -> None:
    """Logits, or with --argmax labels, at the size of the image, as mmseg's own inference."""
    config, checkpoint, model = saved[name]
    out = tmp_path / 'model.onnx'
    options = ['--argmax'] * (output == 'labels') + ['--dynamic-batch'] * (batch > 1)
    run(tool, config, checkpoint, '--out', str(out), '--shape', '64', '96', *options)
    images = torch.randn(batch, 3, 64, 96)
    meta = dict(img_shape=(64, 96), ori_shape=(64, 96), pad_shape=(64, 96))
    with torch.no_grad():
        expected = model.inference(images, [meta] * batch)
    found = session(out).run([output], {'image': images.numpy()})[0]
    if output == 'logits':
        assert found.shape == (batch, 4, 64, 96)
        assert close(found, expected)
    else:
        assert found.shape == (batch, 64, 96)
        assert len(np.unique(found)) > 1
        samples = model.postprocess_result(expected)
        labels = np.concatenate([sample.pred_sem_seg.data.numpy() for sample in samples])
        assert (found == labels).mean() > 0.999


@pytest.mark.parametrize('name', ['fpn', 'binary'])
def test_labels_are_those_of_mmseg(name: str, saved: dict) -> None:
    """Of several logits the largest decides, of a single one the threshold."""
    model, images = saved[name][2], torch.randn(2, 3, 64, 96)
    meta = dict(img_shape=(64, 96), ori_shape=(64, 96), pad_shape=(64, 96))
    with torch.no_grad():
        samples = model.postprocess_result(model.inference(images, [meta] * 2))
        found = tool.Labels(model)(images)
    assert len(found.unique()) > 1
    for labels, sample in zip(found, samples, strict=True):
        assert torch.equal(labels, sample.pred_sem_seg.data[0].long())


@pytest.mark.slow
def test_channels_are_those_of_the_backbone(saved: dict, run: Run, tmp_path: Path) -> None:
    """Classifier and backbone of images with four channels."""
    config, checkpoint, model = saved['four channels']
    images = torch.randn(1, 4, 64, 96)
    with torch.no_grad():
        expected = model(images, mode='tensor'), model.backbone(images)[0]
    for options, ours in zip(([], ['--backbone-only']), expected, strict=True):
        out = tmp_path / f'{len(options)}.onnx'
        output = run(tool, config, checkpoint, '--out', str(out), '--shape', '64', '96', *options)
        assert 'images of 1x4x64x96' in output
        assert close(session(out).run(None, {'image': images.numpy()})[0], ours)


@pytest.mark.slow
@pytest.mark.parametrize('sizes', [[(1, 64, 96)], [(2, 64, 96), (1, 50, 131)]], ids=str)
def test_backbone_of_a_detector_gives_its_maps(
    sizes: list, saved: dict, run: Run, tmp_path: Path
) -> None:
    """The five levels of the FPN, for one size or for any; the heads stay out."""
    config, checkpoint, model = saved['det']
    out = tmp_path / 'model.onnx'
    arguments = [config, checkpoint, '--out', str(out), '--shape', '64', '96', '--backbone-only']
    if len(sizes) > 1:
        arguments += ['--dynamic-batch', '--dynamic-size']
    assert 'image -> map0, map1, map2, map3, map4' in run(tool, *arguments)
    for batch, *size in sizes:
        images = torch.randn(batch, 3, *size)
        with torch.no_grad():
            expected = model.extract_feat(images)
        maps = session(out).run(None, {'image': images.numpy()})
        for found, ours in zip(maps, expected, strict=True):
            assert close(found, ours)


def test_a_deviating_graph_leaves_no_file(
    saved: dict,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit code 1, one message, and an older file stays as it was."""
    config, checkpoint, _ = saved['cls']
    monkeypatch.setattr(tool, 'Classifier', Counting)
    out = tmp_path / 'model.onnx'
    for content in (None, b'older'):
        if content:
            out.write_bytes(content)
        with pytest.raises(SystemExit) as exit_info:
            tool.main([config, checkpoint, '--out', str(out), '--overwrite'])
        assert exit_info.value.code == 1
        assert 'deviates by' in capsys.readouterr().err
        assert (out.read_bytes() if out.exists() else None) == content
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith('.')] == []


@pytest.mark.parametrize(
    ('name', 'options', 'message'),
    [
        ('det', [], 'heads of a detector are not exported.*--backbone-only'),
        ('seg', ['--dynamic-size'], "--dynamic-size: mmseg's heads"),
        ('cls', ['--argmax'], '--argmax: needs a config of mmseg'),
        ('cls', ['--shape', '0', '8'], '--shape 0 8: expected two positive'),
        ('cls', ['--cfg-options', 'model.backbone.out_indeces=3'], 'out_indeces'),
    ],
)
def test_what_cannot_be_is_said_at_once(
    name: str, options: list[str], message: str, saved: dict, fails: Run, tmp_path: Path
) -> None:
    """One message, and no file."""
    config, checkpoint, _ = saved[name]
    out = tmp_path / 'model.onnx'
    error = fails(tool, config, checkpoint, '--out', str(out), *options)
    assert len(error.strip().splitlines()) == 1
    assert re.search(message, error)
    assert not out.exists()


def test_a_checkpoint_of_another_model_is_refused(saved: dict, fails: Run, tmp_path: Path) -> None:
    """No weight is left at random."""
    config, checkpoint = saved['seg'][0], saved['cls'][1]
    assert 'does not belong' in fails(tool, config, checkpoint, '--out', str(tmp_path / 'm.onnx'))


def test_an_existing_file_is_kept(saved: dict, fails: Run, tmp_path: Path) -> None:
    """Only --overwrite replaces a file."""
    config, checkpoint, _ = saved['cls']
    out = tmp_path / 'model.onnx'
    out.write_text('mine')
    assert 'exists; --overwrite' in fails(tool, config, checkpoint, '--out', str(out))
    assert out.read_text() == 'mine'


def test_without_the_packages_the_extra_is_named(
    fails: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names what is missing and what installs it, before anything is read."""
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    error = fails(tool, 'config.py', 'model.pth', '--out', str(tmp_path / 'model.onnx'))
    assert "needs onnxruntime: install the extra `export`, as with `pip install 'mmlavit[" in error
