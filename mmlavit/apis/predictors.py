"""Predict with the inferencer of a toolbox, paint, and collect machine-readable results."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS, MODELS, init_default_scope
from PIL import Image

from mmlavit.checkpoints import safe_loading
from mmlavit.errors import UserError
from mmlavit.models.key_differences import check_belongs

__all__ = ['Predictor', 'build_predictor']

SMALLEST_PICTURE = 224


class Predictor(ABC):
    """What the three toolboxes' inferencers share.

    Args:
        cfg: The config; its model, test pipeline and visualizer are read, its data is not.
        weights: File or URL of a checkpoint that belongs to the model.
        classes: Names of the classes.
        palette: An RGB color for each class.
        device: Name of the device to predict on.
        out: Folder of the results.
    """

    def __init__(
        self,
        cfg: Config,
        weights: str,
        classes: list[str],
        palette: list[tuple[int, int, int]],
        device: str,
        out: Path,
    ) -> None:
        self.classes = classes
        self.palette = palette
        self.out = out
        with warnings.catch_warnings():
            # Said of a checkpoint without classes; those of self.classes replace the default.
            warnings.filterwarnings('ignore', 'dataset_meta or class names are not saved')
            # The inferencers read the file by themselves.
            with safe_loading():
                self.inferencer = self._build(cfg, weights, device)

    def predict(self, paths: Sequence[Path]) -> list[Any]:
        """Predict images in one batch.

        Args:
            paths: Readable images of one size, since only mmdet pads a batch of tests.

        Returns:
            A data sample of the toolbox for each image, on the CPU.
        """
        inputs = [str(path) for path in paths]
        batches = self.inferencer.preprocess(inputs, batch_size=len(inputs))
        return [sample.cpu() for data in batches for sample in self._forward(data)]

    def save(self, name: str, png: str, image: np.ndarray, sample: Any, score_thr: float) -> None:
        """Paint a prediction and take it up into the results.

        Args:
            name: What the results call the image.
            png: Name of the files that belong to it, below the folder of their kind.
            image: RGB, shape (height, width, 3).
            sample: Its prediction.
            score_thr: Objects below this score are not painted.
        """
        picture = self.out / 'pictures' / png
        picture.parent.mkdir(parents=True, exist_ok=True)
        self._paint(image, sample, str(picture), score_thr)
        self._add(name, png, image.shape[:2], sample)

    @property
    @abstractmethod
    def results(self) -> dict[str, Any]:
        """What ``predictions.json`` holds."""

    @abstractmethod
    def _build(self, cfg: Config, weights: str, device: str) -> Any: ...

    @abstractmethod
    def _paint(self, image: np.ndarray, sample: Any, picture: str, score_thr: float) -> None: ...

    @abstractmethod
    def _add(self, name: str, png: str, size: tuple[int, ...], sample: Any) -> None: ...

    def _forward(self, data: Any) -> list[Any]:
        return self.inferencer.forward(data)

    def _set_dataset_meta(self, inferencer: Any) -> Any:
        # Without one in the checkpoint, mmdet takes the classes of COCO, mmseg of Cityscapes.
        meta = {'classes': self.classes, 'palette': self.palette}
        inferencer.model.dataset_meta = inferencer.visualizer.dataset_meta = meta
        return inferencer


class Classifier(Predictor):
    """Class and score of each image, with mmpretrain."""

    def _build(self, cfg: Config, weights: str, device: str) -> Any:
        from mmpretrain.apis import ImageClassificationInferencer
        from mmpretrain.visualization import UniversalVisualizer

        self.images: dict[str, dict[str, Any]] = {}
        self.visualizer = UniversalVisualizer()
        return ImageClassificationInferencer(cfg, weights, device, classes=self.classes)

    def _paint(self, image: np.ndarray, sample: Any, picture: str, score_thr: float) -> None:
        self.visualizer.visualize_cls(
            image,
            sample,
            classes=self.classes,
            # The text does not fit on less.
            resize=SMALLEST_PICTURE if min(image.shape[:2]) < SMALLEST_PICTURE else None,
            draw_gt=False,
            out_file=picture,
        )

    def _add(self, name: str, png: str, size: tuple[int, ...], sample: Any) -> None:
        label = int(sample.pred_score.argmax())
        self.images[name] = {
            'label': label,
            'class': self.classes[label],
            'score': float(sample.pred_score[label]),
        }

    @property
    def results(self) -> dict[str, Any]:
        """Label, class and score by name of the image."""
        return self.images


class Detector(Predictor):
    """Boxes, and masks where the model has them, of each image, with mmdet."""

    def _build(self, cfg: Config, weights: str, device: str) -> Any:
        from mmdet.apis import DetInferencer

        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        inferencer = DetInferencer(cfg, weights, device, show_progress=False)
        return self._set_dataset_meta(inferencer)

    def _forward(self, data: Any) -> list[Any]:
        _, batch = data
        return self.inferencer.forward(batch)

    def _paint(self, image: np.ndarray, sample: Any, picture: str, score_thr: float) -> None:
        self.inferencer.visualizer.add_datasample(
            picture,
            image,
            sample,
            draw_gt=False,
            pred_score_thr=score_thr,
            out_file=picture,
        )

    def _add(self, name: str, png: str, size: tuple[int, ...], sample: Any) -> None:
        from mmdet.structures.mask import encode_mask_results

        height, width = size
        image_id = len(self.images) + 1
        self.images.append({'id': image_id, 'file_name': name, 'height': height, 'width': width})
        objects = sample.pred_instances.numpy()
        masks = encode_mask_results(objects.masks) if 'masks' in objects else None
        for i, (x1, y1, x2, y2) in enumerate(objects.bboxes.tolist()):
            label = int(objects.labels[i])
            annotation: dict[str, Any] = {
                'id': len(self.annotations) + 1,
                'image_id': image_id,
                'file_name': name,
                'category_id': label + 1,
                'category_name': self.classes[label],
                'bbox': [x1, y1, x2 - x1, y2 - y1],
                'area': (x2 - x1) * (y2 - y1),
                'iscrowd': 0,
                'score': float(objects.scores[i]),
            }
            if masks is not None:
                mask = masks[i]
                annotation['area'] = int(objects.masks[i].sum())
                annotation['segmentation'] = {**mask, 'counts': mask['counts'].decode()}
            self.annotations.append(annotation)

    @property
    def results(self) -> dict[str, Any]:
        """Images, categories and annotations in COCO's format; an annotation has a score."""
        categories = [{'id': k, 'name': name} for k, name in enumerate(self.classes, start=1)]
        return {
            'images': self.images,
            'categories': categories,
            'annotations': self.annotations,
        }


