"""WUSTL-EHMS-2020: network flows and vital signs of a patient-monitoring test bed.

Source: Hady et al., "Intrusion Detection System for Healthcare Systems Using Medical
and Network Data: A Comparison Study", IEEE Access 8, 2020. One stream in time order;
attacks (spoofing, data alteration) come in contiguous episodes of 17 to 31 rows.
"""

import os

from fedjax_health.data.loaders.tabular import ColumnRoles, load_table
from fedjax_health.data.schema import Dataset

# Each of these gives the label away or says nothing: SrcMac alone separates the
# label, Flgs marks data alteration, Sport and Packet_num are counters, the others
# are constant addresses.
IDENTIFIERS = (
    "Dir",
    "Flgs",
    "SrcAddr",
    "DstAddr",
    "Sport",
    "Dport",
    "SrcMac",
    "DstMac",
    "Packet_num",
)

# SrcGap, DstGap, DIntPktAct, dMinPktSz and Trans are constant in the first 70 % of
# the file. They stay: a constant column scales to zero, and other parts may vary.
FLOW = (
    "SrcBytes",
    "DstBytes",
    "SrcLoad",
    "DstLoad",
    "SrcGap",
    "DstGap",
    "SIntPkt",
    "DIntPkt",
    "SIntPktAct",
    "DIntPktAct",
    "SrcJitter",
    "DstJitter",
    "sMaxPktSz",
    "dMaxPktSz",
    "sMinPktSz",
    "dMinPktSz",
    "Dur",
    "Trans",
    "TotPkts",
    "TotBytes",
    "Load",
    "Loss",
    "pLoss",
    "pSrcLoss",
    "pDstLoss",
    "Rate",
)

BIOMETRICS = (
    "Temp",
    "SpO2",
    "Pulse_Rate",
    "SYS",
    "DIA",
    "Heart_rate",
    "Resp_Rate",
    "ST",
)

WUSTL_ROLES = ColumnRoles(
    label="Label",
    attack="Attack Category",
    normal="normal",
    drop=IDENTIFIERS,
    modalities={"flow": FLOW, "biometrics": BIOMETRICS},
)


def load_wustl(path: str | os.PathLike[str]) -> Dataset:
    """Loads the WUSTL-EHMS-2020 table, or a part of it with the same columns.

    Args:
      path: the CSV; plain, gzipped or converted to Parquet.

    Returns:
      One client with one stream in the order of the file; modalities "flow"
      (26 columns) and "biometrics" (8 columns).

    Raises:
      DataError: if the file cannot be used.
    """
    return load_table(path, WUSTL_ROLES)
