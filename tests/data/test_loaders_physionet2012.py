"""PhysioNet 2012 from made archives, whole and broken, and from the real one."""

import gzip
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from fedjax_health.data.loaders import physionet2012
from fedjax_health.data.loaders.physionet2012 import (
    SERIES,
    SERIES_RANGES,
    STATIC,
    load_physionet2012,
    read_physionet2012,
)
from fedjax_health.data.schema import (
    DataError,
    DataWarning,
    check_dataset,
    examples_of,
    segment_starts,
)

# The made stays have few variables.
pytestmark = pytest.mark.filterwarnings("ignore:.*without value:UserWarning")

HEADER = "RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death\n"


def stay(record, unit, lines=(), *, age=60, gender=1, height=170, weight=80.0):
    text = ["Time,Parameter,Value"]
    text += [
        f"00:00,{name},{value}"
        for name, value in {
            "RecordID": record,
            "Age": age,
            "Gender": gender,
            "Height": height,
            "ICUType": unit,
            "Weight": weight,
        }.items()
    ]
    return "\n".join([*text, *lines]) + "\n"


STAYS = {
    "11": stay(11, 3, ["00:07,HR,73", "00:37,HR,77", "01:00,HR,80", "48:00,HR,90"]),
    "12": stay(12, 1, ["05:00,pH,73", "05:00,Temp,-17.8", "05:01,Temp,36.5"]),
    "13": stay(13, 3, ["02:30,HR,60", "02:10,HR,50", "02:30,HR,61"], weight=-1),
    "14": stay(14, 2, height=-1, gender=-1),
}
DEATHS = {"11": 0, "12": 1, "13": 1, "14": 0}


def outcomes(deaths):
    return HEADER + "".join(f"{r},6,1,5,-1,{d}\n" for r, d in deaths.items())


