"""Credentials for the KFP API, as a server receives them."""

import json
from http.server import BaseHTTPRequestHandler

import pytest
from kfp.client import auth

from arcloop.errors import ArcloopError, ConfigError
from arcloop.kfp.server.client import KfpClient

from .loopback import serving


@pytest.fixture
def connect(recorder, cluster_settings):
    def connect(**settings):
        update = {"host": recorder.url, "timeout_s": 5, **settings}
        return KfpClient(cluster_settings.model_copy(update=update))

    return connect


def sent(recorder):
    """The credentials of the last request."""
    headers = {name.lower(): value for name, value in recorder.headers[-1].items()}
    return headers.get("authorization"), headers.get("cookie")


def test_a_token_of_the_environment(connect, recorder, monkeypatch):
    monkeypatch.setenv("TOKEN", "s3cret\n")
    connect(token_env="TOKEN").pipeline()
    assert sent(recorder) == ("Bearer s3cret", None)


def test_a_token_that_kubernetes_renews(connect, recorder, tmp_path):
    file = tmp_path / "token"
    file.write_text("first\n")
    client = connect(token_file=str(file))
    client.pipeline()
    assert sent(recorder) == ("Bearer first", None)
    file.write_text("second")
    client.pipeline()
    assert sent(recorder) == ("Bearer second", None)
    recorder.workflows["r"] = [{"name": "w", "nodes": {}}]
    client.read("/apis/v1beta1/runs/r")
    assert sent(recorder) == ("Bearer second", None)


def test_the_session_cookie_of_dex(connect, recorder, monkeypatch):
    monkeypatch.setenv("COOKIE", "oauth2_proxy_kubeflow=s3cret")
    connect(cookie_env="COOKIE").pipeline()
    assert sent(recorder) == (None, "oauth2_proxy_kubeflow=s3cret")


@pytest.fixture
def token_service(tmp_path, monkeypatch):
    """Google's token service on loopback, and the saved log in of a user; yields its requests."""
    requests, answers = [], []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_POST(self):
            requests.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(answers.pop(0) if answers else 200)
            self.end_headers()
            self.wfile.write(json.dumps({"id_token": f"token-{len(requests)}"}).encode())

    saved = dict.fromkeys(("other_client_id", "other_client_secret", "refresh_token"), "s3cret")
    (tmp_path / "credentials.json").write_text(json.dumps({"client": saved}))
    monkeypatch.setattr(auth, "LOCAL_KFP_CREDENTIAL", str(tmp_path / "credentials.json"))
    with serving(Handler) as url:
        monkeypatch.setattr(auth, "OAUTH_TOKEN_URI", url)
        yield requests, answers


def test_identity_aware_proxy(connect, recorder, token_service, monkeypatch):
    requests, answers = token_service
    client = connect(iap_client_id="client")
    client.pipeline()
    client.pipeline()
    assert sent(recorder) == ("Bearer token-1", None)
    assert len(requests) == 1
    monkeypatch.setattr("arcloop.kfp.server.credentials._IAP_SECONDS", 0.0)
    client = connect(iap_client_id="client")
    client.pipeline()
    client.pipeline()
    assert sent(recorder) == ("Bearer token-4", None)
    answers.append(401)
    with pytest.raises(
        ArcloopError, match="no token for Identity-Aware Proxy: ValueError"
    ) as error:
        client.pipeline()
    assert "s3cret" not in str(error.value)


@pytest.mark.parametrize("secret", ["", "a\nb", "schlüssel", "s3cret"])
def test_a_wrong_secret_is_not_printed(connect, recorder, monkeypatch, secret, tmp_path):
    monkeypatch.setenv("COOKIE", secret)
    with pytest.raises(ConfigError, match="COOKIE contains no cookie") as error:
        connect(cookie_env="COOKIE")
    assert secret not in str(error.value).replace("cookie", "") or not secret
    if secret != "s3cret":
        with pytest.raises(ConfigError, match="COOKIE contains no token"):
            connect(token_env="COOKIE")
    assert not recorder.calls


def test_a_token_file_that_cannot_be_read(connect, tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        connect(token_file=str(tmp_path / "missing"))
    (tmp_path / "empty").touch()
    with pytest.raises(ConfigError, match="contains no token"):
        connect(token_file=str(tmp_path / "empty"))
    file = tmp_path / "token"
    file.write_text("first")
    client = connect(token_file=str(file))
    file.unlink()
    with pytest.raises(ConfigError, match="cannot be read") as error:
        client.pipeline()
    assert f"cluster.token_file={file}" in str(error.value)


def test_two_kinds_of_credentials_exclude_each_other(connect):
    with pytest.raises(ConfigError, match=r"cluster.token_env, cluster.cookie_env exclude"):
        connect(token_env="A", cookie_env="B")


def test_a_gateway_that_asks_for_a_log_in(connect, recorder):
    recorder.refusals["GET", "pipelines"] = (302, {})
    with pytest.raises(ArcloopError, match=r"asks for a log in \(302\)") as error:
        connect().pipeline()
    assert "cluster.cookie_env" in str(error.value)
    recorder.refusals.clear()
    recorder.page = "<html>Log in</html>"
    with pytest.raises(ArcloopError, match="asks for a log in: it answered with text/html"):
        connect().pipeline()


def test_https_to_a_server_without_it(connect, recorder):
    with pytest.raises(ArcloopError, match="cannot be reached: SSLError"):
        connect(host=recorder.url.replace("http:", "https:")).pipeline()
