"""Settings of HospitalSim and the presets; imports neither jax nor NumPy arrays."""

import math
from dataclasses import dataclass
from typing import Literal

VERSION = "1"


@dataclass(frozen=True)
class SimSettings:
    """What is generated; the constants of the model itself are frozen elsewhere.

    Attributes:
      hospitals: number of hospitals, H.
      departments: smallest and largest number of departments of a hospital.
      patients_per_hospital: smallest and largest number of patients; sizes between
        them follow a truncated power law (or are equal spaced without ``imbalance``).
      steps: rows of one stream, T, one minute each.
      prevalence: expected share of attacked steps, which with the label of a window
        being that of its last step is also the share of positive windows.
      clients: whether a client is a hospital or a department.
      link: False is the negative control: gamma = 0 and W s_t = 0, nothing links the
        two modalities.
      missing: hospitals that lack a modality and samples that lose one.
      shift: per-hospital feature, unit and coding shift.
      imbalance: power-law sizes, Dirichlet attack types and departments, one hospital
        without positives.
      version: of the frozen constants; only the present one can be generated.

    Raises:
      ValueError: for a number out of range.
    """

    hospitals: int = 12
    departments: tuple[int, int] = (3, 6)
    patients_per_hospital: tuple[int, int] = (14, 72)
    steps: int = 480
    prevalence: float = 0.05
    clients: Literal["hospital", "department"] = "hospital"
    link: bool = True
    missing: bool = True
    shift: bool = True
    imbalance: bool = True
    version: str = VERSION

    def __post_init__(self):
        """Refuses settings that cannot be generated."""
        low, high = self.departments
        smallest, largest = self.patients_per_hospital
        checks = (
            (self.hospitals >= 1, "hospitals must be at least 1"),
            (1 <= low <= high <= 6, "departments must be a range within 1 to 6"),
            (
                high <= smallest <= largest <= 1000,
                "patients_per_hospital must be a range from at least the largest "
                "number of departments to at most 1000",
            ),
            (20 <= self.steps <= 100_000, "steps must lie in 20 to 100000"),
            (
                math.isfinite(self.prevalence) and 0.0 < self.prevalence <= 0.5,
                "prevalence must lie in (0, 0.5]",
            ),
            (
                self.clients in ("hospital", "department"),
                'clients must be "hospital" or "department"',
            ),
            (
                self.version == VERSION,
                f"version must be {VERSION!r}, the one that this release generates",
            ),
        )
        for holds, sentence in checks:
            if not holds:
                value = getattr(self, sentence.split()[0])
                shown = list(value) if isinstance(value, tuple) else value
                raise ValueError(f"hospital_sim: {sentence}, not {shown!r}")


PRESETS: dict[str, SimSettings] = {
    "demo": SimSettings(),
    "paper": SimSettings(
        hospitals=20, patients_per_hospital=(20, 80), steps=480, prevalence=0.37
    ),
    "many_clients": SimSettings(
        hospitals=200,
        departments=(5, 5),
        patients_per_hospital=(10, 40),
        steps=120,
        clients="department",
    ),
}
