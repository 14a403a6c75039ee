"""Upload through huggingface_hub's own API, to a hub on this machine."""

from __future__ import annotations

import base64
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from cli.hub import serving
from transformers import AutoModelForSequenceClassification

from kd_prune.errors import ConfigError
from kd_prune.export.hub import push
from kd_prune.export.packed_folder import save_packed

from .models import same_bits, sparse_model, tokenizer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Handler(BaseHTTPRequestHandler):
    """What creating a repository and one commit without large files need."""

    protocol_version = "HTTP/1.1"
    repositories: dict
    status = 200

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if self.status != 200:
            self.answer({"error": "no"}, self.status)
        elif self.path == "/api/repos/create":
            given = json.loads(body)
            name = f"{given.get('organization')}/{given['name']}"
            self.repositories[name] = {"visibility": given.get("visibility"), "files": {}}
            self.answer({"url": f"http://{self.headers['Host']}/{name}", "name": name})
        elif self.path.endswith("/preupload/main"):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self.answer({"files": files})
        elif found := re.fullmatch(r"/api/models/(.+)/commit/main", self.path):
            lines = [json.loads(line) for line in body.splitlines()]
            for line in lines:
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.repositories[found[1]]["files"][line["value"]["path"]] = content
            self.answer(
                {
                    "commitUrl": f"http://{self.headers['Host']}/{found[1]}/commit/{COMMIT}",
                    "commitOid": COMMIT,
                }
            )
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        else:
            self.answer({}, 404)

    def do_GET(self):
        self.answer({"id": "me/small", "sha": COMMIT, "siblings": [], "private": False, "tags": []})

    def answer(self, content, status=200):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        """Silence."""


@pytest.fixture
def hub(monkeypatch):
    handler = type("Bound", (Handler,), {"repositories": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(
        "huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}"
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    yield handler
    server.shutdown()
    server.server_close()


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "student-packed"
    path.mkdir()
    (path / "README.md").write_text("---\nlibrary_name: transformers\n---\n\n# small\n")
    (path / "packed.safetensors").write_bytes(bytes(range(256)))
    return path


def test_push_uploads_every_file_of_the_folder(hub, folder):
    url = push(folder, "me/small", private=True)
    assert url.endswith("/me/small")
    uploaded = hub.repositories["me/small"]
    assert uploaded["visibility"] == "private"
    assert uploaded["files"] == {file.name: file.read_bytes() for file in folder.iterdir()}


def test_packed_folder_is_read_from_the_hub(tmp_path, monkeypatch):
    root = tmp_path / "models" / "me" / "small"
    tokenizer().save_pretrained(root)
    save_packed(sparse_model(), root)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("transformers.utils.hub.is_offline_mode", lambda: False)
    with serving(tmp_path) as (address, asked):
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        model = AutoModelForSequenceClassification.from_pretrained(
            "me/small", cache_dir=tmp_path / "cache"
        )
    expected = sparse_model().state_dict()
    assert all(same_bits(model.state_dict()[name], expected[name]) for name in expected)
    assert any(path.endswith("packed.safetensors") for path in asked)


def test_push_that_is_refused_is_one_line_that_names_the_folder(hub, folder, monkeypatch):
    monkeypatch.setattr(hub, "status", 403)
    with pytest.raises(ConfigError) as error:
        push(folder, "me/small")
    assert str(error.value).startswith("push_to_hub=me/small: the Hub did not take it (")
    assert str(error.value).endswith(f"the folder is there: {folder}")
    assert "\n" not in str(error.value)


def test_push_to_what_is_no_id_is_refused(folder):
    with pytest.raises(ConfigError, match="push_to_hub=a/b/c"):
        push(folder, "a/b/c")


def test_push_to_a_server_that_is_not_there_is_refused(folder, monkeypatch):
    def broken(*given, **settings):
        raise ConnectionLost("no route to host")

    class ConnectionLost(Exception):  # noqa: N818  as the libraries below huggingface_hub raise
        pass

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", broken)
    with pytest.raises(
        ConfigError, match=r"did not take it .no route to host.; the folder is there"
    ):
        push(folder, "me/small")


def test_push_without_a_network_is_refused(folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="the Hub did not take it"):
        push(folder, "me/small")
