"""Components against scikit-learn's of all rows together."""

import numpy as np
import pytest
from sklearn.decomposition import PCA

from fedjax_health.data.preprocess import apply_projections, fit_projections
from fedjax_health.data.schema import DataError, take_rows
from tests.data.preprocess.made import made


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("wanted", [1, 3, 4, 0.5, 0.9, 0.999999])
def test_components_are_those_of_the_pooled_rows(seed, wanted):
    data = made((80, 0, 33, 1), seed=seed)
    projection = fit_projections(data, {"flow": wanted})["flow"]
    values = data.features["flow"].astype(np.float64)
    oracle = PCA(n_components=wanted, svd_solver="full").fit(values)
    assert projection.basis.shape == oracle.components_.T.shape
    signs = np.sign(np.sum(projection.basis * oracle.components_.T, axis=0))
    np.testing.assert_allclose(
        projection.basis * signs, oracle.components_.T, atol=1e-9
    )
    np.testing.assert_allclose(projection.mean, values.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(projection.explained, oracle.explained_variance_ratio_)
    projected = apply_projections({"flow": projection}, data)
    assert projected.features["flow"].dtype == np.float32
    np.testing.assert_allclose(
        projected.features["flow"] * signs, oracle.transform(values), atol=1e-5
    )
    assert projected.feature_names["flow"][0] == "pc1"
    assert projected.features["notes"] is data.features["notes"]


def test_signs_are_no_accident():
    data = made()
    turned = data._replace(features={**data.features, "flow": -data.features["flow"]})
    bases = [fit_projections(d, {"flow": 4})["flow"].basis for d in (data, turned)]
    np.testing.assert_allclose(*bases, atol=1e-12)
    largest = np.argmax(np.abs(bases[0]), axis=0)
    assert (bases[0][largest, np.arange(4)] > 0).all()


def test_large_means_do_not_cancel():
    data = made()
    moved = data._replace(
        features={**data.features, "flow": data.features["flow"] * 8 + 4096}
    )
    first = fit_projections(data, {"flow": 4})["flow"]
    second = fit_projections(moved, {"flow": 4})["flow"]
    np.testing.assert_allclose(first.basis, second.basis, atol=1e-3)


@pytest.mark.parametrize(
    ("components", "expected"),
    [
        ({"notes": 2}, "'notes': values may be missing"),
        ({"iot": 2}, "pca names modality 'iot'"),
        ({"flow": 5}, "5 components; give 1 to 4"),
        ({"flow": 0}, "0 components"),
        ({"flow": -0.5}, r"-0\.5 components"),
        ({"flow": 2.5}, r"2\.5 components"),
    ],
)
def test_refusals(components, expected):
    with pytest.raises(DataError, match=expected):
        fit_projections(made(), components)


def test_rows_that_do_not_vary():
    data = take_rows(made(), np.arange(1))
    with pytest.raises(DataError, match="do not vary"):
        fit_projections(data, {"flow": 1})
