"""Turns the source into files: Grafana's JSON, Prometheus' rules, a Markdown table. Knows formats; decides nothing."""

from __future__ import annotations

import json
from typing import Any

import yaml

from cluster.telemetry.catalogue import CATALOGUE
from tools.monitoring.alerts import ALERTS, RECORDS, RUNBOOKS
from tools.monitoring.panels import Dashboard, Panel

SOURCE = "Written by `python -m tools.monitoring` from tools/monitoring; change that."
_COLUMNS, _WIDTH, _HEIGHT = 3, 8, 8
_DATA_SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def dashboard_json(dashboard: Dashboard) -> str:
    """A dashboard as Grafana imports it."""
    variables: list[dict[str, Any]] = [{"name": "datasource", "type": "datasource", "query": "prometheus"}]
    for name, query in dashboard.variables:
        variables.append(
            {
                "name": name,
                "type": "query",
                "datasource": _DATA_SOURCE,
                "query": query,
                "refresh": 2,
                "includeAll": True,
                "multi": True,
                "allValue": ".*",
                "current": {"text": "All", "value": "$__all"},
            }
        )
    document = {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": SOURCE,
        "tags": ["argosy"],
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": variables},
        "panels": [_panel(number, panel) for number, panel in enumerate(dashboard.panels)],
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def rules_yaml() -> str:
    """Recording and alerting rules as Prometheus reads them."""
    alerts = [
        {
            "alert": alert.name,
            "expr": alert.expression,
            "for": f"{alert.minutes}m",
            "labels": {"severity": alert.severity},
            "annotations": {"summary": alert.summary, "runbook": f"{RUNBOOKS}#{alert.name.lower()}"},
        }
        for alert in ALERTS
    ]
    records = [{"record": record.name, "expr": record.expression} for record in RECORDS]
    groups = [{"name": "argosy-derived", "rules": records}, {"name": "argosy-alerts", "rules": alerts}]
    return f"# {SOURCE}\n" + yaml.safe_dump({"groups": groups}, sort_keys=False, width=120, allow_unicode=True)


def metrics_markdown() -> str:
    """docs/metrics.md."""
    parts = [
        "# Metrics",
        "",
        f"{SOURCE}",
        "",
        "What to look at when something is slow: [observability](observability.md).",
    ]
    for process, metrics in CATALOGUE.items():
        parts += ["", f"## {process.capitalize()}", "", "| metric | kind | labels | means |", "|---|---|---|---|"]
        for metric in metrics:
            labels = ", ".join(f"`{label}`" for label in metric.labels) or "–"
            parts.append(f"| `{metric.sample}` | {metric.kind} | {labels} | {metric.help} |")
    return "\n".join(parts) + "\n"


def _panel(number: int, panel: Panel) -> dict[str, Any]:
    row, column = divmod(number, _COLUMNS)
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.help,
        "datasource": _DATA_SOURCE,
        "gridPos": {"x": column * _WIDTH, "y": row * _HEIGHT, "w": _WIDTH, "h": _HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + index), "expr": query, "legendFormat": legend, "datasource": _DATA_SOURCE}
            for index, (query, legend) in enumerate(panel.queries)
        ],
    }
