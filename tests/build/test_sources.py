"""Every kind of data from its configuration, to train on and to score."""

import gzip
import io
import tarfile
import warnings

import numpy as np
import pandas as pd
import pytest

from fedjax_health.build import (
    build_dataset,
    build_evaluation_dataset,
    check_files,
    data_files,
    name_files,
)
from fedjax_health.config import ConfigError, parse
from fedjax_health.data.hospital_sim import META_COLUMNS
from fedjax_health.data.hospital_sim.constants import EMR_FEATURES, IOT_FEATURES
from fedjax_health.data.loaders.wustl import BIOMETRICS, FLOW, IDENTIFIERS
from fedjax_health.data.schema import DataError, Dataset, check_dataset

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(without value|holds a value|no hospitaldischarge):UserWarning"
)


def write_heart(folder):
    path = folder / "heart.csv"
    path.write_text(
        "id,age,sex,dataset,cp,trestbps,chol,fbs,restecg,thalch,exang,oldpeak,slope,"
        "ca,thal,num\n"
        "1,63,Male,A,x,145,233,TRUE,n,150,FALSE,2.3,flat,0,n,0\n"
        "2,67,Male,B,y,120,286,FALSE,n,108,TRUE,1.5,flat,3,n,4\n"
    )
    return path


def write_wustl(folder):
    names = [*IDENTIFIERS, *FLOW, *BIOMETRICS, "Attack Category", "Label"]
    rows = [
        [0] * (len(names) - 2) + ["normal", 0],
        [1] * (len(names) - 2) + ["Spoofing", 1],
    ]
    pd.DataFrame(rows, columns=names).to_csv(folder / "w.csv", index=False)
    return folder / "w.csv"


def write_ton_iot(folder):
    (folder / "Train_Test_IoT_Fridge.csv").write_text(
        "date,time,fridge_temperature,label,type\na,b,1,0,normal\na,c,2,1,dos\n"
    )
    return folder


def write_physionet(folder):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for record in (1, 2):
            text = (
                "Time,Parameter,Value\n"
                f"00:00,RecordID,{record}\n00:00,ICUType,{record}\n00:07,HR,{record}0\n"
            ).encode()
            member = tarfile.TarInfo(f"set-a/{record}.txt")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text))
    (folder / "set-a.tar.gz").write_bytes(gzip.compress(stream.getvalue()))
    (folder / "Outcomes-a.txt").write_text("RecordID,In-hospital_death\n1,0\n2,1\n")
    return folder


def write_eicu(folder):
    text = "patientunitstayid,uniquepid,hospitalid,age,gender,ethnicity,unittype,"
    text += "unitadmitsource,unitstaytype,hospitaldischargestatus,admissionheight,"
    text += "admissionweight,hospitaladmitoffset\n"
    text += "1,a,7,50,Male,Asian,MICU,Floor,admit,Alive,170,70,-5\n"
    text += "2,b,8,60,Male,Asian,MICU,Floor,admit,Expired,170,70,-5\n"
    (folder / "patient.csv").write_text(text)
    (folder / "vitalaperiodic.csv").write_text(
        "patientunitstayid,observationoffset,noninvasivesystolic,"
        "noninvasivediastolic,noninvasivemean\n1,5,120,80,95\n2,65,110,70,85\n"
    )
    return folder


def write_mimic(folder):
    when = pd.Timestamp("2150-01-01", tz="UTC")
    stays = {"hospitalization_id": ["1", "2"], "patient_id": ["a", "b"]}
    tables = {
        "hospitalization": {
            **stays,
            "age_at_admission": [50, 60],
            "admission_type_category": ["ed", "ed"],
            "discharge_category": ["Home", "Expired"],
        },
        "adt": {
            "hospitalization_id": ["1", "2"],
            "in_dttm": [when, when],
            "location_name": ["MICU", "SICU"],
            "location_category": ["icu", "icu"],
        },
        "patient": {"patient_id": ["a", "b"], "sex_category": ["Female", "Male"]},
    }
    for name, columns in tables.items():
        pd.DataFrame(columns).to_parquet(folder / f"clif_{name}.parquet")
    return folder


