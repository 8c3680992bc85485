"""The evaluate stage: score encoders on suites of data."""
