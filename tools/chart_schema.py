"""Keeps the chart's schema of `config` equal to `cluster.config`. Knows what the chart sets itself; no other value.

The schema of all other values is written by hand in the same file, `deploy/helm/argosy/values.schema.json`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from cluster.config import ArgosyConfig

SCHEMA = Path(__file__).parents[1] / "deploy" / "helm" / "argosy" / "values.schema.json"

SET_BY_THE_CHART = {
    "ArgosyConfig": ("model_store", "regions", "peers", "metrics", "discovery"),
    "RouterConfig": ("http_listen", "listen", "quota_listen", "tls"),
    "ControllerConfig": ("listen",),
    "RayConfig": ("address", "num_cpus"),
    "LedgerConfig": ("store", "path", "url"),
}
"""Keys that users say elsewhere in the values, or not at all: addresses, paths, secrets."""


def config_definitions() -> dict[str, Any]:
    """Draft-07 definitions of `ArgosyConfig` and its sections, as far as users write them under `config`.

    Raises:
        KeyError: `SET_BY_THE_CHART` names a key that the configuration does not have.
    """
    schema = ArgosyConfig.model_json_schema(ref_template="#/definitions/{model}")
    definitions: dict[str, Any] = schema.pop("$defs")
    definitions["ArgosyConfig"] = schema
    for name, keys in SET_BY_THE_CHART.items():
        for key in keys:
            del definitions[name]["properties"][key]
    used = _reachable(["ArgosyConfig", "RegionSection"], definitions)
    # What a key means and what it is by default is said in one place, which is not this one.
    return {name: _bare(definitions[name]) for name in sorted(used)}


def _reachable(names: list[str], definitions: dict[str, Any]) -> set[str]:
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        found.add(name)
        references = {other for other in definitions if f'"#/definitions/{other}"' in json.dumps(definitions[name])}
        waiting.extend(references - found)
    return found


def _bare(node: Any, *, of_properties: bool = False) -> Any:
    """Without texts and defaults; keys of `properties` are names of settings, whatever they are called."""
    if isinstance(node, list):
        return [_bare(item) for item in node]
    if not isinstance(node, dict):
        return node
    return {
        key: _bare(value, of_properties=key == "properties" and not of_properties)
        for key, value in node.items()
        if of_properties or key not in ("default", "description", "title")
    }


def main(arguments: list[str]) -> int:
    """Rewrite the file; with `--check` only say whether that would change it."""
    written = SCHEMA.read_text()
    fresh = (
        json.dumps({**json.loads(written), "definitions": config_definitions()}, indent=2, ensure_ascii=False) + "\n"
    )
    if fresh == written:
        return 0
    if "--check" in arguments:
        print("the chart's schema is stale: run `make chart`", file=sys.stderr)
        return 1
    SCHEMA.write_text(fresh)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