def write_table(folder):
    (folder / "main.csv").write_text("who,t,a,label\np,1,5,0\np,2,6,1\n")
    return folder / "main.csv"


def write_events(folder):
    (folder / "events.csv").write_text(
        "entity,time,variable,value\ns1,0,hr,60\ns2,0,hr,70\n"
    )
    (folder / "entities.csv").write_text("entity,label\ns1,0\ns2,1\n")
    return folder / "events.csv"


KINDS = {
    "wustl": (write_wustl, ()),
    "heart": (write_heart, ()),
    "ton_iot": (write_ton_iot, ()),
    "physionet2012": (write_physionet, ()),
    "eicu": (write_eicu, ('data.modalities=["series"]',)),
    "mimic_demo": (write_mimic, ('data.modalities=["static"]',)),
    "table": (write_table, ('data.drop=["who", "t"]',)),
}


def settings(kind, path, *changes):
    # The paths of the tests need no quotes, but they may look like numbers.
    return parse("", [f"data={kind}", f'data.path="{path}"', *changes])


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_loaded_and_its_new_data_scored(tmp_path, kind):
    write, changes = KINDS[kind]
    path = write(tmp_path)
    config = settings(kind, path, *changes)
    data = build_dataset(config)
    check_dataset(data, source=kind)
    other = settings(kind, "elsewhere", *changes)
    loaded = build_evaluation_dataset(other, path, feature_names=data.feature_names)
    assert loaded.has_labels
    assert loaded.dataset.feature_names == data.feature_names
    for name, values in data.features.items():
        np.testing.assert_array_equal(loaded.dataset.features[name], values)
    np.testing.assert_array_equal(loaded.dataset.label, data.label)
    read = data_files(config)
    assert read
    assert all(file.is_file() for file in read)


def test_the_files_of_a_kind_are_all_that_it_reads(tmp_path):
    names = [
        f.name for f in data_files(settings("physionet2012", write_physionet(tmp_path)))
    ]
    assert names == ["set-a.tar.gz", "Outcomes-a.txt"]
    changes = ('data.modalities=["series"]', "data.client=region")
    (tmp_path / "hospital.csv").write_text("hospitalid,region\n7,South\n8,West\n")
    config = settings("eicu", write_eicu(tmp_path), *changes)
    names = [file.name for file in data_files(config)]
    assert names == ["patient.csv", "hospital.csv", "vitalaperiodic.csv"]
    assert build_dataset(config).client_names == ("South", "West")
    assert data_files(parse("")) == ()


def test_modalities_are_chosen_in_training_and_after(tmp_path):
    path = write_wustl(tmp_path)
    config = settings("wustl", path, 'data.modalities=["biometrics"]')
    assert list(build_dataset(config).features) == ["biometrics"]
    loaded = build_evaluation_dataset(config, path)
    assert list(loaded.dataset.features) == ["biometrics"]


LINKED = """
[data]
kind = "table"
path = "{path}"
time = "t"
[[data.links]]
path = "{link}"
modality = "emr"
on = ["who"]
time = "charted"
"""


