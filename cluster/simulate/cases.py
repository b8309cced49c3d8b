"""The cases that the documentation shows: traces, windows, loads at which tunings are compared. Values alone."""

from __future__ import annotations

from cluster.simulate.study import Case

WHOLE = 3600.0
"""Longer than either trace."""

_QUICK_SECONDS = {"mooncake": 600.0, "azure": 1500.0}
_LOADS = {("mooncake", False): 4.4, ("mooncake", True): 4.8, ("azure", False): 22.0, ("azure", True): 22.0}
_TITLES = {"mooncake": "Mooncake's conversations", "azure": "Azure's conversations"}


def case(trace: str, *, slack: bool, quick: bool) -> Case:
    """A trace on the default fleet, with replicas of either order of prefills."""
    order = "prefills by slack" if slack else "prefills first come, first served"
    window = f", first {_QUICK_SECONDS[trace] / 60:g} minutes" if quick else ""
    return Case(
        f"{_TITLES[trace]}, {order}{window}",
        trace,
        _QUICK_SECONDS[trace] if quick else WHOLE,
        _LOADS[trace, slack],
        {"slack_order": slack},
    )
