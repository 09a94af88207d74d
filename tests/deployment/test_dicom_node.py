"""The example node between dcmtk's storescu and Orthanc: every image gets one report, also after a kill."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pydicom
import pytest

from mxa.labels import CHEXPERT

from ..waiting import wait_until
from .dicom_files import write_chest

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
IMAGES = 50


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def stop(process: subprocess.Popen) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()


class Orthanc:
    """A server of its own: HTTP and DICOM on free ports, storage in a temporary folder."""

    def __init__(self, program: str, folder: Path):
        self.port, self.http = free_port(), free_port()
        folder.mkdir()
        settings = {
            "Name": "test", "StorageDirectory": str(folder), "IndexDirectory": str(folder), "Plugins": [],
            "HttpPort": self.http, "RemoteAccessAllowed": False, "AuthenticationEnabled": False,
            "DicomPort": self.port, "DicomAet": "ORTHANC", "DicomCheckCalledAet": True,
        }  # fmt: skip
        (folder / "orthanc.json").write_text(json.dumps(settings))
        self.command = [program, folder / "orthanc.json"]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(self._answers, self.process)

    def _answers(self) -> bool:
        try:
            return bool(self.get("/system"))
        except OSError:
            time.sleep(0.1)
            return False

    def get(self, path: str, raw: bool = False):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}{path}", timeout=30) as answer:
            content = answer.read()
        return content if raw else json.loads(content)

    def instances(self) -> list[str]:
        return self.get("/instances")

    def reports(self, folder: Path) -> list[pydicom.Dataset]:
        found = []
        for i, name in enumerate(self.instances()):
            (folder / f"got{i}.dcm").write_bytes(self.get(f"/instances/{name}/file", raw=True))
            found.append(pydicom.dcmread(folder / f"got{i}.dcm"))
        return found


@pytest.fixture
def orthanc(program, tmp_path) -> Iterator[Orthanc]:
    server = Orthanc(program("Orthanc"), tmp_path / "orthanc")
    yield server
    stop(server.process)


@pytest.fixture
def images(tmp_path) -> list[Path]:
    (tmp_path / "images").mkdir()
    return [write_chest(tmp_path / "images" / f"{i}.dcm", i) for i in range(1, IMAGES + 1)]


@pytest.fixture
def node(orthanc, trained, tmp_path) -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts the node, and waits until it listens; ``node.port`` and ``node.queue`` are where."""
    started, log = [], (tmp_path / "node.log").open("a")

    def start(*options: str) -> subprocess.Popen:
        command = [sys.executable, ROOT / "examples" / "dicom_node.py", "--folder", tmp_path / "queue"]
        command += ["--callers", "STORESCU", "FRIEND", "--peer", f"ORTHANC@127.0.0.1:{orthanc.port}"]
        command += ["--port", str(start.port), "--model", trained, "--retry", "1", *options]
        before = start.log().count("listens on")
        paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": paths})
        started.append(process)
        wait_until(lambda: start.log().count("listens on") > before, process)
        assert process.poll() is None, start.log()
        return process

    start.port, start.queue = free_port(), tmp_path / "queue" / "incoming"
    start.log = (tmp_path / "node.log").read_text
    yield start
    for process in started:
        stop(process)
    log.close()


@pytest.fixture
def send(node, program):
    """Sends files with storescu; returns what it said."""

    def run(files: list[Path], title: str = "STORESCU", called: str = "MXA") -> subprocess.CompletedProcess:
        command = [program("storescu"), "-v", "-aet", title, "-aec", called, "127.0.0.1", str(node.port), *files]
        return subprocess.run(command, capture_output=True, text=True)

    return run


def reported(orthanc: Orthanc, node, number: int, process: subprocess.Popen) -> None:
    wait_until(lambda: len(orthanc.instances()) >= number and not list(node.queue.glob("*")), process, 400)


def test_every_image_gets_a_report(orthanc, node, images, send, tmp_path):
    process = node()
    said = send(images)
    assert said.returncode == 0, said.stderr
    assert said.stdout.count("Received Store Response (Success)") + said.stderr.count("Response (Success)") == IMAGES
    reported(orthanc, node, IMAGES, process)
    found = orthanc.reports(tmp_path)
    assert {ds.Modality for ds in found} == {"SR"}
    evidence = [ds.CurrentRequestedProcedureEvidenceSequence[0] for ds in found]
    sources = [e.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID for e in evidence]
    assert sorted(sources) == sorted(f"1.2.3.{i}" for i in range(1, IMAGES + 1))
    measured = found[0].ContentSequence[-1].ContentSequence
    tracked = [group.ContentSequence[0].TextValue for group in measured[: len(CHEXPERT)]]
    assert tracked == list(CHEXPERT)

    assert send(images[:5]).returncode == 0  # again: no second report
    wait_until(lambda: node.log().count("reported") == IMAGES + 5, process, 400)
    assert len(orthanc.instances()) == IMAGES

    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0 and "stopped; 0 images wait in the queue" in node.log()


