"""What the command line shows a router to be let in. Knows the environment; no files of servers."""

from __future__ import annotations

import os

API_KEY_VARIABLE = "ARGOSY_API_KEY"


def credentials() -> tuple[tuple[str, str], ...]:
    """Metadata of a call: the key in $ARGOSY_API_KEY, or nothing."""
    key = os.environ.get(API_KEY_VARIABLE, "").strip()
    return (("authorization", f"Bearer {key}"),) if key else ()