class Segmentor(Predictor):
    """The class of each pixel, with mmseg."""

    def _build(self, cfg: Config, weights: str, device: str) -> Any:
        from mmseg.apis import MMSegInferencer

        if len(self.classes) > 256:
            raise UserError(f'an indexed PNG holds 256 classes, the model has {len(self.classes)}')
        self.masks: dict[str, str] = {}
        inferencer = MMSegInferencer(cfg, weights, device=device, show_progress=False)
        return self._set_dataset_meta(inferencer)

    def _paint(self, image: np.ndarray, sample: Any, picture: str, score_thr: float) -> None:
        self.inferencer.visualizer.add_datasample(
            picture, image, sample, draw_gt=False, out_file=picture
        )

    def _add(self, name: str, png: str, size: tuple[int, ...], sample: Any) -> None:
        path = self.out / 'masks' / png
        path.parent.mkdir(parents=True, exist_ok=True)
        mask = Image.fromarray(sample.pred_sem_seg.data[0].numpy().astype(np.uint8), mode='P')
        mask.putpalette([value for color in self.palette for value in color])
        mask.save(path)
        self.masks[name] = f'masks/{png}'

    @property
    def results(self) -> dict[str, Any]:
        """Classes and colors in the order of the indices, and the mask by name of the image."""
        return {'classes': self.classes, 'palette': self.palette, 'masks': self.masks}


PREDICTORS: dict[str, type[Predictor]] = {
    'mmpretrain': Classifier,
    'mmdet': Detector,
    'mmseg': Segmentor,
}


def build_predictor(
    cfg: Config, weights: str, checkpoint: dict[str, Any], device: str, out: Path
) -> Predictor:
    """Build the predictor of a toolbox.

    Args:
        cfg: The config, changed in place.
        weights: File or URL of a checkpoint.
        checkpoint: What it holds.
        device: Name of the device to predict on.
        out: Folder of the results.

    Raises:
        UserError: If the config lacks a key, the checkpoint does not belong to the model, or
            neither names the classes.
    """
    scope = cfg.default_scope
    init_default_scope(scope)
    missing = [key for key in ('model', 'test_dataloader') if cfg.get(key) is None]
    if missing:
        raise UserError(f'{cfg.filename}: {", ".join(missing)} must be set')
    if cfg.get('data_preprocessor'):
        # The runner does so too, the inferencers of mmdet and mmseg do not.
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    check_belongs(checkpoint, MODELS.build(deepcopy(cfg.model)), weights)
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    cfg.test_dataloader.dataset = dataset
    classes, palette = _dataset_meta(dataset, checkpoint.get('meta') or {}, weights)
    if scope != 'mmpretrain':
        kind = 'DetLocalVisualizer' if scope == 'mmdet' else 'SegLocalVisualizer'
        cfg.setdefault('visualizer', ConfigDict(type=kind)).vis_backends = []
    return PREDICTORS[scope](cfg, weights, classes, palette, device, out)


def _dataset_meta(
    dataset: ConfigDict, meta: dict[str, Any], weights: str
) -> tuple[list[str], list[tuple[int, int, int]]]:
    metainfo = meta.get('dataset_meta') or {}
    if not metainfo.get('classes'):
        metainfo = DATASETS.build({**dataset, 'lazy_init': True}).metainfo
    classes = metainfo.get('classes')
    if not classes:
        raise UserError(
            f'neither {weights} (meta.dataset_meta.classes) nor test_dataloader.dataset.metainfo '
            'of the config names the classes'
        )
    palette = metainfo.get('palette')
    if not isinstance(palette, (list, tuple)) or len(palette) != len(classes):
        palette = np.random.RandomState(42).randint(0, 256, (len(classes), 3)).tolist()
    colors = [(int(red), int(green), int(blue)) for red, green, blue in palette]
    return [str(name) for name in classes], colors
