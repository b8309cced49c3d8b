"""Dashboards, alert rules and the table of metrics, all from one source: `python -m tools.monitoring [--check]`."""
