"""Predicted step times of `argosy plan` against the published grid for Llama-70B: error by system, precision and phase.

The grid is a vendor's own estimate (cluster/simulate/data/SOURCES.md), about 14 % fast against measured serving.
"""

from __future__ import annotations

import csv
import gzip
import statistics
from collections import defaultdict
from pathlib import Path

from cluster.control.capacity.devices import KINDS
from cluster.control.capacity.references import read_model
from cluster.control.capacity.step_model import Precision, decode_work, prefill_work, stage_seconds
from model.parallel.dims import ParallelDims
from model.parallel.partition import partition

GRID = Path(__file__).parents[1] / "cluster/simulate/data/llama70b_step_time_grid.csv.gz"


def errors() -> dict[tuple[str, ...], list[float]]:
    """Relative errors by (system, precision, tensor ranks, phase)."""
    config, found = read_model("llama-3.1-70b"), defaultdict(list)
    shards = {tp: partition(config, ParallelDims(tp))[0] for tp in (4, 8)}
    with gzip.open(GRID, "rt") as file:
        for row in csv.DictReader(file):
            precision = Precision(1.0, 1.0, True) if row["precision"] == "fp8" else Precision()
            length, cached = int(row["seq_or_context_tokens"]), int(row["cached_prefix_tokens"])
            is_prefill = row["phase"] == "prefill"
            work = prefill_work(length - cached, cached) if is_prefill else decode_work(int(row["batch"]), length)
            kind = KINDS[row["system"].removesuffix("_sxm").upper()]
            seconds = stage_seconds(config, shards[int(row["tp"])], kind, precision, work)
            key = (row["system"], row["precision"], row["tp"], row["phase"])
            found[key].append(abs(seconds * 1e3 / float(row["latency_ms"]) - 1))
    return found


def main() -> None:
    found = errors()
    print(f"{'system':10} {'precision':10} {'tp':>3} {'phase':8} {'steps':>6} {'median':>8} {'worst':>8}")
    for (system, precision, tp, phase), values in sorted(found.items()):
        middle, worst = statistics.median(values), max(values)
        print(f"{system:10} {precision:10} {tp:>3} {phase:8} {len(values):6} {middle:8.1%} {worst:8.1%}")
    everything = [value for values in found.values() for value in values]
    print(f"median of all {len(everything)}: {statistics.median(everything):.1%}")


if __name__ == "__main__":
    main()
