"""A page that shows what a run or an evaluation found; it reads their records alone."""

from fedjax_health.report.audit import write_audit
from fedjax_health.report.write import write_report

__all__ = ["write_audit", "write_report"]
