"""The operators' page in a real browser: who may look, and what is seen of a region that works and one that is lost."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from argosy.internal.v1 import control_pb2, control_pb2_grpc
from cluster.peers import Identity, Role
from cluster.rpc import private_listen, private_server
from tests.support.fake_replica import FakeReplica, hashed_tokens
from tests.support.guarded_world import guarded_world
from tests.support.region_status import status
from tests.support.router_world import run_async

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1200,900",
)
PATIENCE_SECONDS = 60

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(
        CHROMIUM is None or DRIVER is None, reason="needs Chromium (Debian: chromium and chromium-driver)"
    ),
]


class Controller(control_pb2_grpc.ControlServiceServicer):
    """A controller whose replica works: its counters grow with every reading."""

    def __init__(self) -> None:
        self._scale = itertools.count(1)

    async def GetStatus(  # noqa: N802 (gRPC's name)
        self, request: control_pb2.GetStatusRequest, context: Any
    ) -> control_pb2.GetStatusResponse:
        told = status(scale=next(self._scale), slow=True)
        told.region = "west"
        return told


@asynccontextmanager
async def controller() -> AsyncIterator[str]:
    identity = Identity(Role.CONTROLLER)
    server = private_server(identity)
    control_pb2_grpc.add_ControlServiceServicer_to_server(Controller(), server)  # type: ignore[no-untyped-call]
    address = private_listen(server, "127.0.0.1:0", "controller.listen", identity)
    await server.start()
    yield address
    await server.stop(None)


@contextmanager
def browser(profile: Path) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for argument in (*ARGUMENTS, f"--user-data-dir={profile}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


def look(url: str, key: str, directory: Path) -> None:
    """As an operator does it: refused without a key, then with it."""
    with browser(directory / "profile") as driver:
        wait = WebDriverWait(driver, PATIENCE_SECONDS)
        driver.get(url)
        field = wait.until(lambda page: page.find_element(By.ID, "key"))
        wait.until(lambda page: field.is_displayed())
        field.send_keys("argosy_wrong")
        driver.find_element(By.TAG_NAME, "button").click()
        wait.until(lambda page: "credentials" in page.find_element(By.ID, "refusal").text)
        field.clear()
        field.send_keys(key)
        driver.find_element(By.TAG_NAME, "button").click()
        wait.until(lambda page: "MFU 50 %, MBU 40 %" in text(page))
        assert not field.is_displayed()
        seen = text(driver)
        for part in ("west", "m/0", "ready", "step ", "slow", "75 %", "home", "no controller answers at 127.0.0.1:"):
            assert part in seen, part
        assert "2 region(s), 1 of 1 replicas ready, 3 answers run" in driver.find_element(By.ID, "summary").text
        assert len(driver.find_elements(By.CSS_SELECTOR, "#map circle")) == 2
        assert len(driver.find_elements(By.CSS_SELECTOR, "#map .lost")) == 1
        lines = driver.find_elements(By.CSS_SELECTOR, "figure path")
        wait.until(lambda page: len(page.find_element(By.CSS_SELECTOR, "figure path").get_attribute("d")) > 20)
        assert len(lines) == 4
        driver.save_screenshot(str(directory / "console.png"))
        # The refusals that were asked for are the only complaints.
        assert all("401" in entry["message"] for entry in driver.get_log("browser")), driver.get_log("browser")


def text(page: Any) -> str:
    for _ in range(20):
        try:
            return str(page.find_element(By.TAG_NAME, "main").text)
        except Exception:  # the page was drawn anew meanwhile
            time.sleep(0.05)
    raise AssertionError("the page cannot be read")


@run_async
async def test_an_operator_looks_at_two_regions(smollm2_dir: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    fake = FakeReplica(hashed_tokens(range(1000, 20000)))
    router = {"listen": "127.0.0.1:0", "console_listen": f"127.0.0.1:{port}", "drain_seconds": 5}
    async with controller() as west:
        regions = [{"name": "west", "controllers": [west], "location": [47.6, -122.3]}]
        sections: dict[str, Any] = {"router": router, "regions": regions, "region": "home", "location": [52.3, 4.9]}
        async with guarded_world(smollm2_dir, tmp_path, fake, **sections) as world:
            (_, bearer), *_ = await world.tenant("operators", "admin")
            await asyncio.to_thread(look, f"http://127.0.0.1:{port}", bearer.removeprefix("Bearer "), tmp_path)
