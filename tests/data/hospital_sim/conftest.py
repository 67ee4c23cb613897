import dataclasses

import numpy as np
import pytest

from fedjax_health.data.hospital_sim import PRESETS, generate

CONTROL = dataclasses.replace(PRESETS["demo"], link=False)


@pytest.fixture(scope="session")
def demo():
    return generate(PRESETS["demo"], 0)


@pytest.fixture(scope="session")
def control():
    return generate(CONTROL, 0)


@pytest.fixture(scope="session")
def scaled(demo):
    return per_client_scores(demo)


def per_client_scores(dataset):
    """Each column in standard deviations of its client, as one matrix a modality."""
    result = {}
    for name, values in dataset.features.items():
        scores = np.full(values.shape, np.nan, np.float32)
        for client in range(dataset.num_clients):
            rows = dataset.client == client
            part = values[rows]
            seen = np.isfinite(part)
            count = np.maximum(seen.sum(0), 1)
            mean = np.where(seen, part, 0).sum(0) / count
            centred = np.where(seen, part - mean, 0)
            deviation = np.sqrt((centred**2).sum(0) / count) + 1e-6
            scores[rows] = np.where(seen, centred / deviation, np.nan)
        result[name] = scores
    return result
