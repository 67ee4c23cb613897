"""Which columns are kept, against a count entity by entity."""

import numpy as np
import pytest

from fedjax_health.data.preprocess import keep_observed
from fedjax_health.data.schema import DataError, segment_ids
from tests.data.preprocess.made import made


def with_stays(seed=0, missing=0.7):
    data = made(seed=seed, missing=0)
    rng = np.random.default_rng(seed)
    data = data._replace(entity=np.arange(data.num_rows) // 5)
    flow = data.features["flow"]
    flow[rng.random(flow.shape) < missing] = np.nan
    flow[:, 3] = np.nan
    return data


@pytest.mark.parametrize("least", [0.0, 0.5, 0.8])
def test_columns_with_enough_entities_are_kept(least):
    data = with_stays()
    segment = segment_ids(data)
    want = []
    for position, name in enumerate(data.feature_names["flow"]):
        column = data.features["flow"][:, position]
        stays = [column[segment == n] for n in range(segment.max() + 1)]
        share = np.mean([not np.isnan(stay).all() for stay in stays])
        if share > 0 and share >= least:
            want.append(name)
    assert want
    kept = keep_observed(data, "flow", least)
    assert kept.feature_names["flow"] == tuple(want)
    places = [data.feature_names["flow"].index(name) for name in want]
    np.testing.assert_array_equal(
        kept.features["flow"], data.features["flow"][:, places]
    )
    assert kept.feature_names["notes"] == data.feature_names["notes"]
    with pytest.raises(DataError, match="no variable is observed in 100%"):
        keep_observed(data, "flow", 1.0)


def test_summaries_of_a_variable_stand_or_fall_together():
    data = with_stays()
    rows = data.num_rows
    few, none = np.arange(rows) < 2, np.zeros(rows)
    data = data._replace(entity=np.arange(rows))
    data.features["flow"] = np.stack(
        [np.where(few, 1.0, np.nan), few, none * np.nan, none], axis=1
    ).astype(np.float32)
    names = {
        **data.feature_names,
        "flow": ("x y last", "x y count", "z last", "z count"),
    }
    data = data._replace(feature_names=names)
    statistics = ("last", "count")
    kept = keep_observed(data, "flow", statistics=statistics)
    assert kept.feature_names["flow"] == ("x y last", "x y count")
    with pytest.raises(DataError, match="no variable"):
        keep_observed(data, "flow", 0.5, statistics=statistics)
