"""Which routers are taken for dead: processes that are gone, and those whose beats stand still."""

from __future__ import annotations

import subprocess
import sys

from cluster.ledger.holders import Watch, is_known_dead, process_name

OTHER_MACHINE = "boot/pid:[1]/1/1"


def test_a_process_is_known_by_more_than_its_number() -> None:
    own = process_name()
    assert not is_known_dead(own)
    machine, pid, started = own.rsplit("/", 2)
    assert is_known_dead(f"{machine}/{pid}/{int(started) - 1}"), "the number was used again"
    assert not is_known_dead(OTHER_MACHINE), "nothing is known of other machines"


def test_a_killed_process_is_dead_before_its_parent_notices() -> None:
    code = "import time; from cluster.ledger.holders import *; print(process_name(), flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        name = process.stdout.readline().strip()
        assert not is_known_dead(name)
        process.kill()
        process.stdout.read()  # its end closes when the process is gone, reaped or not
        while not is_known_dead(name):
            pass
        assert process.returncode is None, "nobody has reaped it"


def test_beats_that_stand_still_for_a_lease_are_death() -> None:
    watch = Watch(lease_seconds=3)
    assert watch.dead([("r", OTHER_MACHINE, 1)], 0) == []
    assert watch.dead([("r", OTHER_MACHINE, 1)], 2.9) == []
    assert watch.dead([("r", OTHER_MACHINE, 2)], 3.0) == [], "it moved"
    assert watch.dead([("r", OTHER_MACHINE, 2)], 5.9) == []
    assert watch.dead([("r", OTHER_MACHINE, 2)], 6.0) == ["r"]
    assert watch.dead([("s", OTHER_MACHINE, 9)], 100.0) == [], "one that is seen first is not judged"
