"""What the command line shows a router to be let in. Knows the user's environment and files; no servers."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

API_KEY_VARIABLE = "ARGOSY_API_KEY"


def credentials() -> tuple[tuple[str, str], ...]:
    """Metadata of a call: the key in $ARGOSY_API_KEY, else the token of `argosy login`, else none of both; and the
    trace of which the command is a part, if $TRACEPARENT says so."""
    token = os.environ.get(API_KEY_VARIABLE, "").strip() or _saved_token()
    entries = {"authorization": f"Bearer {token}" if token else "", "traceparent": os.environ.get("TRACEPARENT", "")}
    return tuple((key, value) for key, value in entries.items() if value)


def token_file() -> Path:
    """Where `argosy login` keeps its token: $XDG_CONFIG_HOME/argosy/token.json."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "argosy" / "token.json"


def save_token(token: str, expires_at: float) -> Path:
    """Keep a token until `expires_at`, Unix seconds, for this user alone; where it is."""
    path = token_file()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump({"token": token, "expires_at": expires_at}, file)
    draft.replace(path)
    return path


def _saved_token() -> str:
    try:
        saved = json.loads(token_file().read_text())
        return str(saved["token"]) if saved["expires_at"] > time.time() else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""