def test_linked_tables_beside_the_new_file_come_first(tmp_path):
    for place, value in (("old", 80), ("new", 90)):
        (tmp_path / place).mkdir()
        write_table(tmp_path / place)
        (tmp_path / place / "emr.csv").write_text(f"who,charted,hr\np,0,{value}\n")
    text = LINKED.format(path=tmp_path / "old/main.csv", link=tmp_path / "old/emr.csv")
    config = parse(text)
    data = build_dataset(config)
    assert data.feature_names == {"features": ("a",), "emr": ("hr",)}
    assert data.features["emr"].tolist() == [[80], [80]]
    assert [file.name for file in data_files(config)] == ["main.csv", "emr.csv"]

    def scored(path):
        loaded = build_evaluation_dataset(
            config, path, feature_names=data.feature_names
        )
        assert loaded.dataset.feature_names["features"] == ("a",)
        return loaded.dataset.features.get("emr")

    assert scored(tmp_path / "new/main.csv").tolist() == [[90], [90]]
    # The linked table of a folder is no part of the main one.
    assert scored(tmp_path / "new").tolist() == [[90], [90]]
    (tmp_path / "new/emr.csv").unlink()
    assert scored(tmp_path / "new/main.csv").tolist() == [[80], [80]]
    (tmp_path / "old/emr.csv").unlink()
    # Nowhere: the modality is absent, which preprocessing takes as not observed.
    assert scored(tmp_path / "new/main.csv") is None
    with pytest.raises(DataError, match=r"emr\.csv does not exist"):
        build_dataset(config)


def test_entities_stand_beside_the_observations(tmp_path):
    for place in ("old", "new"):
        (tmp_path / place).mkdir()
        write_events(tmp_path / place)
    (tmp_path / "new/entities.csv").write_text("entity,label\ns1,1\ns2,1\n")
    (tmp_path / "new/events.csv").rename(tmp_path / "new/other.csv")
    entities = f'data.entities="{tmp_path}/old/entities.csv"'
    config = settings("events", tmp_path / "old/events.csv", entities)
    data = build_dataset(config)
    assert data.label[::48].tolist() == [0, 1]
    loaded = build_evaluation_dataset(config, tmp_path / "new/other.csv")
    assert loaded.dataset.label[::48].tolist() == [1, 1]
    loaded = build_evaluation_dataset(config, tmp_path / "old")
    assert loaded.dataset.label[::48].tolist() == [0, 1]
    with pytest.raises(ConfigError, match=r"data\.entities: names no file"):
        settings("events", tmp_path / "old/events.csv")


def test_the_rest_of_summaries_is_what_they_were_made_of(tmp_path):
    path = write_events(tmp_path)
    entities = f'data.entities="{tmp_path}/entities.csv"'
    records = ('summarise.statistics=["last", "max"]', "window.length=1", "model=mlp")
    config = settings("events", path, entities, *records)
    data = build_dataset(config)
    assert data.feature_names == {"series": ("hr last", "hr max")}
    with path.open("a") as file:
        file.write("s1,0,new,5\n")
    loaded = build_evaluation_dataset(config, path, feature_names=data.feature_names)
    assert loaded.dataset.feature_names == data.feature_names
    loaded = build_evaluation_dataset(config, path)
    assert "new max" in loaded.dataset.feature_names["series"]


def hospital_file(folder, *, labels=True):
    rows = 3
    columns = {name: ["x"] * rows for name in META_COLUMNS}
    columns["time"] = np.arange(rows)
    for number, name in enumerate((*IOT_FEATURES, *EMR_FEATURES)):
        columns[name] = np.arange(rows) + number
    if labels:
        columns |= {"label": [0, 0, 1], "attack": ["normal", "normal", "ddos"]}
        columns["oracle"] = [0.1, 0.2, 0.3]
    pd.DataFrame(columns).to_csv(folder / "sim.csv", index=False)
    return folder / "sim.csv"


@pytest.mark.parametrize("labels", [True, False])
def test_a_generated_file_is_scored_by_a_detector_of_generated_data(tmp_path, labels):
    path = hospital_file(tmp_path, labels=labels)
    loaded = build_evaluation_dataset(parse(""), path)
    data = loaded.dataset
    assert loaded.has_labels == labels
    assert data.feature_names == {"iot": IOT_FEATURES, "emr": EMR_FEATURES}
    assert data.masked == {"iot", "emr"}
    assert data.carried == frozenset()
    assert data.step_seconds == 60
    assert data.patient is not None
    only = parse("", ['data.modalities=["iot"]'])
    loaded = build_evaluation_dataset(only, path)
    assert list(loaded.dataset.features) == ["iot"]


