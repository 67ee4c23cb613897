"""The whole of preprocessing: fitted on training alone, applied to anything."""

import numpy as np
import pytest

from fedjax_health.data.preprocess import (
    Outliers,
    absent_columns,
    absent_modalities,
    apply_fences,
    apply_preprocessing,
    apply_projections,
    apply_scaler,
    fit_preprocessing,
    fit_scaler,
)
from fedjax_health.data.preprocess.encode import encode, fit_vocabulary
from fedjax_health.data.schema import DataError, check_dataset, take_rows
from tests.data.preprocess.made import made

ALL = {"outliers": Outliers(width=1.0), "components": {"flow": 2}, "clip": 3.0}


def test_steps_follow_each_other():
    data = made()
    check_dataset(data)
    fitted = fit_preprocessing(data, **ALL)
    step = encode(fitted.vocabulary, data)
    step = apply_fences(fitted.fences, step)
    step = apply_scaler(fitted.scaler, step, clip=3.0)
    step = apply_projections(fitted.projections, step)
    result = apply_preprocessing(fitted, data)
    check_dataset(result)
    for name in data.features:
        np.testing.assert_array_equal(result.features[name], step.features[name])
    assert result.feature_names["flow"] == ("pc1", "pc2")
    assert result.masked == data.masked


def test_without_categories_it_is_the_scaler():
    data = made()._replace(categories={})
    fitted = fit_preprocessing(data)
    scaler = fit_scaler(data)
    for field in ("mean", "std", "unseen_mean", "unseen_std"):
        for name, array in getattr(scaler, field).items():
            np.testing.assert_array_equal(getattr(fitted.scaler, field)[name], array)
    alone = apply_scaler(scaler, data)
    result = apply_preprocessing(fitted, data)
    for name in data.features:
        np.testing.assert_array_equal(result.features[name], alone.features[name])


def test_categories_are_neither_scaled_nor_cut():
    data = made()
    result = apply_preprocessing(fit_preprocessing(data, **ALL), data)
    encoded = encode(fit_vocabulary(data), data)
    np.testing.assert_array_equal(
        result.features["notes"][:, 1:], encoded.features["notes"][:, 1:]
    )


def test_only_training_rows_count():
    data = made()
    train = take_rows(data, np.arange(data.num_rows) % 3 > 0)
    fitted = fit_preprocessing(train, **ALL)
    before = apply_preprocessing(fitted, train)
    data.features["flow"][data.num_rows - 1] = 1e9
    again = apply_preprocessing(fitted, train)
    for name in data.features:
        np.testing.assert_array_equal(before.features[name], again.features[name])


def test_columns_may_stand_in_another_order_and_others_are_left_out():
    data = made()
    fitted = fit_preprocessing(data, **ALL)
    expected = apply_preprocessing(fitted, data)
    notes, flow = data.features["notes"], data.features["flow"]
    extra = np.full((data.num_rows, 1), 7, np.float32)
    other = data._replace(
        features={
            "imaging": extra,
            "flow": np.hstack([flow[:, ::-1], extra]),
            "notes": np.hstack([notes[:, 2:], extra, notes[:, :2]]),
        },
        feature_names={
            "imaging": ("x",),
            "flow": ("d", "c", "b", "a", "new"),
            "notes": ("shape", "new", "dose", "colour"),
        },
    )
    result = apply_preprocessing(fitted, other)
    assert list(result.features) == ["notes", "flow"]
    for name in result.features:
        np.testing.assert_array_equal(result.features[name], expected.features[name])


def test_a_modality_that_is_absent():
    data = made()
    fitted = fit_preprocessing(data)

    def without(name):
        return data._replace(
            features={n: v for n, v in data.features.items() if n != name},
            feature_names={n: c for n, c in data.feature_names.items() if n != name},
            categories={n: c for n, c in data.categories.items() if n != name},
            masked=data.masked - {name},
        )

    result = apply_preprocessing(fitted, without("notes"))
    assert result.features["notes"].shape == (data.num_rows, 7)
    assert np.isnan(result.features["notes"]).all()
    assert result.masked == {"notes"}
    check_dataset(result)
    assert absent_modalities(fitted, without("notes")) == ("notes",)
    assert absent_modalities(fitted, data) == ()
    empty = np.full_like(data.features["notes"], np.nan)
    hollow = data._replace(features={**data.features, "notes": empty})
    assert absent_modalities(fitted, hollow) == ("notes",)
    assert absent_columns(fitted, hollow) == ()
    names = data.feature_names["notes"]
    part = data.features["notes"].copy()
    part[:, 0] = np.nan
    part = data._replace(features={**data.features, "notes": part})
    assert absent_modalities(fitted, part) == ()
    assert absent_columns(fitted, part) == (f"notes.{names[0]}",)
    assert absent_columns(fitted, data) == ()
    with pytest.raises(DataError, match="no modality 'flow', whose values"):
        apply_preprocessing(fitted, without("flow"))


def test_declarations_are_those_of_the_training():
    data = made(missing=0)._replace(carried=frozenset({"notes"}))
    fitted = fit_preprocessing(data)
    # The next file has no gaps in one modality, and is allowed some in the other.
    other = data._replace(masked=frozenset({"flow"}), carried=frozenset())
    result = apply_preprocessing(fitted, other)
    assert result.masked == {"notes"}
    assert result.carried == {"notes"}
    other.features["flow"][5, 1] = np.nan
    with pytest.raises(DataError, match=r"'flow' was declared complete.*'b'.*row 5"):
        apply_preprocessing(fitted, other)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {
                "feature_names": {
                    "notes": ("dose", "hue", "shape"),
                    "flow": tuple("abcd"),
                }
            },
            "'notes' lacks columns .*: 'colour'",
        ),
        ({"categories": {}}, "'colour'.*held categories in training and holds numbers"),
        (
            {
                "categories": {
                    "notes": {"colour": ("red",) * 4, "shape": ("a",) * 3},
                    "flow": {"a": ("x",)},
                }
            },
            "'a'.*held numbers in training and holds categories",
        ),
    ],
)
def test_columns_that_do_not_fit(change, expected):
    data = made()
    fitted = fit_preprocessing(data)
    with pytest.raises(DataError, match=expected):
        apply_preprocessing(fitted, data._replace(**change))


def test_many_missing_columns_are_not_all_listed():
    data = made()
    names = tuple(f"column {index}" for index in range(9))
    wide = data._replace(
        features={"flow": np.zeros((data.num_rows, 9), np.float32)},
        feature_names={"flow": names},
        categories={},
        masked=frozenset(),
    )
    fitted = fit_preprocessing(wide)
    with pytest.raises(DataError, match="'column 4' and 4 more"):
        apply_preprocessing(fitted, data)


def test_clients_that_training_never_saw():
    data = made()
    fitted = fit_preprocessing(data, **ALL)
    new = take_rows(data, data.client == 1)._replace(client_names=("a", "b", "c"))
    result = apply_preprocessing(fitted, new)
    check_dataset(
        result._replace(
            label=np.arange(40, dtype=np.float32) % 2,
            attack=np.arange(40, dtype=np.int32) % 2,
        )
    )
    with pytest.raises(DataError, match="no training rows"):
        fit_preprocessing(take_rows(data, np.arange(0)))
