"""Who leaves `identity.mode` at auto serves strangers on no door that they can reach."""

from __future__ import annotations

import pytest

from cluster.config import parse_config
from cluster.errors import ConfigurationError


@pytest.mark.parametrize("door", ["listen", "http_listen", "console_listen"])
def test_a_door_that_others_can_reach_wants_a_word_on_identity(door: str) -> None:
    config = parse_config({"models": [{"name": "m"}], "router": {door: "0.0.0.0:7000"}})
    with pytest.raises(ConfigurationError, match=f"router.{door} 0.0.0.0:7000 can be reached by others"):
        assert config.serves_anonymous


def test_on_loopback_alone_strangers_are_served() -> None:
    doors = {"listen": "127.0.0.1:1", "http_listen": "[::1]:2", "console_listen": "localhost:3"}
    assert parse_config({"models": [{"name": "m"}], "router": doors}).serves_anonymous