def test_another_file_is_no_generated_one(tmp_path):
    with pytest.raises(DataError, match=r"has no column 'client' \(client\)"):
        build_evaluation_dataset(parse(""), write_heart(tmp_path))


def own_data(*, path, positive=(0, 1)) -> Dataset:
    values = np.loadtxt(path, dtype=np.float32).reshape(-1, 1)
    label = np.isin(np.arange(len(values)), positive).astype(np.float32)
    return Dataset(
        features={"x": values},
        feature_names={"x": ("x",)},
        label=label,
        attack=label.astype(np.int32),
        attack_names=("normal", "attack"),
        client=np.zeros(len(values), np.int32),
        client_names=("all",),
        entity=np.zeros(len(values), np.int64),
        time=np.arange(len(values), dtype=np.float64),
    )


def pathless() -> Dataset:
    raise AssertionError("not called")


def test_an_own_function_is_called_with_the_new_path(tmp_path, monkeypatch):
    import sys
    import types

    module = types.ModuleType("own_data_of_a_test")
    vars(module).update(own_data=own_data, pathless=pathless)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    (tmp_path / "old").write_text("1 2 3")
    (tmp_path / "new").write_text("4 5")
    target = f'data.target="{module.__name__}:own_data"'
    config = parse("", ["data=custom", target, f'data.args.path="{tmp_path}/old"'])
    assert build_dataset(config).num_rows == 3
    # Rows of one class can be scored.
    loaded = build_evaluation_dataset(config, tmp_path / "new")
    assert loaded.has_labels
    assert loaded.dataset.features["x"].tolist() == [[4], [5]]
    assert loaded.dataset.label.tolist() == [1, 1]
    config = parse("", ["data=custom", target.replace(":own_data", ":pathless")])
    with pytest.raises(ConfigError, match="path"):
        build_evaluation_dataset(config, tmp_path / "new")


@pytest.mark.parametrize("kind", [*KINDS, "events"])
def test_a_path_that_is_not_there(tmp_path, kind):
    changes = ['data.entities="x"'] if kind == "events" else []
    config = settings(kind, tmp_path / "none", *changes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calls = [build_dataset, lambda c: build_evaluation_dataset(c, c.data.path)]
        if kind != "mimic_demo":
            # Of a demo that is not there, no file is known.
            calls.append(check_files)
        for call in calls:
            with pytest.raises(DataError) as caught:
                call(config)
            message = str(caught.value)
            assert "does not exist" in message
            assert "\n" not in message


def test_every_file_is_looked_for_before_any_is_read(tmp_path):
    path = write_events(tmp_path)
    config = settings("events", path, f'data.entities="{tmp_path}/none.csv"')
    with pytest.raises(DataError, match=r"none\.csv does not exist"):
        check_files(config)
    link = f'[{{path = "{tmp_path}/gone.csv", modality = "emr", on = ["who"]}}]'
    table = write_table(tmp_path)
    with pytest.raises(DataError, match=r"gone\.csv does not exist"):
        check_files(settings("table", table, f"data.links={link}"))
    check_files(settings("table", table))
    check_files(parse(""))


def test_what_a_folder_or_pattern_stands_for_is_named(tmp_path):
    table = write_table(tmp_path)
    (tmp_path / "second.csv").write_text(table.read_text())
    assert name_files(settings("table", table)) is None
    assert name_files(parse("")) is None
    for path in (tmp_path, f"{tmp_path}/*.csv"):
        told = name_files(settings("table", path))
        assert told == f"{path}: main.csv, second.csv"
    heart = tmp_path / "heart"
    heart.mkdir()
    write_heart(heart)
    (name,) = (file.name for file in heart.iterdir())
    config = settings("heart", heart)
    assert name_files(config) == f"{heart}: {name}"
    assert [file.name for file in data_files(config)] == [name]


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "mimic_demo"])
def test_a_kind_without_a_path_is_refused_with_the_configuration(kind):
    with pytest.raises(ConfigError, match=r"--set data\.path="):
        parse("", [f"data={kind}"])
