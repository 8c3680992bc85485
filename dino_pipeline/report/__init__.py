"""The report: a run on one self-contained HTML page, with its pictures."""
