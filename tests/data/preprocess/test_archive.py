"""What was fitted comes back to the bit, or the file is refused."""

import numpy as np
import pytest

from fedjax_health.data.preprocess import (
    Outliers,
    apply_preprocessing,
    fit_preprocessing,
    load_preprocessing,
    save_preprocessing,
)
from fedjax_health.data.schema import DataError
from tests.data.preprocess.made import made

ALL = {"outliers": Outliers(width=2.0), "components": {"flow": 0.9}, "clip": 3.0}


def leaves(value):
    """Every array and every other value inside nested records."""
    if isinstance(value, dict):
        return [leaf for key in value for leaf in (key, *leaves(value[key]))]
    if isinstance(value, tuple):
        return [leaf for item in value for leaf in leaves(item)]
    return [value]


def same(first, second):
    pairs = list(zip(leaves(first), leaves(second), strict=True))
    for a, b in pairs:
        assert type(a) is type(b)
        if isinstance(a, np.ndarray):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
        else:
            assert a == b
    return pairs


@pytest.mark.parametrize("options", [{}, {"scope": "pooled"}, ALL])
def test_save_and_load(tmp_path, options):
    data = made((30, 1, 20))._replace(client_names=("Zürich", "a/b", "<script>"))
    fitted = fit_preprocessing(data, **options)
    save_preprocessing(fitted, tmp_path / "p.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["p.npz"]
    loaded = load_preprocessing(tmp_path / "p.npz")
    assert len(same(fitted, loaded)) > 20
    again = apply_preprocessing(loaded, data)
    for name, values in apply_preprocessing(fitted, data).features.items():
        np.testing.assert_array_equal(values, again.features[name])


def test_columns_that_did_not_vary_are_kept_as_such(tmp_path):
    data = made()
    data.features["flow"][:, 1] = 3
    data.features["notes"][:, 0] = np.nan
    fitted = fit_preprocessing(data)
    save_preprocessing(fitted, tmp_path / "p.npz")
    loaded = load_preprocessing(tmp_path / "p.npz")
    same(fitted, loaded)
    assert np.isinf(loaded.scaler.std["flow"][:, 1]).all()
    assert np.isnan(loaded.scaler.mean["notes"][:, 0]).all()


def test_files_that_are_none(tmp_path):
    path = tmp_path / "p.npz"
    with pytest.raises(DataError, match="does not exist"):
        load_preprocessing(path)
    with pytest.raises(DataError, match="cannot be read"):
        load_preprocessing(tmp_path)
    for content in (b"", b"hello", b"PK\x03\x04"):
        path.write_bytes(content)
        with pytest.raises(DataError, match="no preprocessing or is damaged"):
            load_preprocessing(path)
    np.savez(path, mean=np.zeros(3))
    with pytest.raises(DataError, match="no preprocessing or is damaged"):
        load_preprocessing(path)
    names = np.frombuffer(b'{"format": "other 7"}', np.uint8)
    np.savez(path, names=names)
    with pytest.raises(DataError, match="another format, 'other 7'"):
        load_preprocessing(path)
    with pytest.raises(DataError, match="cannot be written"):
        save_preprocessing(fit_preprocessing(made()), tmp_path / "none" / "p.npz")


def test_truncated_and_flipped_files(tmp_path):
    path = tmp_path / "p.npz"
    original = fit_preprocessing(made(), **ALL)
    save_preprocessing(original, path)
    whole = path.read_bytes()
    for size in range(0, len(whole) - 1, 197):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError):
            load_preprocessing(path)
    refused = 0
    positions = range(0, len(whole), 23)
    for position in positions:
        flipped = bytearray(whole)
        flipped[position] ^= 0xFF
        path.write_bytes(bytes(flipped))
        try:
            loaded = load_preprocessing(path)
        except DataError:
            refused += 1
            continue
        # The rest hits fields of the archive that nothing reads, such as dates.
        same(loaded, original)
    assert refused > len(positions) / 2


@pytest.mark.parametrize(
    ("record", "field", "value", "expected"),
    [
        ("scaler", "mean", np.zeros((1, 4)), r"expected float64 \(3, 4\)"),
        ("scaler", "mean", np.full((3, 4), np.nan), "not finite"),
        ("scaler", "std", np.zeros((3, 4)), "not positive"),
        ("scaler", "std", np.full((3, 4), np.nan), "not positive"),
        ("scaler", "std", np.ones((3, 4), np.float32), "is float32"),
        ("fences", "upper", np.full((3, 4), np.nan), "is NaN"),
        ("fences", "lower", np.zeros((2, 4)), r"expected float64 \(3, 4\)"),
    ],
)
def test_impossible_numbers(tmp_path, record, field, value, expected):
    fitted = fit_preprocessing(made(), **ALL)
    part = getattr(fitted, record)
    part = part._replace(**{field: {**getattr(part, field), "flow": value}})
    save_preprocessing(fitted._replace(**{record: part}), tmp_path / "p.npz")
    with pytest.raises(DataError, match=expected):
        load_preprocessing(tmp_path / "p.npz")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"clip": -1.0}, "clip -1"),
        ({"masked": frozenset({"x"})}, "masked names other modalities"),
        ({"carried": frozenset({"x"})}, "carried names other modalities"),
    ],
)
def test_names_that_do_not_fit(tmp_path, change, expected):
    fitted = fit_preprocessing(made())._replace(**change)
    save_preprocessing(fitted, tmp_path / "p.npz")
    with pytest.raises(DataError, match=expected):
        load_preprocessing(tmp_path / "p.npz")


def test_components_that_do_not_fit(tmp_path):
    fitted = fit_preprocessing(made(), **ALL)
    projection = fitted.projections["flow"]
    for change, expected in (
        ({"basis": projection.basis[:3]}, "components of 'flow' are"),
        ({"mean": projection.mean * np.nan}, "components of 'flow' not finite"),
    ):
        broken = {"flow": projection._replace(**change)}
        save_preprocessing(fitted._replace(projections=broken), tmp_path / "p.npz")
        with pytest.raises(DataError, match=expected):
            load_preprocessing(tmp_path / "p.npz")
