"""Class weights against counts made one row at a time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_health.data.preprocess import class_weights
from fedjax_health.data.schema import examples_of
from tests.data.preprocess.made import made


@settings(max_examples=20, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    seed=st.integers(0, 99),
    largest=st.sampled_from([1.5, 20.0]),
)
def test_weights_equal_the_loop(sizes, seed, largest):
    data = made(tuple(sizes), seed=seed)
    weights = class_weights(data, largest=largest)
    assert weights.dtype == np.float32
    for row in range(data.num_rows):
        own = data.label[data.client == data.client[row]]
        same = int((own == data.label[row]).sum())
        expected = 1.0
        if same < len(own):
            expected = min(len(own) / (2 * same), largest)
        assert weights[row] == pytest.approx(expected, rel=1e-6)


def test_both_classes_of_a_client_weigh_alike():
    data = made((300, 200), seed=1)
    weights = class_weights(data)
    for client in range(2):
        own = data.client == client
        assert weights[own].mean() == pytest.approx(1, rel=1e-5)
        positive = weights[own & (data.label > 0)].sum()
        assert positive == pytest.approx(weights[own & (data.label == 0)].sum(), 1e-5)


def test_entities_are_counted_once_whatever_their_length():
    data = made((40,))
    entity = np.repeat(np.arange(7), [20, 1, 1, 1, 1, 1, 15])
    label = np.isin(entity, (0, 6)).astype(np.float32)
    data = data._replace(entity=entity, label=label, target="entity")
    weights = class_weights(data)
    np.testing.assert_allclose(weights[label > 0], 7 / 4)
    np.testing.assert_allclose(weights[label == 0], 7 / 10)
    assert examples_of(data).num_rows == 7
