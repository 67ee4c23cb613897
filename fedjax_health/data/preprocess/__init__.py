"""What is fitted on the training part and applied to every other; a summary."""

from fedjax_health.data.preprocess.archive import (
    load_preprocessing,
    save_preprocessing,
)
from fedjax_health.data.preprocess.balance import class_weights
from fedjax_health.data.preprocess.encode import unseen_categories
from fedjax_health.data.preprocess.observed import keep_observed
from fedjax_health.data.preprocess.outliers import Fences, apply_fences, fit_fences
from fedjax_health.data.preprocess.pipeline import (
    Outliers,
    Preprocessing,
    absent_columns,
    absent_modalities,
    apply_preprocessing,
    fit_preprocessing,
)
from fedjax_health.data.preprocess.project import (
    Projection,
    apply_projections,
    fit_projections,
)
from fedjax_health.data.preprocess.scaling import (
    Scaler,
    apply_scaler,
    check_features,
    fit_scaler,
)
from fedjax_health.data.preprocess.summary import Summary, summary

__all__ = [
    "Fences",
    "Outliers",
    "Preprocessing",
    "Projection",
    "Scaler",
    "Summary",
    "absent_columns",
    "absent_modalities",
    "apply_fences",
    "apply_preprocessing",
    "apply_projections",
    "apply_scaler",
    "check_features",
    "class_weights",
    "fit_fences",
    "fit_preprocessing",
    "fit_projections",
    "fit_scaler",
    "keep_observed",
    "load_preprocessing",
    "save_preprocessing",
    "summary",
    "unseen_categories",
]
