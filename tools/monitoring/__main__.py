"""Writes every generated file, or, with --check, says which are stale."""

from __future__ import annotations

import sys
from pathlib import Path

from tools.monitoring.panels import DASHBOARDS
from tools.monitoring.render import dashboard_json, metrics_markdown, rules_yaml

ROOT = Path(__file__).parents[2]
CHART = Path("deploy/helm/argosy/files")


def files() -> dict[Path, str]:
    """Each file's path below the repository's root, and what is in it."""
    rendered = {CHART / "dashboards" / f"{board.uid}.json": dashboard_json(board) for board in DASHBOARDS}
    return {**rendered, CHART / "alerts" / "argosy.yaml": rules_yaml(), Path("docs/metrics.md"): metrics_markdown()}


def main(arguments: list[str]) -> int:
    stale = []
    for path, text in files().items():
        target = ROOT / path
        if target.is_file() and target.read_text() == text:
            continue
        stale.append(path)
        if "--check" not in arguments:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
    if stale and "--check" in arguments:
        print(f"stale: {', '.join(map(str, stale))}; run `python -m tools.monitoring`")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
