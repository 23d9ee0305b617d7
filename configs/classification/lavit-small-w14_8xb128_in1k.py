# Stages 3 and 4 attend globally at 224x224, as in the paper: their maps are 14x14 and 7x7 tokens.
_base_ = './lavit-small_8xb128_in1k.py'

model = dict(backbone=dict(window_size=(7, 7, 14, 7)))
