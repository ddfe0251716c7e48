"""Generated auxiliary pictures: surfaces and objects with defects, exact masks and captions, from a seed.

>>> import numpy as np
>>> from blemish.synth import draw
>>> picture = draw(np.random.default_rng(0), 128, defect=True)
>>> picture.image.shape, picture.mask.shape, bool(picture.mask.any())
((128, 128, 3), (128, 128), True)
"""

from blemish.synth.captions import captions, vocabulary_texts, wrong_captions
from blemish.synth.dataset import DatasetSummary, SynthOptions, write_dataset, write_pictures
from blemish.synth.draw import Picture, draw, draw_pair
from blemish.synth.families import DEFECTS, HELD_OUT, MATERIALS, SHAPES, TRAINING, Families

__all__ = [
    "DEFECTS",
    "HELD_OUT",
    "MATERIALS",
    "SHAPES",
    "TRAINING",
    "DatasetSummary",
    "Families",
    "Picture",
    "SynthOptions",
    "captions",
    "draw",
    "draw_pair",
    "vocabulary_texts",
    "write_dataset",
    "write_pictures",
    "wrong_captions",
]