def test_killed_half_way_none_is_lost_and_none_comes_twice(orthanc, node, images, send, tmp_path):
    process, moment = node(), random.Random(0)
    assert send(images).returncode == 0
    for _ in range(3):
        enough = min(IMAGES, len(orthanc.instances()) + 8)
        wait_until(lambda enough=enough: len(orthanc.instances()) >= enough, process, 400)
        time.sleep(moment.uniform(0, 0.4))
        process.kill()
        process.wait()
        kept, done = len(list(node.queue.glob("*.dcm"))), len(orthanc.instances())
        assert done < IMAGES and IMAGES <= kept + done <= IMAGES + 1
        process = node()
    reported(orthanc, node, IMAGES, process)
    found = orthanc.reports(tmp_path)
    assert len({ds.SOPInstanceUID for ds in found}) == len(found) == IMAGES
    assert len({ds.StudyInstanceUID for ds in found}) == IMAGES


def test_killed_while_the_peer_stores_a_report(node, images, send):
    """The peer has the report and does not answer yet: the image is still in the queue, and its report comes again."""
    from pynetdicom import AE, evt
    from pynetdicom.sop_class import ComprehensiveSRStorage

    got, killed = [], threading.Event()

    def store(event) -> int:
        got.append(event.request.AffectedSOPInstanceUID)
        killed.wait(60)
        return 0

    peer, port = AE("PEER"), free_port()
    peer.add_supported_context(ComprehensiveSRStorage)
    server = peer.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    try:
        process = node("--peer", f"PEER@127.0.0.1:{port}")
        assert send(images[:3]).returncode == 0
        wait_until(lambda: bool(got), process)
        process.kill()
        process.wait()
        killed.set()
        assert len(list(node.queue.glob("*.dcm"))) == 3
        process = node("--peer", f"PEER@127.0.0.1:{port}")
        wait_until(lambda: not list(node.queue.glob("*")), process, 400)
    finally:
        server.shutdown()
    assert len(got) == 4 and got[0] == got[1] and len(set(got)) == 3


def test_killed_while_it_receives(orthanc, node, images, program, send):
    """What was answered with success is reported; what was not is sent again by who sends."""
    process = node()
    command = [program("storescu"), "-v", "-aet", "STORESCU", "-aec", "MXA", "127.0.0.1", str(node.port), *images]
    sender = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_until(lambda: len(list(node.queue.glob("*.dcm"))) >= 5, process)
    process.kill()
    accepted = sender.communicate()[0].count("Response (Success)")
    process.wait()
    process = node()
    reported(orthanc, node, accepted, process)
    assert accepted <= len(orthanc.instances()) <= accepted + 1  # written, and killed before it answered
    assert send(images).returncode == 0
    reported(orthanc, node, IMAGES, process)
    assert len(orthanc.instances()) == IMAGES
    assert not list(node.queue.with_name("receiving").iterdir())


def test_the_queue_waits_for_the_peer(orthanc, node, images, send):
    stop(orthanc.process)
    process = node()
    assert send(images[:3]).returncode == 0
    wait_until(lambda: node.log().count("the peer does not answer") >= 2, process)
    assert len(list(node.queue.glob("*.dcm"))) == 3
    orthanc.start()
    reported(orthanc, node, 3, process)
    assert len(orthanc.instances()) == 3


def test_strangers_and_large_objects_are_refused(orthanc, node, images, send, tmp_path):
    process = node("--largest", "0.05")
    for title, called in (("STRANGER", "MXA"), ("STORESCU", "OTHER")):
        said = send(images[:1], title, called)
        assert said.returncode != 0 and "Not Recognized" in said.stdout + said.stderr, said
    large = pydicom.dcmread(images[0])
    large.private_block(0x0011, "MAKER").add_new(2, "OB", b"\0" * 100_000)
    large.save_as(tmp_path / "large.dcm")
    said = send([tmp_path / "large.dcm"], "FRIEND")
    assert re.search("0xa700|OutOfResources|Refused: Out", said.stdout + said.stderr, re.IGNORECASE), said
    assert send([images[1]], "FRIEND").returncode == 0
    reported(orthanc, node, 1, process)
    assert len(orthanc.instances()) == 1
    assert not list(node.queue.with_name("receiving").iterdir())


def test_what_gives_no_report_is_set_aside(orthanc, node, images, send, tmp_path):
    """A file that cannot be read holds up none of the others."""
    process = node()
    bad = write_chest(tmp_path / "bad.dcm", 98, Rows=41)  # more rows than pixels
    assert send([bad, *images[:2]]).returncode == 0
    reported(orthanc, node, 2, process)
    assert len(orthanc.instances()) == 2
    assert [path.name for path in node.queue.with_name("failed").iterdir()] == ["1.2.3.98.dcm"]
    assert "1.2.3.98 set aside: " in node.log() and "SECRET" not in node.log()


def test_it_listens_on_loopback_and_alone(node, orthanc, trained, tmp_path):
    node()
    outside = socket.gethostbyname(socket.gethostname())
    if not outside.startswith("127."):
        with socket.socket() as other, pytest.raises(OSError):
            other.connect((outside, node.port))
    command = [sys.executable, ROOT / "examples" / "dicom_node.py", "--folder", tmp_path / "queue", "--callers", "A"]
    command += ["--peer", f"ORTHANC@127.0.0.1:{orthanc.port}", "--port", str(free_port()), "--model", trained]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    said = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths})
    assert said.returncode != 0 and "dicom_node is at work in" in said.stderr
