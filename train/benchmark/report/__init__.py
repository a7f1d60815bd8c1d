"""The report of a benchmark: table, learning curves and an explorer of captions, in one HTML file."""

from train.benchmark.report.page import Report, write_report

__all__ = ["Report", "write_report"]
