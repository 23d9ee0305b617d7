"""Predict images with a model of a toolbox, paint what it predicts and write it down."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mmcv
import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, TRANSFORMS, VISUALIZERS, init_default_scope
from PIL import Image
from torch import nn

from mmlavit.datasets.guarded import why_unreadable
from mmlavit.errors import UserError

__all__ = ['LoadedImage', 'Predictor']

VISUALIZER_TYPES = {
    'mmpretrain': 'UniversalVisualizer',
    'mmdet': 'DetLocalVisualizer',
    'mmseg': 'SegLocalVisualizer',
}
SMALLEST_PICTURE, LARGEST_PICTURE = 224, 4096


class LoadedImage(NamedTuple):
    """An image behind the test pipeline.

    ``picture`` is to paint on: RGB, shape (height, width, 3), uint8; ``data`` is what the pipeline
    returned, with ``inputs`` of shape (C, h, w).
    """

    picture: np.ndarray
    data: dict[str, Any]


class Predictor:
    """A model of a toolbox, behind the test pipeline of its config.

    The data of the config need not be there. Where ``metainfo``, what the checkpoint says of its
    dataset, has no ``classes``, the test dataset of the config names them.

    Raises:
        UserError: If there is no test pipeline, or nothing names the classes.
    """

    def __init__(
        self, cfg: Config, model: nn.Module, metainfo: Mapping[str, Any], device: str
    ) -> None:
        self.model: Any = model.to(device)
        self.scope = cfg.default_scope
        init_default_scope(self.scope)
        dataset: Any = (cfg.get('test_dataloader') or {}).get('dataset') or {}
        while inner := dataset.get('dataset') or next(iter(dataset.get('datasets', ())), None):
            dataset = inner
        if not dataset.get('pipeline'):
            raise UserError(f'{cfg.filename}: test_dataloader.dataset.pipeline must be set')
        self.classes, self.palette = _classes_and_palette(dataset, metainfo, str(cfg.filename))
        # There is nothing to load of a new image but its pixels.
        self.pipeline = [
            TRANSFORMS.build(transform)
            for transform in dataset.pipeline
            if 'Annotation' not in getattr(transform.type, '__name__', transform.type)
        ]
        options = {'type': VISUALIZER_TYPES[self.scope], **(cfg.get('visualizer') or {})}
        options.update(name='predict', vis_backends=None)
        self.visualizer: Any = VISUALIZERS.build(options)
        self.visualizer.dataset_meta = {'classes': self.classes, 'palette': self.palette}

    def load(self, path: Path) -> LoadedImage:
        """Take an image through the test pipeline, which decides what an image is.

        Raises:
            ValueError: If the pipeline cannot read the file; the message tells why.
        """
        results: Any = {'img_path': str(path), 'img_id': 0}
        picture = None
        try:
            for transform in self.pipeline:
                results = transform(results)
                if picture is None and 'img' in results:
                    # Most loaders give OpenCV's order; others keep that of the file.
                    backend = getattr(transform, 'imdecode_backend', 'tifffile')
                    picture = _picture(results['img'], bgr=backend != 'tifffile')
        except Exception as error:
            told = f'{type(error).__name__}: {error}'.partition('\n')[0]
            raise ValueError(why_unreadable(str(path)) or told) from error
        assert picture is not None
        return LoadedImage(picture, results)

    @torch.no_grad()
    def predict(self, images: Sequence[LoadedImage]) -> list[Any]:
        """Predict images whose ``inputs`` have one shape as one batch; data samples on the CPU."""
        batch = pseudo_collate([image.data for image in images])
        return [sample.cpu() for sample in self.model.test_step(batch)]

    def save(self, picture: np.ndarray, sample: Any, out: Path, png: str, score_thr: float) -> Any:
        """Write the painted picture and the mask of a segmentor; return what results() takes."""
        (out / 'pictures' / png).parent.mkdir(parents=True, exist_ok=True)
        task = {'mmpretrain': _classify, 'mmdet': _detect, 'mmseg': _segment}[self.scope]
        return task(self, picture, sample, out, png, score_thr)

    def results(self, records: Mapping[str, Any]) -> dict[str, Any]:
        """What ``predictions.json`` holds, of what :meth:`save` returned by name of the image."""
        if self.scope == 'mmpretrain':
            return dict(records)
        if self.scope == 'mmseg':
            return {'classes': self.classes, 'palette': self.palette, 'masks': dict(records)}
        images, annotations = [], list[dict[str, Any]]()
        for image_id, (name, (height, width, objects)) in enumerate(records.items(), start=1):
            images.append({'id': image_id, 'file_name': name, 'height': height, 'width': width})
            for found in objects:
                ids = {'id': len(annotations) + 1, 'image_id': image_id, 'file_name': name}
                annotations.append(ids | found)
        categories = [{'id': k, 'name': name} for k, name in enumerate(self.classes, start=1)]
        return {'images': images, 'categories': categories, 'annotations': annotations}


def _classify(
    predictor: Predictor, picture: np.ndarray, sample: Any, out: Path, png: str, score_thr: float
) -> dict[str, Any]:
    from mmpretrain.models import MultiLabelClsHead

    # The text does not fit on less, and drawing on more takes gigabytes.
    side = min(picture.shape[:2])
    resized = int(np.clip(side, SMALLEST_PICTURE, LARGEST_PICTURE))
    predictor.visualizer.visualize_cls(
        picture,
        sample,
        classes=predictor.classes,
        resize=resized if resized != side else None,
        draw_gt=False,
        out_file=str(out / 'pictures' / png),
    )
    labels = sample.pred_label.tolist()
    classes = [predictor.classes[label] for label in labels]
    scores = sample.pred_score[sample.pred_label].tolist()
    if isinstance(predictor.model.head, MultiLabelClsHead):
        return {'labels': labels, 'classes': classes, 'scores': scores}
    return {'label': labels[0], 'class': classes[0], 'score': scores[0]}


def _detect(
    predictor: Predictor, picture: np.ndarray, sample: Any, out: Path, png: str, score_thr: float
) -> tuple[int, int, list[dict[str, Any]]]:
    from mmdet.structures.mask import encode_mask_results

    if 'pred_instances' not in sample:
        raise UserError('the model predicts no boxes, as panoptic ones: predict.py takes detectors')
    predictor.visualizer.add_datasample(
        png,
        picture,
        sample,
        draw_gt=False,
        pred_score_thr=score_thr,
        out_file=str(out / 'pictures' / png),
    )
    found = sample.pred_instances.numpy()
    masks = encode_mask_results(found.masks) if 'masks' in found else None
    objects = []
    for i, (x1, y1, x2, y2) in enumerate(found.bboxes.tolist()):
        label = int(found.labels[i])
        entry: dict[str, Any] = {
            'category_id': label + 1,
            'category_name': predictor.classes[label],
            'bbox': [x1, y1, x2 - x1, y2 - y1],
            'area': (x2 - x1) * (y2 - y1),
            'iscrowd': 0,
            'score': float(found.scores[i]),
        }
        if masks is not None:
            entry['area'] = int(found.masks[i].sum())
            entry['segmentation'] = {**masks[i], 'counts': masks[i]['counts'].decode()}
        objects.append(entry)
    return (*picture.shape[:2], objects)


def _segment(
    predictor: Predictor, picture: np.ndarray, sample: Any, out: Path, png: str, score_thr: float
) -> str:
    labels = sample.pred_sem_seg.data[0].numpy().astype(np.uint8)
    visualizer = predictor.visualizer
    visualizer.add_datasample(png, picture, sample, draw_gt=False, with_labels=False)
    for label in np.unique(labels):
        pixels = np.argwhere(labels == label)
        y, x = pixels[len(pixels) // 2]
        color = tuple(value / 255 for value in predictor.palette[label])
        # The labels that mmseg draws have no letters but Latin ones without accents.
        visualizer.draw_texts(
            predictor.classes[label],
            np.array([x, y]),
            colors='w',
            horizontal_alignments='center',
            bboxes={'facecolor': color, 'edgecolor': 'k', 'pad': 1},
        )
    mmcv.imwrite(visualizer.get_image()[..., ::-1], str(out / 'pictures' / png))
    path = out / 'masks' / png
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = Image.fromarray(labels, mode='P')
    mask.putpalette([value for color in predictor.palette for value in color])
    mask.save(path)
    return f'masks/{png}'


def _classes_and_palette(
    dataset: ConfigDict, metainfo: Mapping[str, Any], config: str
) -> tuple[list[str], list[tuple[int, int, int]]]:
    if not metainfo.get('classes'):
        metainfo = DATASETS.build({**dataset, 'lazy_init': True}).metainfo
    classes, palette = metainfo.get('classes'), metainfo.get('palette')
    if not classes:
        raise UserError(
            'neither the checkpoint (meta.dataset_meta.classes) nor '
            f'test_dataloader.dataset.metainfo of {config} names the classes'
        )
    if not isinstance(palette, (list, tuple)) or len(palette) != len(classes):
        palette = np.random.RandomState(42).randint(0, 256, (len(classes), 3)).tolist()
    colors = [(int(red), int(green), int(blue)) for red, green, blue in palette]
    return [str(name) for name in classes], colors


def _picture(pixels: np.ndarray, bgr: bool) -> np.ndarray:
    """RGB of 8 bits: the first three bands, or the first one as grey."""
    pixels = np.atleast_3d(pixels)
    bands = pixels[..., :3] if pixels.shape[2] >= 3 else pixels[..., :1].repeat(3, axis=2)
    if bands.dtype != np.uint8:
        low, high = float(bands.min()), float(bands.max())
        if low < 0 or not 1 < high <= 255:
            bands = (bands - low) * (255 / max(high - low, 1e-6))
    return np.ascontiguousarray(bands[..., ::-1] if bgr else bands, dtype=np.uint8)
