"""What predicting with the inferencers of the three toolboxes shares."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config

from mmlavit.checkpoints import safe_loading

__all__ = ['Predictor']


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
