"""UCI heart disease from a made file and from the real one."""

import numpy as np
import pytest

from fedjax_health.data.loaders.heart import CLINICAL, load_heart, read_heart
from fedjax_health.data.schema import DataError, check_dataset

HEADER = "id,age,sex,dataset,cp,trestbps,chol,fbs,restecg,thalch,exang,oldpeak,"
HEADER += "slope,ca,thal,num\n"
ROWS = """\
1,63,Male,Cleveland,typical angina,145,233,TRUE,normal,150,FALSE,2.3,flat,0,normal,0
2,67,Female,Cleveland,asymptomatic,0,286,FALSE,normal,108,TRUE,1.5,flat,3,normal,4
3,40,Male,Switzerland,asymptomatic,95,0,,normal,,TRUE,-0.9,,,,1
"""


def test_rows_become_patients_of_hospitals(tmp_path):
    (tmp_path / "h.csv").write_text(HEADER + ROWS)
    data = load_heart(tmp_path / "h.csv")
    check_dataset(data)
    assert data.target == "row"
    assert data.client_names == ("Cleveland", "Switzerland")
    assert data.label.tolist() == [0, 1, 1]
    assert data.entity_names == ("1", "2", "3")
    assert data.entity.tolist() == [0, 1, 2]
    assert data.feature_names == {"clinical": CLINICAL}
    assert data.masked == {"clinical"}
    assert data.categories["clinical"]["sex"] == ("Female", "Male")
    row = dict(zip(CLINICAL, data.features["clinical"].T.tolist(), strict=True))
    # A pressure and a cholesterol of 0 were not measured; 0 vessels were counted.
    assert row["trestbps"][0] == 145
    assert np.isnan(row["trestbps"][1])
    assert np.isnan(row["chol"][2])
    assert row["ca"][:2] == [0, 3]
    assert np.isnan(row["fbs"][2])
    assert row["oldpeak"][2] == pytest.approx(-0.9)


def test_ids_that_occur_twice_and_columns_that_do_not(tmp_path):
    path = tmp_path / "h.csv"
    path.write_text(HEADER + ROWS.replace("3,40", "2,40"))
    with pytest.raises(DataError, match="id 2 occurs twice"):
        load_heart(path)
    path.write_text(HEADER.replace("thalch", "thalach") + ROWS)
    with pytest.raises(DataError, match=r"no column 'thalch' .* did you mean"):
        load_heart(path)
    path.write_text(HEADER + ROWS.replace("145,233", "145,high"))
    with pytest.raises(DataError, match="line 2, column 'chol': 'high'"):
        load_heart(path)


def test_patients_to_score(tmp_path):
    path = tmp_path / "h.csv"
    lines = [line.rsplit(",", 1)[0] for line in (HEADER + ROWS).splitlines()]
    path.write_text("\n".join(lines) + "\n")
    loaded = read_heart(path)
    assert not loaded.has_labels
    assert loaded.dataset.num_rows == 3
    with pytest.raises(DataError, match="'num'"):
        load_heart(path)
    path.write_text(HEADER + ROWS.splitlines()[1] + "\n")
    assert read_heart(path).has_labels


@pytest.mark.realdata
def test_the_real_file(data_root):
    path = data_root / "uci_heart_4hospitals" / "heart_disease_uci.csv"
    if not path.exists():
        pytest.skip(f"UCI heart disease is not in {data_root}")
    data = load_heart(path)
    check_dataset(data)
    counts = dict(zip(data.client_names, np.bincount(data.client), strict=True))
    assert counts == {
        "Cleveland": 304,
        "Hungary": 293,
        "Switzerland": 123,
        "VA Long Beach": 200,
    }
    assert data.label.sum() == 509
    kinds = {name: len(names) for name, names in data.categories["clinical"].items()}
    assert kinds == {
        "sex": 2,
        "cp": 4,
        "fbs": 2,
        "restecg": 3,
        "exang": 2,
        "slope": 3,
        "thal": 3,
    }
