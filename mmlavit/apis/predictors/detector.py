"""Detect objects in images."""

from typing import Any

import numpy as np
from mmengine.config import Config

from .base import Predictor

__all__ = ['Detector']


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
