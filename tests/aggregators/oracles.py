"""Every rule and mixing once more: slow, obvious, in NumPy with float64."""

import itertools

import numpy as np


def squared_distances(x):
    return np.array([[np.sum((a - b) ** 2) for b in x] for a in x])


def mean(x):
    return np.mean(x, axis=0)


def median(x):
    return np.median(x, axis=0)


def trimmed_mean(x, f):
    return np.mean(np.sort(x, axis=0)[f : len(x) - f], axis=0)


def mean_around(x, keep):
    nearest = np.argsort(np.abs(x - np.median(x, axis=0)), axis=0, kind="stable")
    return np.mean(np.take_along_axis(x, nearest[:keep], axis=0), axis=0)


def mean_around_median(x, f):
    return mean_around(x, len(x) - f)


def krum_scores(x, neighbors):
    squared = squared_distances(x)
    scores = []
    for i in range(len(x)):
        others = np.sort(np.delete(squared[i], i))
        scores.append(np.sum(others[:neighbors]))
    return np.array(scores)


def krum(x, f, neighbors=None):
    neighbors = len(x) - f - 2 if neighbors is None else neighbors
    return x[np.argmin(krum_scores(x, neighbors))]


def multi_krum(x, f, keep=None, neighbors=None):
    neighbors = len(x) - f - 2 if neighbors is None else neighbors
    keep = len(x) - f if keep is None else keep
    best = np.argsort(krum_scores(x, neighbors), kind="stable")[:keep]
    return np.mean(x[best], axis=0)


def bulyan(x, f):
    left, picked = list(range(len(x))), []
    while len(picked) < len(x) - 2 * f:
        scores = krum_scores(x[left], max(len(left) - f - 2, 1))
        # Sums of the same distances in another order must tie as they do.
        best = int(np.flatnonzero(scores <= scores.min() * (1 + 1e-12))[0])
        picked.append(left.pop(best))
    return mean_around(x[picked], len(x) - 4 * f)


def diameter(x):
    return np.max(squared_distances(x))


def top_variance(x):
    centred = x - np.mean(x, axis=0)
    return np.linalg.eigvalsh(centred @ centred.T)[-1]


def best_subset(x, f, cost):
    best, least = None, np.inf
    for subset in itertools.combinations(range(len(x)), len(x) - f):
        value = cost(x[list(subset)])
        if value < least * (1 - 1e-12):
            best, least = list(subset), value
    return np.mean(x[best], axis=0)


def mda(x, f):
    return best_subset(x, f, diameter)


def smea(x, f):
    return best_subset(x, f, top_variance)


def caf(x, f):
    n = len(x)
    c, least, best = np.ones(n), np.inf, None
    while c.sum() > n - 2 * f:
        mu = c @ x / c.sum()
        moved = x - mu
        root = np.sqrt(c)[:, None] * moved
        _, values, right = np.linalg.svd(root, full_matrices=False)
        if values[0] ** 2 / c.sum() < least:
            least, best = values[0] ** 2 / c.sum(), mu
        tau = (moved @ right[0]) ** 2
        c = c * (1 - tau / tau.max())
    return best


def geometric_median(x, steps, smoothing, weights=None):
    alpha = np.ones(len(x)) if weights is None else np.asarray(weights, np.float64)
    z = np.zeros(x.shape[1])
    for _ in range(steps):
        beta = alpha / np.maximum(np.linalg.norm(x - z, axis=1), smoothing)
        z = beta @ x / beta.sum()
    return z


def centered_clip(x, radius, steps, center=None, weights=None):
    alpha = np.ones(len(x)) if weights is None else np.asarray(weights, np.float64)
    v = np.zeros(x.shape[1]) if center is None else center
    for _ in range(steps):
        moved = x - v
        factor = np.minimum(1, radius / np.linalg.norm(moved, axis=1))
        v = v + (alpha * factor) @ moved / alpha.sum()
    return v


def monna(x, f, trusted):
    distance = np.linalg.norm(x - x[trusted], axis=1)
    return np.mean(x[np.argsort(distance, kind="stable")[: len(x) - f]], axis=0)


