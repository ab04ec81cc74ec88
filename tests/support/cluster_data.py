"""Gaussian clusters."""

import numpy as np


def blobs(n=600, d=5, components=6, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(0, 4, (components, d))
    return centres[rng.integers(components, size=n)] + rng.normal(0, 1, (n, d))
