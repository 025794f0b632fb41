"Models for tests of the map engine; nothing heavy is imported here, so that processes start quickly"
import time

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


class Slow(Box):
    def __call__(self, x):
        time.sleep(0.05)
        return super().__call__(x)
