"""A router is told of a model that its configuration does not have."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from argosy.internal.v1 import control_pb2
from cluster.config import ModelSection, parse_config
from cluster.ids import ModelName, RegionId
from cluster.router.catalogue import Catalogue
from cluster.router.fleet import ModelTraffic
from cluster.router.following import _learn_models

pytestmark = pytest.mark.model


def wanted(name: str, path: Path, **more: object) -> control_pb2.WantedModel:
    section = ModelSection.model_validate({"name": name, "path": path, **more})
    return control_pb2.WantedModel(name=name, section=section.model_dump_json())


def test_a_new_model_is_served_and_one_that_cannot_be_read_is_left_out_once(
    smollm2_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        config = parse_config({"models": [{"name": "first", "path": str(smollm2_dir)}]})
        catalogue = Catalogue.load(config)
        traffic: dict[ModelName, ModelTraffic] = {}
        told = [
            wanted("first", tmp_path),
            wanted("second", smollm2_dir, context_length=128, regions=["west"]),
            wanted("absent", tmp_path),
            control_pb2.WantedModel(name="odd", section='{"name": "odd", "colour": 1}'),
        ]
        try:
            for _ in range(2):
                _learn_models(catalogue, config, traffic, told)
            assert list(catalogue) == ["first", "second"]
            assert catalogue["second"].limits.context_length == 128
            assert (await catalogue["second"].tokenizer()).encode("Hi")
            assert traffic[ModelName("second")].regions == {RegionId("west")}
            assert list(traffic) == ["second"]
            assert catalogue.refused == {"absent", "odd"}
        finally:
            catalogue.close()

    asyncio.run(scenario())
    refusals = [record.message for record in caplog.records if "cannot be served" in record.message]
    assert len(refusals) == 2
