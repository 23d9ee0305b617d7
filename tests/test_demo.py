"""Parts of tools/demo.py; `make demo` runs the whole, with its targets."""

import json

import cv2
import numpy as np
import pytest
from conftest import load_tool

DEMO = load_tool('demo')
BORDER = 4


def test_metrics_are_those_of_the_last_test(tmp_path):
    """A work directory holds a folder for each test, named by its time."""
    for folder, value in (('20260101_000000', 0.1), ('20260102_000000', 0.2)):
        (tmp_path / folder / 'vis_data').mkdir(parents=True)
        (tmp_path / folder / 'vis_data/config.json').write_text('{}')
        (tmp_path / folder / f'{folder}.json').write_text(json.dumps({'mIoU': value}))
    assert DEMO.read_metrics(tmp_path) == {'mIoU': 0.2}


@pytest.mark.parametrize(('number', 'rows', 'columns'), [(3, 1, 3), (60, 3, 4)])
def test_sheet_holds_few_and_many_pictures(number, rows, columns, tmp_path):
    """At most twelve, spread over the folder and those below it, four in a row."""
    with pytest.raises(FileNotFoundError, match='no picture'):
        DEMO.contact_sheet(tmp_path, tmp_path / 'sheet.png')
    for i in range(number):
        path = tmp_path / f'pictures/{i % 2}/{i:02}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((10, 20, 3), 100 + i, np.uint8))
    DEMO.contact_sheet(tmp_path / 'pictures', tmp_path / 'sheet.png')
    sheet = cv2.imread(str(tmp_path / 'sheet.png'))
    assert sheet.shape == (rows * (10 + 2 * BORDER), columns * (20 + 2 * BORDER), 3)
    values = [int(v) for v in np.unique(sheet) if v]
    assert len(values) == min(number, 12)
    assert values[-1] - values[0] >= min(number, 12) - 1


def test_figures_below_their_targets_are_named():
    """In percent; a figure that is no number is none that was reached."""
    task = DEMO.TASKS[1]
    assert DEMO.below_target(task, {'coco/bbox_mAP': 0.75, 'coco/segm_mAP': 0.68}) == []
    assert DEMO.below_target(task, {'coco/bbox_mAP': 0.749, 'coco/segm_mAP': float('nan')}) == [
        'detection: box AP is 74.9, below 75',
        'detection: mask AP is nan, below 68',
    ]


@pytest.mark.parametrize(('device', 'cores'), [('cpu', 2), ('cpu', 1), ('cuda', 2)])
def test_processes_share_a_batch_where_there_are_cores(device, cores):
    """A batch of 8 is halved for two processes; a GPU or a single core takes it whole."""
    command = DEMO.training_command(DEMO.TASKS[1], 'out', ['a=1'], device, cores)
    config = 'configs/shapes/mask-rcnn_lavit-nano_shapes.py'
    common = ['--work-dir', 'out', '--no-validate', '--cfg-options', 'a=1']
    if (device, cores) == ('cpu', 2):
        halved = [*common, 'train_dataloader.batch_size=4']
        assert command == ['tools/dist_train.sh', config, 2, *halved]
    else:
        assert command == ['tools/train.py', config, *common]
