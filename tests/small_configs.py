"""Configs of the repository, cut down to an iteration on a handful of images."""

from pathlib import Path

from conftest import ROOT
from mmengine.config import Config
from mmengine.hooks import Hook


def load(path, shapes, tmp_path):
    """The config as it is, on a handful of Shapes images, at a small size, for one iteration."""
    cfg = Config.fromfile(ROOT / path)
    cfg.work_dir = str(tmp_path)
    cfg.launcher = 'none'
    cfg.model.backbone.update(drop_path_rate=0.0, init_cfg=None)
    layout = {'mmpretrain': 'classification', 'mmdet': 'coco', 'mmseg': 'ade20k'}[cfg.default_scope]
    data_root = Path(cfg.val_dataloader.dataset.data_root)
    folder = shapes / data_root.name
    folder = folder if folder.is_dir() else shapes / layout
    for name in ('train', 'val', 'test'):
        loader = cfg[f'{name}_dataloader']
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
        loader.dataset.update(data_root=str(folder), indices=2)
        if layout == 'classification':
            if loader.dataset.pop('split', None):  # of ImageNet, whose validation has no folders
                loader.dataset.update(
                    type='CustomDataset', data_prefix='train' if name == 'train' else 'val'
                )
        elif layout == 'coco':
            loader.dataset.metainfo = dict(classes=('circle', 'square', 'triangle'))
        else:
            loader.dataset.img_suffix = '.png'
    if layout == 'classification':
        preprocessor = cfg.get('data_preprocessor') or cfg.model.data_preprocessor
        preprocessor.num_classes = cfg.model.head.num_classes = 3
        cfg.val_evaluator.topk = cfg.test_evaluator.topk = 1
    if layout == 'coco':
        for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
            evaluator.ann_file = str(folder / Path(evaluator.ann_file).relative_to(data_root))
        shrink(cfg.train_dataloader.dataset.pipeline)
        shrink(cfg.test_dataloader.dataset.pipeline)
        shrink(cfg.val_dataloader.dataset.pipeline)
        heads = cfg.model.get('roi_head', cfg.model)
        for head in (heads.bbox_head, heads.get('mask_head', [])):
            for stage in head if isinstance(head, list) else [head]:
                stage.num_classes = 3
                if 'fc_out_channels' in stage:
                    stage.fc_out_channels = 64  # writing 14 million weights takes seconds
        few = dict(nms_pre=50, max_per_img=10)
        last = cfg.model.test_cfg
        if 'rpn' in last:
            cfg.model.train_cfg.rpn_proposal.update(few)
            last.rpn.update(few)
            last = last.rcnn
        last.update(max_per_img=5, score_thr=0.0)  # an untrained detector is sure of nothing
    if layout == 'ade20k':
        cfg.train_cfg.update(max_iters=1, val_interval=1)
        cfg.default_hooks.checkpoint.interval = 1
        cfg.model.data_preprocessor.size = (96, 96)
        for head in ('decode_head', 'auxiliary_head'):
            if head in cfg.model:
                cfg.model[head].channels = 32
        shrink(cfg.train_dataloader.dataset.pipeline)
        shrink(cfg.val_dataloader.dataset.pipeline)
    else:
        cfg.train_cfg.update(max_epochs=1, val_interval=1)
    return cfg


class Predictions(Hook):
    """Keeps what a test predicts: an untrained detector finds too little for a metric."""

    def __init__(self, predicted):
        self.predicted = predicted

    def after_test_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.predicted.extend(outputs)


def shrink(pipeline):
    """Divide the sizes of a dense pipeline, so that a step takes no seconds."""
    for step in pipeline:
        if step['type'] in ('Resize', 'RandomResize'):
            step['scale'] = (160, 96)
        elif step['type'] == 'RandomChoiceResize':
            step['scales'] = [(96, 160), (128, 160)]
        elif step['type'] == 'RandomCrop':
            step['crop_size'] = (64, 96)
        for inner in step.get('transforms', []):
            shrink(inner if isinstance(inner, list) else [inner])


def fit_nano(model):
    """Hand nano's channels to the neck or the heads of a config of another size."""
    channels = [32, 64, 128, 256]
    if model.type == 'ImageClassifier':
        model.head.in_channels = channels[-1]
    elif 'neck' in model:
        model.neck.in_channels = channels[4 - len(model.neck.in_channels) :]
    else:
        model.decode_head.in_channels = channels
        model.auxiliary_head.in_channels = channels[2]
