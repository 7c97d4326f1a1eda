"""encode with loader.mode=stream, from a server, by its shipped config."""

import functools
import http.server
import threading

import pytest
from conftest import ROOT, debug

from eeg_gan import cli
from eeg_gan.training import checkpoint


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    assert cli.main(["prepare", debug("prepare"), f"run_dir={folder}", "shard_samples=40"]) == 0
    return folder


@pytest.fixture
def address(prepared):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(prepared)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def words(prepared, address, run_dir, *more):
    config = str(ROOT / "configs" / "encode" / "debug-stream.yaml")
    own = [f"run_dir={run_dir}", f"loader.index={prepared}/index.json", f"loader.stream.url={address}"]
    return ["encode", config, *own, *more]


def test_encode_from_a_server_goes_on_where_it_was(prepared, address, tmp_path):
    for total in (64, 128):
        assert cli.main(words(prepared, address, tmp_path, f"total_images={total}")) == 0
        assert checkpoint.newest(tmp_path).path.name == f"checkpoint-{total:011d}"


def test_a_server_that_is_not_there_is_one_line(prepared, address, tmp_path, capsys):
    gone = ("loader.stream.retries=0", "loader.stream.skip_failed=false")
    assert cli.main(words(prepared, f"{address}/nowhere", tmp_path, *gone)) == 2
    said = capsys.readouterr().err
    assert "the server says 404" in said and "Traceback" not in said


def test_other_stages_refuse_a_stream_and_name_the_key(prepared, tmp_path, capsys):
    given = [f"loader.index={prepared}/index.json", "loader.mode=stream", f"run_dir={tmp_path}"]
    assert cli.main(["audit", debug("audit"), *given]) == 2
    assert "loader.mode=local" in capsys.readouterr().err
