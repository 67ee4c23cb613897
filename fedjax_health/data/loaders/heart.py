"""UCI heart disease at four hospitals: one row a patient.

Source: Janosi, Steinbrunn, Pfisterer, Detrano, "Heart Disease", UCI Machine Learning
Repository, 1989. The hospitals are the clients of Fed-Heart-Disease in FLamby (Ogier du
Terrail et al., NeurIPS 2022). What is measured differs by hospital: most cells of ca
and thal are empty outside Cleveland.
"""

import os

import numpy as np

from fedjax_health.data.loaders.loaded import Loaded
from fedjax_health.data.loaders.tabular import ColumnRoles, load_table, read_table
from fedjax_health.data.schema import DataError, Dataset

CLINICAL = (
    "age",
    "sex",
    "cp",
    "trestbps",
    "chol",
    "fbs",
    "restecg",
    "thalch",
    "exang",
    "oldpeak",
    "slope",
    "ca",
    "thal",
)

# num is the number of narrowed vessels, 0 to 4: disease is any of them.
HEART_ROLES = ColumnRoles(
    label="num",
    positive=(1, 2, 3, 4),
    client="dataset",
    entity="id",
    modalities={"clinical": CLINICAL},
    categorical=("sex", "cp", "fbs", "restecg", "exang", "slope", "thal"),
    allow_missing=True,
)

# A blood pressure and a cholesterol of 0 stand for "not measured": all of Switzerland's
# cholesterol is 0.
_ZERO_IS_MISSING = ("trestbps", "chol")


def load_heart(path: str | os.PathLike[str]) -> Dataset:
    """Loads ``heart_disease_uci.csv``.

    Args:
      path: the file.

    Returns:
      One row a patient, an entity of its own named by its id; modality "clinical" (13
      columns, 7 of them categories), the hospital as the client, disease as the label.

    Raises:
      DataError: if the file cannot be used or an id occurs twice.
    """
    return _clean(load_table(path, HEART_ROLES), str(path))


def read_heart(path: str | os.PathLike[str]) -> Loaded:
    """Loads patients to score, with or without ``num``; see ``load_heart``.

    Raises:
      DataError: if the file cannot be used or an id occurs twice.
    """
    loaded = read_table(path, HEART_ROLES)
    return loaded._replace(dataset=_clean(loaded.dataset, str(path)))


def _clean(dataset: Dataset, source: str) -> Dataset:
    count = np.bincount(dataset.entity, minlength=len(dataset.entity_names))
    if count.max() > 1:
        twice = dataset.entity_names[int(np.argmax(count))]
        raise DataError(f"{source}: id {twice} occurs twice; give each patient one")
    names = dataset.feature_names["clinical"]
    values = dataset.features["clinical"].copy()
    for column in _ZERO_IS_MISSING:
        cells = values[:, names.index(column)]
        cells[cells == 0] = np.nan
    return dataset._replace(
        features={"clinical": values}, attack_names=("normal", "heart disease")
    )