def cge(x, f):
    order = np.argsort(np.linalg.norm(x, axis=1), kind="stable")
    return np.mean(x[order[: len(x) - f]], axis=0)


def sign_majority(x):
    return np.sign(np.sum(np.sign(x), axis=0))


def robust_learning_rate(x, threshold):
    agree = np.abs(np.sum(np.sign(x), axis=0)) >= threshold
    return np.where(agree, 1, -1) * np.mean(x, axis=0)


def dnc(x, f, iterations, fraction=1.0):
    """With all coordinates in every iteration, which are then all alike."""
    del iterations
    moved = x - np.mean(x, axis=0)
    right = np.linalg.svd(moved, full_matrices=False)[2]
    order = np.argsort((moved @ right[0]) ** 2)
    return np.mean(x[order[: len(x) - int(fraction * f)]], axis=0)


def fltrust(x, root):
    total, trust = np.zeros(x.shape[1]), 0.0
    for row in x:
        score = max(row @ root / np.linalg.norm(row) / np.linalg.norm(root), 0)
        total += score * np.linalg.norm(root) / np.linalg.norm(row) * row
        trust += score
    return total / trust


def foolsgold_rates(history):
    unit = history / np.linalg.norm(history, axis=1, keepdims=True)
    cosines = unit @ unit.T - np.eye(len(history))
    most = np.max(cosines, axis=1)
    for i, j in itertools.product(range(len(history)), repeat=2):
        if i != j and most[i] < most[j]:
            cosines[i, j] *= most[i] / most[j]
    rates = np.clip(1 - np.max(cosines, axis=1), 0, 1)
    rates = rates / np.max(rates)
    rates[rates == 1] = 0.99
    with np.errstate(divide="ignore"):
        return np.clip(np.log(rates / (1 - rates)) + 0.5, 0, 1)


def foolsgold(x, history=None):
    rates = foolsgold_rates(x if history is None else history)
    return rates @ x / rates.sum()


def majority_cluster(distances):
    """Merges the two nearest clusters until one holds more than half."""
    clusters = [{i} for i in range(len(distances))]
    while max(map(len, clusters)) < len(distances) // 2 + 1:
        gaps = {
            (i, j): min(distances[a, b] for a in clusters[i] for b in clusters[j])
            for i, j in itertools.combinations(range(len(clusters)), 2)
        }
        i, j = min(gaps, key=gaps.get)
        clusters[i] |= clusters.pop(j)
    return sorted(max(clusters, key=len))


def flame(x):
    norms = np.linalg.norm(x, axis=1)
    unit = x / norms[:, None]
    cluster = majority_cluster(1 - unit @ unit.T)
    bound = np.median(norms)
    clipped = [x[i] * min(1, bound / norms[i]) for i in cluster]
    return np.mean(clipped, axis=0)


def sign_features(x):
    kinds = np.stack([np.mean(k, axis=1) for k in (x > 0, x == 0, x < 0)], axis=1)
    return kinds / np.maximum(np.max(kinds, axis=0), 1e-12)


def signguard(x, low, high, cluster):
    """Given the rows of the largest cluster of sign statistics."""
    norms = np.linalg.norm(x, axis=1)
    bound = np.median(norms)
    kept = [
        x[i] * min(1, bound / norms[i])
        for i in cluster
        if low * bound < norms[i] < high * bound
    ]
    return np.mean(kept, axis=0)


def nnm(x, f):
    squared = squared_distances(x)
    near = np.argsort(squared, axis=1, kind="stable")[:, : len(x) - f]
    return np.array([np.mean(x[rows], axis=0) for rows in near])


def clip_norms(x, max_norm):
    return np.array([row * min(1, max_norm / np.linalg.norm(row)) for row in x])


def arc(x, f):
    n = len(x)
    norms = np.linalg.norm(x, axis=1)
    clipped = 2 * f * (n - f) // n
    bound = np.sort(norms)[n - clipped - 1]
    return clip_norms(x, bound)
