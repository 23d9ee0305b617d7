"""Segment images."""

from typing import Any

import numpy as np
from mmengine.config import Config
from PIL import Image

from mmlavit.errors import UserError

from .base import Predictor

__all__ = ['Segmentor']


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
