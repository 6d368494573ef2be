from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from medseg.errors import MedsegError
from medseg.simulation.annotator import Annotator
from medseg.simulation.server_process import ServerOptions, ServerProcess


class Handler(BaseHTTPRequestHandler):
    """Answers like a server whose jobs end at once; what it received is kept in `bodies`."""

    replies: dict[str, tuple[int, object]]
    bodies: list[str]

    def _answer(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        self.bodies.append(self.rfile.read(length).decode(errors="replace"))
        key = f"{self.command} {self.path.partition('?')[0]}"
        status, value = self.replies.get(key, (404, {"detail": "not there"}))
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = _answer

    def log_message(self, *_: object) -> None:
        pass


class StubProcess(ServerProcess):
    running = True

    def alive(self) -> bool:
        return self.running


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[type[Handler], Annotator]]:
    handler = type("OwnHandler", (Handler,), {"replies": {}, "bodies": []})
    web = HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=web.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    log = tmp_path / "server.log"
    log.write_text("starting\nRuntimeError: no space left\n")
    process = StubProcess(ServerOptions(tmp_path, tmp_path, log, port=web.server_address[1]))
    annotator = Annotator(process, "caml", {"b": 2, "a": 1})
    yield handler, annotator
    annotator.close()
    web.shutdown()
    web.server_close()
    thread.join()


def test_refusal_names_the_servers_sentence_and_its_log(served: tuple[type[Handler], Annotator]) -> None:
    handler, annotator = served
    handler.replies["POST /activelearning/magic"] = (404, {"detail": "there is no strategy 'magic'"})

    with pytest.raises(MedsegError, match=r"refused strategy magic: there is no strategy 'magic'; .*server\.log$"):
        annotator.next_image("magic")


def test_server_that_is_gone_is_told_with_its_last_words(served: tuple[type[Handler], Annotator]) -> None:
    _, annotator = served
    annotator.client.set_server_url("http://127.0.0.1:9")
    annotator.server.running = False

    with pytest.raises(MedsegError, match=r"the server has ended \(info: .*\) \(RuntimeError: no space left\)"):
        annotator.info()


def test_label_is_sent_with_names_in_order_of_their_values(
    served: tuple[type[Handler], Annotator], tmp_path: Path
) -> None:
    handler, annotator = served
    handler.replies["PUT /datastore/label"] = (200, {"image": "x", "remarks": ["small"]})
    mask = tmp_path / "x.nii.gz"
    mask.write_bytes(b"mask")

    assert annotator.submit("x", mask)["remarks"] == ["small"]
    assert '"label_info": [{"name": "a", "idx": 1}, {"name": "b", "idx": 2}]' in handler.bodies[-1]
    assert '"client_id": "simulated-annotator"' in handler.bodies[-1]


def test_no_image_left_is_an_empty_answer(served: tuple[type[Handler], Annotator]) -> None:
    handler, annotator = served
    handler.replies["POST /activelearning/random"] = (200, {})

    assert annotator.next_image("random") == {}


def test_training_returns_the_gates_decision(served: tuple[type[Handler], Annotator]) -> None:
    handler, annotator = served
    decision = {"published": True, "version": 2, "labelled": 4}
    handler.replies["POST /train/caml"] = (200, {"status": "SUBMITTED"})
    handler.replies["GET /train/"] = (200, {"status": "DONE"})
    handler.replies["GET /info/"] = (200, {"train_stats": {"caml": {"state": "done", "decision": decision}}})

    found, seconds = annotator.train({"seed": 3})
    assert found == decision
    assert seconds < 5
    assert any('"seed": 3' in body for body in handler.bodies)


def test_failed_training_is_one_sentence(served: tuple[type[Handler], Annotator]) -> None:
    handler, annotator = served
    handler.replies["POST /train/caml"] = (200, {"status": "SUBMITTED"})
    handler.replies["GET /train/"] = (200, {"status": "ERROR", "details": ["..."]})
    handler.replies["GET /info/"] = (200, {"train_stats": {"caml": {"error": "loss became NaN"}}})

    with pytest.raises(MedsegError, match=r"training ended as ERROR: loss became NaN; the server's log is"):
        annotator.train({})


def test_scores_are_asked_for_and_awaited(served: tuple[type[Handler], Annotator]) -> None:
    handler, annotator = served
    handler.replies["GET /info/"] = (200, {"scoring": {"other": {}, "caml": {}}})
    handler.replies["POST /scoring/caml"] = (200, {"status": "SUBMITTED"})
    handler.replies["GET /scoring/"] = (200, {"status": "DONE"})
    assert annotator.score() >= 0

    handler.replies["GET /scoring/"] = (200, {"status": "ERROR", "details": ["disk full"]})
    with pytest.raises(MedsegError, match="scoring ended as ERROR: disk full"):
        annotator.score()
