"""Classify images."""

from typing import Any

import numpy as np
from mmengine.config import Config

from .base import Predictor

__all__ = ['Classifier']

SMALLEST_PICTURE = 224


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
