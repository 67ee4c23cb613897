"""Aggregators: how the messages of a cohort become one."""
