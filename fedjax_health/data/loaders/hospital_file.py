"""A file of the embedded data, as ``fedjax-health generate`` writes it."""

from fedjax_health.data.hospital_sim.constants import (
    ATTACK_NAMES,
    EMR_FEATURES,
    IOT_FEATURES,
)
from fedjax_health.data.loaders.roles import ColumnRoles

# The oracle knows how the data was made; ids would give the attacked away.
HOSPITAL_FILE_ROLES = ColumnRoles(
    label="label",
    attack="attack",
    normal=ATTACK_NAMES[0],
    client="client",
    entity="entity",
    patient="patient",
    time="time",
    step_seconds=60.0,
    drop=("hospital", "department", "device", "device_type", "oracle"),
    modalities={"iot": IOT_FEATURES, "emr": EMR_FEATURES},
    allow_missing=True,
)
