"""Aggregators: how the messages of a cohort become one."""

from fedjax_health.aggregators.linear import mean

__all__ = ["mean"]