def pack(stays):
    """The stays (name -> text or a prepared member) as the bytes of a tar."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        folder = tarfile.TarInfo("set-a/")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, text in stays.items():
            if isinstance(text, tarfile.TarInfo):
                tar.addfile(text)
                continue
            member = tarfile.TarInfo(name if "/" in name else f"set-a/{name}.txt")
            content = text.encode()
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def write(folder: Path, stays=None, deaths=None) -> Path:
    stays = STAYS if stays is None else stays
    (folder / "set-a.tar.gz").write_bytes(gzip.compress(pack(stays)))
    text = outcomes(DEATHS if deaths is None else deaths)
    (folder / "Outcomes-a.txt").write_text(text)
    return folder


def refused(path, **settings) -> str:
    with pytest.raises(DataError) as caught:
        load_physionet2012(path, **settings)
    message = str(caught.value)
    assert "\n" not in message
    return message


def series(data, record, variable):
    entity = data.entity_names.index(record)
    column = data.feature_names["series"].index(variable)
    return data.features["series"][data.entity == entity][:, column]


def static(data, record):
    entity = data.entity_names.index(record)
    rows = data.features["static"][data.entity == entity]
    assert (np.isnan(rows) == np.isnan(rows[0])).all()
    return dict(zip(STATIC, rows[0].tolist(), strict=True))


def test_stays_become_entities(tmp_path):
    data = load_physionet2012(write(tmp_path))
    check_dataset(data)
    assert data.target == "entity"
    assert data.num_rows == 4 * 48
    assert data.client_names == (
        "Cardiac Surgery Recovery Unit",
        "Coronary Care Unit",
        "Medical ICU",
    )
    assert data.entity_names == ("11", "12", "13", "14")
    assert len(data.feature_names["series"]) == 37
    assert data.feature_names["static"] == STATIC
    assert data.masked == {"series", "static"}
    assert data.carried == {"series"}
    assert data.step_seconds == 3600
    examples = examples_of(data)
    names = [data.entity_names[entity] for entity in examples.entity]
    assert names == ["14", "12", "11", "13"]
    assert examples.label.tolist() == [0, 1, 0, 1]
    starts = segment_starts(data)
    np.testing.assert_array_equal(
        data.time.reshape(-1, 48), np.tile(np.arange(48) * 3600.0, (len(starts), 1))
    )
    assert not {"SAPS-I", "SOFA", "Length_of_stay", "Survival"} & {
        *data.feature_names["series"],
        *data.feature_names["static"],
    }


def test_the_grid_holds_the_last_value_or_the_mean(tmp_path):
    write(tmp_path)
    data = load_physionet2012(tmp_path)
    expected = np.full(48, np.nan)
    expected[[0, 1, 47]] = [77, 80, 90]
    np.testing.assert_array_equal(series(data, "11", "HR"), expected)
    # Unsorted times are sorted; of one minute, the line further down counts.
    assert series(data, "13", "HR")[2] == 61
    means = load_physionet2012(tmp_path, aggregate="mean")
    assert series(means, "11", "HR")[0] == 75
    assert series(means, "13", "HR")[2] == pytest.approx(57)
    halves = load_physionet2012(tmp_path, bin_minutes=30)
    assert halves.step_seconds == 1800
    assert series(halves, "11", "HR")[:3].tolist() == [73, 77, 80]
    assert len(series(halves, "11", "HR")) == 96


def test_unknown_and_impossible_values_are_not_observed(tmp_path):
    data = load_physionet2012(write(tmp_path))
    assert np.isnan(series(data, "12", "pH")).all()
    assert series(data, "12", "Temp")[5] == np.float32(36.5)
    assert np.isfinite(series(data, "12", "Temp")).sum() == 1
    assert np.isnan(series(data, "13", "Weight")).all()
    assert np.isnan(static(data, "13")["Weight"])
    kept = static(data, "14")
    assert np.isnan([kept["Gender"], kept["Height"]]).all()
    assert (kept["Age"], kept["Weight"]) == (60, 80)
    for name, (low, high) in SERIES_RANGES.items():
        assert not low <= -1 <= high, name


def test_modalities_alone(tmp_path):
    write(tmp_path)
    only = load_physionet2012(tmp_path, modalities=("series",))
    assert list(only.features) == ["series"]
    table = load_physionet2012(tmp_path, modalities=("static",))
    check_dataset(table)
    assert table.target == "row"
    assert table.num_rows == 4
    assert table.step_seconds is None
    assert table.carried == frozenset()
    assert "'notes'" in refused(tmp_path, modalities=("notes",))
    assert "no modality" in refused(tmp_path, modalities=())


@pytest.mark.parametrize("minutes", [0, -60, 7, np.nan, 5000])
def test_bins_that_do_not_fill_the_stay(tmp_path, minutes):
    assert "bin_minutes" in refused(write(tmp_path), bin_minutes=minutes)


def test_archive_folder_and_unpacked_stays_are_the_same(tmp_path):
    whole = load_physionet2012(write(tmp_path))
    archive = load_physionet2012(tmp_path / "set-a.tar.gz")
    (tmp_path / "set-a").mkdir()
    for record, text in STAYS.items():
        (tmp_path / "set-a" / f"{record}.txt").write_text(text)
    unpacked = load_physionet2012(tmp_path / "set-a")
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "set-a.tar").write_bytes(pack(STAYS))
    named = load_physionet2012(plain, outcomes=tmp_path / "Outcomes-a.txt")
    (tmp_path / "set-a.tar.gz").unlink()
    folder = load_physionet2012(tmp_path)
    for other in (archive, unpacked, named, folder):
        for name, values in whole.features.items():
            np.testing.assert_array_equal(other.features[name], values)
        np.testing.assert_array_equal(other.label, whole.label)
        assert other.entity_names == whole.entity_names


def test_lines_ends_and_blank_lines_do_not_matter(tmp_path):
    write(tmp_path)
    plain = load_physionet2012(tmp_path)
    odd = {
        record: text.replace("\n", "\r\n\r\n", 2).rstrip("\n")
        for record, text in STAYS.items()
    }
    again = load_physionet2012(write(tmp_path, odd))
    np.testing.assert_array_equal(again.features["series"], plain.features["series"])


def test_stays_to_score_need_no_outcomes(tmp_path):
    write(tmp_path)
    scored = read_physionet2012(tmp_path)
    assert scored.has_labels
    (tmp_path / "Outcomes-a.txt").unlink()
    assert "Outcomes-a.txt" in refused(tmp_path)
    loaded = read_physionet2012(tmp_path)
    assert not loaded.has_labels
    assert not loaded.dataset.label.any()
    np.testing.assert_array_equal(
        loaded.dataset.features["series"], scored.dataset.features["series"]
    )


def test_stays_without_an_outcome_are_scored_and_known_for_it(tmp_path):
    write(tmp_path, None, {"11": 0, "12": 1, "99": 0})
    loaded = read_physionet2012(tmp_path)
    names = [loaded.dataset.entity_names[n] for n in loaded.dataset.entity]
    known = {name for name, k in zip(names, loaded.known, strict=True) if k}
    assert known == {"11", "12"}
    assert "has no outcome of stay 13 and of 1 more" in refused(tmp_path)


def test_one_class_can_be_scored_but_not_learnt(tmp_path):
    write(tmp_path, {"11": STAYS["11"]}, {"11": 0})
    assert "one class" in refused(tmp_path)
    assert read_physionet2012(tmp_path).dataset.num_rows == 48


def test_what_is_no_set(tmp_path):
    assert "holds no set-a.tar.gz" in refused(tmp_path)
    assert "does not exist" in refused(tmp_path / "set-a.tar.gz")
    write(tmp_path)
    (tmp_path / "set-b").mkdir()
    assert "several sets (set-a.tar.gz, set-b)" in refused(tmp_path)
    (tmp_path / "set-b" / "1.txt").write_text("hello")
    assert "does not begin with Time" in refused(
        tmp_path / "set-b", outcomes=tmp_path / "Outcomes-a.txt"
    )
    assert "does not exist" in refused(
        tmp_path / "set-a.tar.gz", outcomes=tmp_path / "none.txt"
    )


def member(name, kind=tarfile.REGTYPE, **fields):
    info = tarfile.TarInfo(name)
    info.type = kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info


@pytest.mark.parametrize(
    ("evil", "text"),
    [
        (member("../outside.txt"), "outside the archive's folder"),
        (member("/etc/outside.txt"), "outside the archive's folder"),
        (member("set-a/../../outside.txt"), "outside the archive's folder"),
        (member("set-a\\..\\outside.txt"), "outside the archive's folder"),
        (member("C:outside.txt"), "outside the archive's folder"),
        (member("set-a/9.txt", tarfile.SYMTYPE, linkname="/etc/passwd"), "a link"),
        (member("set-a/9.txt", tarfile.LNKTYPE, linkname="set-a/11.txt"), "a link"),
        (member("set-a/9.txt", tarfile.FIFOTYPE), "a device"),
        (member("set-a/9.txt", tarfile.CHRTYPE), "a device"),
    ],
)
def test_members_that_are_not_to_be_trusted(tmp_path, evil, text):
    message = refused(write(tmp_path, {**STAYS, "evil": evil}))
    assert text in message
    assert repr(evil.name) in message
    assert sorted(p.name for p in tmp_path.rglob("*")) == [
        "Outcomes-a.txt",
        "set-a.tar.gz",
    ]


def test_members_that_are_far_too_large(tmp_path, monkeypatch):
    large = STAYS["11"] + "47:00,HR,80\n" * 500_000
    message = refused(write(tmp_path, {**STAYS, "11": large}))
    assert "far more than a stay" in message
    monkeypatch.setattr(physionet2012, "_LARGEST_ARCHIVE", 2 << 10)
    write(tmp_path)
    assert "far more than it should" in refused(tmp_path)


@pytest.mark.parametrize("cut", [0.1, 0.5, 0.9, 0.99])
def test_truncated_gzip(tmp_path, cut):
    write(tmp_path)
    whole = (tmp_path / "set-a.tar.gz").read_bytes()
    (tmp_path / "set-a.tar.gz").write_bytes(whole[: int(len(whole) * cut)])
    assert "truncated or corrupt gzip" in refused(tmp_path)


@pytest.mark.parametrize("left", [1, 100, 513, 1024, 3000, 4096, 4500])
def test_truncated_tar_in_a_whole_gzip(tmp_path, left):
    write(tmp_path)
    whole = pack(STAYS)
    (tmp_path / "set-a.tar.gz").write_bytes(gzip.compress(whole[:left]))
    message = refused(tmp_path)
    assert "truncated" in message
    assert "set-a.tar.gz" in message


def test_what_is_no_tar(tmp_path):
    write(tmp_path)
    (tmp_path / "set-a.tar.gz").write_bytes(gzip.compress(b"hello, world" * 200))
    assert "corrupt tar" in refused(tmp_path)
    (tmp_path / "set-a.tar.gz").write_bytes(b"\x89PNG" * 999)
    assert "corrupt tar" in refused(tmp_path)


@pytest.mark.parametrize(
    ("stays", "deaths", "text"),
    [
        ({**STAYS, "15": stay(15, 1)}, DEATHS, "no outcome of stay 15"),
        (STAYS, {**DEATHS, "15": 0, "16": 1}, "outcome of 15 and of 1 more"),
        ({**STAYS, "set-a/b/11.txt": STAYS["11"]}, DEATHS, "both stay 11"),
        ({**STAYS, "15": STAYS["11"]}, DEATHS, "both stay 11"),
        ({**STAYS, "15": stay(16, 1)}, DEATHS, "says that it is stay 16"),
        ({**STAYS, "15": stay(15, 7)}, DEATHS, "stay 15 has ICUType 7"),
        ({**STAYS, "15": stay(15, -1)}, DEATHS, "ICUType -1"),
        ({**STAYS, "15": "Time,Parameter,Value\n"}, DEATHS, "no RecordID"),
        ({**STAYS, "15": "Parameter,Value\n"}, DEATHS, "15.txt: does not begin"),
        (
            {**STAYS, "15": stay(15, 1, ["1:00,HR,eighty"])},
            DEATHS,
            "set-a/15.txt, line 8: 'eighty' is not a number",
        ),
        ({**STAYS, "15": stay(15, 1, ["1:00,HR"])}, DEATHS, "line 8: 2 cells"),
        ({**STAYS, "15": stay(15, 1, ["1:00,HR,"])}, DEATHS, "line 8: ''"),
        ({**STAYS, "15": stay(15, 1, ["noon,HR,8"])}, DEATHS, "line 8: time 'noon'"),
        ({**STAYS, "15": stay(15, 1, ["1:75,HR,8"])}, DEATHS, "line 8: time '1:75'"),
        (STAYS, {**DEATHS, "11": 2}, "'2' is not 0 or 1"),
        ({"note": "x"}, DEATHS, "does not begin with"),
        ({"set-a/readme.md": "x"}, DEATHS, "holds no stays"),
    ],
)
def test_stays_and_outcomes_that_do_not_fit(tmp_path, stays, deaths, text):
    assert text in refused(write(tmp_path, stays, deaths))


def test_two_outcomes_of_one_stay(tmp_path):
    write(tmp_path)
    with (tmp_path / "Outcomes-a.txt").open("a") as file:
        file.write("11,6,1,5,-1,1\n")
    assert "stay 11 has two outcomes" in refused(tmp_path)
    (tmp_path / "Outcomes-a.txt").write_text("RecordID,SOFA\n11,2\n")
    assert "'In-hospital_death'" in refused(tmp_path)


def test_a_parameter_that_is_not_known_is_said(tmp_path):
    odd = {**STAYS, "11": stay(11, 3, ["1:00,Mood,3", "1:00,,-1"])}
    with pytest.warns(DataWarning, match="'Mood' is unknown"):
        load_physionet2012(write(tmp_path, odd))


@pytest.fixture(scope="module")
def real(data_root):
    folder = data_root / "physionet2012"
    if not folder.is_dir():
        pytest.skip(f"PhysioNet 2012 is not in {data_root}")
    return load_physionet2012(folder)


@pytest.mark.realdata
class TestRealSet:
    def test_size_and_balance(self, real):
        check_dataset(real)
        examples = examples_of(real)
        assert examples.num_rows == 4000
        assert examples.label.mean() == pytest.approx(0.1385, abs=1e-4)
        counts = dict(zip(real.client_names, np.bincount(examples.client), strict=True))
        assert counts == {
            "Coronary Care Unit": 577,
            "Cardiac Surgery Recovery Unit": 874,
            "Medical ICU": 1481,
            "Surgical ICU": 1068,
        }

    def test_every_variable_is_seen_within_its_range(self, real):
        for name, values in zip(SERIES, real.features["series"].T, strict=True):
            seen = values[np.isfinite(values)]
            low, high = SERIES_RANGES[name]
            assert len(seen) > 100, name
            assert np.float32(low) <= seen.min(), name
            assert seen.max() <= np.float32(high), name
        assert np.isfinite(real.features["series"]).mean() == pytest.approx(
            0.19, abs=0.005
        )
