"""The function is frozen: a checkpoint of version 0.1.0 gives the maps that it gave there."""

import pytest
import torch
from frozen_function import RECORD, checkpoint, images, summary

from mmlavit.models import LaViT


@pytest.mark.parametrize('case', RECORD['cases'], ids=['borders', 'whole windows', 'all-VA'])
def test_maps_and_gradients_are_those_of_version_0_1_0(case):
    model = LaViT(RECORD['arch'], window_size=case['window'], **case['options']).double()
    model.load_state_dict(checkpoint(case['shapes']))
    x = images(case['size'])
    maps = model(x)
    sum(m.sin().sum() for m in maps).backward()
    norms = {name: p.grad.norm().item() for name, p in model.named_parameters()}
    assert norms == pytest.approx(case['gradient_norms'], rel=1e-7, abs=1e-9)
    with torch.no_grad():  # in bands
        for found in (maps, model.eval()(x)):
            for got, expected in zip(summary(found), case['maps'], strict=True):
                assert got == pytest.approx(expected, rel=0, abs=1e-9)


def test_a_seed_gives_the_start_values_of_version_0_1_0():
    """What is drawn, and in which order: a run of then can be run again."""
    torch.manual_seed(0)
    found = {
        name: value.double().norm().item()
        for name, value in LaViT(RECORD['arch']).state_dict().items()
    }
    assert found == pytest.approx(RECORD['start_values'], rel=1e-6)
