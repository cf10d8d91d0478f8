import dataclasses
import re

import pytest
import yaml

from arcloop.errors import ConfigError
from arcloop.serving.deploy import build_settings, parse_arguments
from arcloop.serving.servers.config_files import model_config, server_configs


def test_the_default_name_is_that_of_the_run(small_run):
    request = parse_arguments([f"run_dir={small_run}"])
    assert request.settings.name == "synthetic"
    assert request.run_dir == small_run
    assert request.force is False


def test_all_invalid_values_are_reported_at_once():
    with pytest.raises(ConfigError) as error:
        parse_arguments(
            ["deploy.keep=1", "deploy.batch_size=0", "deploy.host=5", "deploy.server=x"]
        )
    for fault in (
        "deploy.keep=1 must be greater than or equal to 2",
        "deploy.batch_size=0",
        "deploy.server='x'",
    ):
        assert fault in str(error.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("deploy.host=localhost", "must be an IP address"),
        ("deploy.name=a/b", "letters, digits"),
        (
            "deploy.metrics_port=8082",
            "deploy.metrics_port=8082 is also the value of deploy.inference_port",
        ),
        ("deploy.default_k=101", "must not exceed deploy.max_k=100"),
        ("deploy.inference_port=70000", "must be less than or equal to 65535"),
        ("deploy.kep=2", "did you mean deploy.keep"),
        ("+deploy.kep=2", "there is no key deploy.kep"),
        ("deploy=nowhere", "there is no deploy=nowhere"),
    ],
)
def test_an_invalid_value_is_rejected(override, message):
    with pytest.raises(ConfigError, match=r"(?s)" + re.escape(message)):
        parse_arguments([override])


def test_a_missing_key_is_reported():
    with pytest.raises(ConfigError, match=r"deploy\.host is required"):
        build_settings({"name": "a"})


def parsed(text):
    return dict(line.split("=", 1) for line in text.splitlines() if not line.startswith("#"))


def test_torchserve_properties(settings, tmp_path):
    archive = tmp_path / "store" / "a.mar"
    configs = server_configs(dataclasses.replace(settings, host="0.0.0.0"), archive)
    values = parsed(configs["config.properties"])
    assert values["inference_address"] == f"http://0.0.0.0:{settings.inference_port}"
    for key in ("management_address", "metrics_address"):
        assert values[key].startswith("http://127.0.0.1:")
    for key in ("grpc_inference_address", "grpc_management_address"):
        assert values[key] == "127.0.0.1"
    for key in ("enable_model_api", "use_env_allowed_urls", "enable_envvars_config",
                "install_py_dep_per_model"):  # fmt: skip
        assert values[key] == "false"
    assert values["load_models"] == "synthetic=a.mar"
    assert values["allowed_urls"] == f"file://{tmp_path}/store/.*"
    assert values["max_request_size"] == str(settings.max_request_bytes)


def test_a_store_path_with_a_line_break_is_rejected(settings, tmp_path):
    with pytest.raises(ConfigError, match="cannot contain"):
        server_configs(settings, tmp_path / "new\nload_models=evil.mar" / "a.mar")


def test_model_config(settings):
    values = yaml.safe_load(model_config(dataclasses.replace(settings, workers=2, max_k=7)))
    assert values["minWorkers"] == values["maxWorkers"] == values["handler"]["workers"] == 2
    assert values["batchSize"] == settings.batch_size
    assert values["maxBatchDelay"] == settings.max_batch_delay_ms
    assert values["handler"]["max_k"] == 7
