"""Published weights are asked for, fetched and checked, against a server on this machine."""

import hashlib
import re
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from typer.testing import CliRunner

from simflow_plugin import fetching, published_weights
from simflow_plugin.cli.app import app
from simflow_plugin.errors import WeightsError
from simflow_plugin.published_weights import PUBLISHED, FileAtAddress, FileOnHub, fetch_command

CONTENT = b"weights " * 5000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
NAME = f"network-{SHA256[:8]}.pth"


class Server:
    """Answers every path by `status` and `body`, promising the whole `CONTENT`; counts what was asked."""

    def __init__(self) -> None:
        self.status, self.body, self.asked = 200, CONTENT, list[str]()
        self.before_body: Callable[[], object] = lambda: None
        answers = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self._begin()

            def do_GET(self) -> None:
                self._begin()
                if answers.status == 200:
                    answers.before_body()
                    self.wfile.write(answers.body)

            def _begin(self) -> None:
                answers.asked.append(f"{self.command} {self.path}")
                self.send_response(answers.status)
                self.send_header("Content-Length", str(len(CONTENT) if answers.status == 200 else 0))
                self.send_header("ETag", f'"{SHA256}"')
                self.send_header("X-Repo-Commit", "0" * 40)
                self.end_headers()
                self.close_connection = True

            def log_message(self, *of: Any) -> None:
                """Print nothing."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_address[1]}"


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server()
    thread = Thread(target=one.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield one
    one.http.shutdown()
    thread.join()
    one.http.server_close()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: Any) -> Path:
    import torch

    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    return tmp_path / "checkpoints"


def entry(server: Server) -> FileAtAddress:
    return FileAtAddress(f"{server.address}/{NAME}", "a test")


def test_source_size_and_checksum_are_shown_before_the_first_byte(server, cache, monkeypatch):
    monkeypatch.setitem(published_weights.PUBLISHED, "small", entry(server))
    answer = CliRunner().invoke(app, ["fetch", "small", "--dry-run"])
    assert answer.exit_code == 0, answer.output
    assert f"{server.address}/{NAME}, {len(CONTENT) / 1e6:.1f} MB, SHA-256 {SHA256[:8]}..." in answer.output
    assert server.asked == [f"HEAD /{NAME}"]
    assert not cache.exists()


def test_file_arrives_whole_and_is_not_fetched_again(server, cache):
    offer = fetching.ask(entry(server))
    path = fetching.fetch(offer)
    assert path == cache / NAME
    assert path.read_bytes() == CONTENT
    asked = len(server.asked)
    assert fetching.fetch(offer) == path
    assert len(server.asked) == asked


@pytest.mark.parametrize("body", [CONTENT[:1000], b"other!! " * 5000, b""], ids=["cut off", "other", "empty"])
def test_what_is_cut_off_or_other_content_is_refused_and_leaves_nothing(server, cache, body):
    offer = fetching.ask(entry(server))
    server.body = body
    with pytest.raises(WeightsError, match=r"(cut off|another file).*Run the command again"):
        fetching.fetch(offer)
    assert list(cache.iterdir()) == []
    server.body = CONTENT
    assert fetching.fetch(offer).read_bytes() == CONTENT


def test_damaged_file_in_the_cache_is_replaced(server, cache):
    cache.mkdir(parents=True)
    (cache / NAME).write_bytes(CONTENT[:-1])
    assert fetching.fetch(fetching.ask(entry(server))).read_bytes() == CONTENT


def test_missing_file_and_silent_server_are_named(server, cache):
    server.status = 404
    with pytest.raises(WeightsError, match=f"{NAME}: cannot be reached: .*404"):
        fetching.ask(entry(server))
    with pytest.raises(WeightsError, match="cannot be reached"):
        fetching.ask(FileAtAddress("http://127.0.0.1:9/network-00000000.pth", "a test"))


def test_hub_states_the_checksum_that_the_file_is_compared_with(server, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    wanted = FileOnHub("vit_base_patch14_dinov2.lvd142m", "a test")
    offer = fetching.ask(wanted, server.address)
    assert (offer.size, offer.sha256) == (len(CONTENT), SHA256)
    server.body = CONTENT[::-1]
    with pytest.raises(WeightsError, match=f"the Hub states {SHA256}"):
        fetching._fetch_from_hub(offer, server.address)


def test_every_file_at_an_address_has_its_checksum_in_its_name():
    names = [one.file_name for one in PUBLISHED.values() if isinstance(one, FileAtAddress)]
    assert names
    assert all(re.search(r"-[0-9a-f]{8}\.pth$", name) for name in names)


def test_messages_about_missing_weights_name_the_command(cache):
    from simflow_plugin.evaluation.extractors import find_extractor_weights
    from simflow_plugin.losses.lpips_loss import find_backbone
    from simflow_plugin.losses.options import LPIPSOptions

    with pytest.raises(WeightsError, match="`simflow fetch inception`"):
        find_extractor_weights("inception", None)
    with pytest.raises(WeightsError, match="`simflow fetch lpips-vgg`"):
        find_backbone(LPIPSOptions())
    assert fetch_command("vit_base_patch14_dinov2.lvd142m") == " `simflow fetch dinov2-b` fetches them."
    assert fetch_command("a_model_of_somebody") == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["incepton"], "Did you mean `inception`?"),
        (["inception", "--list"], "--list prints all names"),
        ([], "`simflow fetch --list` prints them"),
    ],
)
def test_names_that_cannot_be_fetched_are_refused(arguments, message):
    answer = CliRunner().invoke(app, ["fetch", *arguments])
    assert answer.exit_code == 2
    assert message in " ".join(answer.output.split())
    assert "lpips-vgg" in CliRunner().invoke(app, ["fetch", "--list"]).output


def test_weights_that_are_there_need_no_network(server, cache, monkeypatch):
    monkeypatch.setitem(published_weights.PUBLISHED, "small", entry(server))
    cache.mkdir(parents=True)
    (cache / NAME).write_bytes(CONTENT)
    answer = CliRunner().invoke(app, ["fetch", "small"])
    assert answer.exit_code == 0, answer.output
    assert f"small: {cache / NAME}" in answer.output
    assert server.asked == []


def test_weights_in_the_cache_of_the_hub_are_known_by_the_name_of_their_content(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    wanted = FileOnHub("vit_base_patch14_dinov2.lvd142m", "a test")
    folder = tmp_path / "models--timm--vit_base_patch14_dinov2.lvd142m"
    for inner in ("refs", "blobs", "snapshots/0"):
        (folder / inner).mkdir(parents=True)
    (folder / "refs" / "main").write_text("0")
    blob, link = folder / "blobs" / SHA256, folder / "snapshots" / "0" / "model.safetensors"
    link.symlink_to(blob)
    blob.write_bytes(CONTENT[:-1])
    assert fetching.find(wanted) is None
    blob.write_bytes(CONTENT)
    assert fetching.find(wanted) == link


def test_server_that_falls_silent_is_given_up(server, cache, monkeypatch):
    offer, silence = fetching.ask(entry(server)), Event()
    server.before_body = lambda: silence.wait(20)
    monkeypatch.setattr(fetching, "SECONDS", 0.2)
    with pytest.raises(WeightsError, match="cannot be fetched to .*timed out"):
        fetching.fetch(offer)
    silence.set()
    assert list(cache.iterdir()) == []
