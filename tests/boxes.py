"Predictors so plain that a process which maps with one starts in a second: without torch"
import numpy as np
from scipy.ndimage import uniform_filter

from planetlab.predictor import Predictor


class Box:
    "Two box sums of different sizes: sees `radius` px, and zeros outside what it is given, as a padded network does"
    def __init__(self, radius): self.radius = radius

    def __call__(self, x):
        def box(r): return uniform_filter(x.astype("float64"), (0, 0, 2 * r + 1, 2 * r + 1), mode="constant").mean(1)
        return np.stack([box(self.radius), box(self.radius // 2)], 1).astype("float32")


def box(radius, bands=1, **kwargs):
    return Predictor(Box(radius), bands, ("wide", "narrow"), radius=radius, about={"box": radius}, **kwargs)
