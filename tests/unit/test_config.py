"""`argosy.yaml`: what is accepted, and the one line that each mistake gets."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cluster.config import ArgosyConfig, load_config, parse_config
from cluster.errors import ConfigurationError

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))
MINIMAL = {"models": [{"name": "m"}]}


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.name)
def test_examples_are_valid(file: Path) -> None:
    assert load_config(file).models


def test_the_documented_example_shows_every_key() -> None:
    text = (Path(__file__).parents[2] / "examples" / "argosy.yaml").read_text()
    uncommented = text.replace("# ", "")
    for section in ArgosyConfig.model_json_schema()["$defs"].values():
        for key in section["properties"]:
            assert f"{key}:" in uncommented, key
    for key in ArgosyConfig.model_fields:
        assert f"{key}:" in uncommented, key


def test_every_field_is_documented() -> None:
    schema = ArgosyConfig.model_json_schema()
    for section in [schema, *schema["$defs"].values()]:
        for name, field in section["properties"].items():
            assert field.get("description"), name


def test_the_resolved_configuration_reads_back_the_same(tmp_path: Path) -> None:
    config = load_config(EXAMPLES[0])
    file = tmp_path / "resolved.json"
    file.write_text(config.model_dump_json())
    assert load_config(file) == config


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        pytest.param({**MINIMAL, "modles": []}, ["unknown key 'modles'", "known keys here", "models"], id="top"),
        pytest.param({"models": [{"name": "m", "tp": 2}]}, ["'models.0.tp'", "tensor_parallel"], id="model"),
        pytest.param({"models": [{"name": "m", "engine": {"blocks": 1}}]}, ["engine.blocks", "block_size"], id="deep"),
        pytest.param({"models": []}, ["models"], id="no-model"),
        pytest.param({"models": [{"name": "m"}, {"name": "m"}]}, ["'m' occurs more than once"], id="twice"),
        pytest.param({"models": [{"name": "m", "tensor_parallel": 0}]}, ["models.0.tensor_parallel"], id="zero"),
        pytest.param({**MINIMAL, "router": {"listen": "50051"}}, ["router.listen", "host:port"], id="no-host"),
        pytest.param({**MINIMAL, "router": {"listen": "a:99999"}}, ["router.listen", "host:port"], id="port-range"),
        pytest.param(["models"], ["expected a mapping"], id="list"),
    ],
)
def test_each_mistake_is_one_line_that_names_the_key(raw: object, says: list[str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_config(raw, source="argosy.yaml")
    message = str(caught.value)
    assert message.startswith("argosy.yaml: ")
    assert "\n" not in message
    for words in says:
        assert words in message


def test_files_that_are_not_there_or_not_yaml(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no such file"):
        load_config(tmp_path / "absent.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("models: [")
    with pytest.raises(ConfigurationError, match="not valid YAML") as caught:
        load_config(broken)
    assert "\n" not in str(caught.value)


def test_yaml_cannot_build_objects(tmp_path: Path) -> None:
    file = tmp_path / "evil.yaml"
    file.write_text(yaml.dump({"models": 1}) + "x: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(ConfigurationError, match="not valid YAML"):
        load_config(file)
