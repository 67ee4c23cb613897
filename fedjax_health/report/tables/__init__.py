"""The rows of every table, as text; what they look like is the template's business."""

from fedjax_health.report.tables.about import (
    environment,
    facts,
    leak_checks,
    leak_columns,
)
from fedjax_health.report.tables.form import Card, Table
from fedjax_health.report.tables.groups import (
    CLIENTS,
    alarm_counts,
    attacks,
    clients,
    features,
    patterns,
    spread,
)
from fedjax_health.report.tables.metrics import (
    backdoor,
    cards,
    confusion,
    delays,
    metrics,
)
from fedjax_health.report.tables.privacy import (
    communication,
    guarantees,
    secure_sums,
)
from fedjax_health.report.tables.wire import borders, read_back

__all__ = [
    "CLIENTS",
    "Card",
    "Table",
    "alarm_counts",
    "attacks",
    "backdoor",
    "borders",
    "cards",
    "clients",
    "communication",
    "confusion",
    "delays",
    "environment",
    "facts",
    "features",
    "guarantees",
    "leak_checks",
    "leak_columns",
    "metrics",
    "patterns",
    "read_back",
    "secure_sums",
    "spread",
]
