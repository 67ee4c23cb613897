"""Differential privacy mechanisms."""

from fedjax_health.config.common import Custom

Mechanism = Custom
