"""Checks recorded histories for isolation anomalies: `check_history` is the entry point."""

from occamdb.stress.checker.check import check_history
from occamdb.stress.checker.report import Anomaly, Report

__all__ = ["Anomaly", "Report", "check_history"]
