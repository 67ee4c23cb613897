"""Slow, obvious versions of the compressors, in NumPy."""

import itertools

import numpy as np


def top_k(x, k):
    """Sorts by magnitude, of equal ones the lower index first."""
    order = sorted(range(len(x)), key=lambda i: (-abs(float(x[i])), i))
    out = np.zeros_like(x)
    out[order[:k]] = x[order[:k]]
    return out


def threshold(x, value):
    return np.array([v if abs(v) >= value else 0 for v in x], np.float32)


def sign(parts):
    """One scale, the mean magnitude, for each part."""
    return [np.sign(p) * np.abs(p).astype(np.float64).mean() for p in parts]


def lloyd_edges(centroids):
    return [(a + b) / 2 for a, b in itertools.pairwise(centroids)]


def hadamard(n):
    h = np.ones((1, 1))
    while len(h) < n:
        h = np.block([[h, h], [h, -h]])
    return h / np.sqrt(n)


def rotated_quantiser(x, signs, centroids, *, unbiased):
    """DRIVE and EDEN with the matrix written out."""
    n = len(signs)
    h = hadamard(n)
    padded = np.zeros(n)
    padded[: len(x)] = x
    y = h @ (signs * padded)
    scaled = y * np.sqrt(n) / np.linalg.norm(x)
    nearest = np.argmin(np.abs(scaled[:, None] - np.asarray(centroids)), axis=1)
    q = np.asarray(centroids)[nearest]
    scale = (x @ x) / (y @ q) if unbiased else (y @ q) / (q @ q)
    return (signs * (h @ (scale * q)))[: len(x)]


def rice_bits(places, parameter):
    """Bits of Golomb-Rice codes, one run of zeros after the other."""
    total, last = 0, -1
    for place in places:
        run = place - last - 1
        total += run // 2**parameter + 1 + parameter
        last = place
    return total
