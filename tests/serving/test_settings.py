import dataclasses

import pytest
import yaml

from arcloop.errors import ConfigError
from arcloop.serving.servers.server_config import model_config, server_properties
from arcloop.serving.settings import read_request, settings_of


def test_the_name_is_that_of_the_run(small_run):
    request = read_request([f"run_dir={small_run}"])
    assert request.settings.name == "synthetic"
    assert request.run_dir == small_run
    assert request.force is False


def test_every_value_that_does_not_fit_is_named_at_once():
    with pytest.raises(ConfigError) as error:
        read_request(["deploy.keep=1", "deploy.batch_size=0", "deploy.host=5", "deploy.server=x"])
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
        ("deploy.metrics_port=8082", "deploy.metrics_port=8082 is deploy.inference_port already"),
        ("deploy.default_k=101", "must not exceed deploy.max_k=100"),
        ("deploy.inference_port=70000", "must be less than or equal to 65535"),
        ("deploy.kep=2", "did you mean deploy.keep"),
        ("+deploy.kep=2", "there is no key deploy.kep"),
        ("deploy=nowhere", "there is no deploy=nowhere"),
    ],
)
def test_a_wrong_value_is_refused(override, message):
    with pytest.raises(ConfigError, match=r"(?s)" + __import__("re").escape(message)):
        read_request([override])


def test_a_missing_key_is_named():
    with pytest.raises(ConfigError, match=r"deploy\.host is required"):
        settings_of({"name": "a"})


def parsed(text):
    return dict(line.split("=", 1) for line in text.splitlines())


def test_what_the_server_is_told(settings, tmp_path):
    archive = tmp_path / "store" / "a.mar"
    told = parsed(server_properties(dataclasses.replace(settings, host="0.0.0.0"), archive))
    assert told["inference_address"] == f"http://0.0.0.0:{settings.inference_port}"
    for key in ("management_address", "metrics_address"):
        assert told[key].startswith("http://127.0.0.1:")
    for key in ("grpc_inference_address", "grpc_management_address"):
        assert told[key] == "127.0.0.1"
    for key in ("enable_model_api", "use_env_allowed_urls", "enable_envvars_config",
                "install_py_dep_per_model"):  # fmt: skip
        assert told[key] == "false"
    assert told["load_models"] == "synthetic=a.mar"
    assert told["allowed_urls"] == f"file://{tmp_path}/store/.*"
    assert told["max_request_size"] == str(settings.max_request_bytes)


def test_a_store_whose_path_the_format_cannot_hold(settings, tmp_path):
    with pytest.raises(ConfigError, match="cannot hold"):
        server_properties(settings, tmp_path / "new\nload_models=evil.mar" / "a.mar")


def test_what_the_model_is_told(settings):
    told = yaml.safe_load(model_config(dataclasses.replace(settings, workers=2, max_k=7)))
    assert told["minWorkers"] == told["maxWorkers"] == told["handler"]["workers"] == 2
    assert told["batchSize"] == settings.batch_size
    assert told["maxBatchDelay"] == settings.max_batch_delay_ms
    assert told["handler"]["max_k"] == 7
