"""A DICOM node: takes chest X-rays by C-STORE, and sends a Structured Report of each to a peer by C-STORE.

    pip install "mxa[node]"
    python examples/dicom_node.py --folder queue --callers STORESCU --peer ORTHANC@127.0.0.1:4242

An example: no product, no medical device. docs/dicom.md says what it does not do.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pynetdicom
from pydicom import Dataset
from pydicom.uid import UID
from pynetdicom import sop_class
from pynetdicom.status import code_to_category

import mxa
from mxa.commands.predict.places import Places
from mxa.deployment import open_predictor
from mxa.deployment.dicom_report import ModelIdentity, calibration_name, findings_of, structured_report
from mxa.deployment.stream import score_planes
from mxa.models.hub import SHIPPED
from mxa.utils.errors import InputError
from mxa.utils.files import alone_in, atomic_copy

TAKEN = (
    sop_class.ComputedRadiographyImageStorage,
    sop_class.DigitalXRayImageStorageForPresentation,
    sop_class.DigitalXRayImageStorageForProcessing,
    sop_class.SecondaryCaptureImageStorage,
)
SUCCESS, OUT_OF_RESOURCES, CANNOT_UNDERSTAND = 0x0000, 0xA700, 0xC000
logger = logging.getLogger("dicom_node")


def reporter(name: str, point: str) -> Callable[[Path], Dataset]:
    """Loads a model once, and returns what makes the report of a file; a calibration beside the weights is used."""
    predictor, places = open_predictor(name, device="cpu"), Places(name, "cpu")
    info, reader = predictor.info, predictor.reader()
    used = calibration_name(info.calibration, point) if info.calibration else ""
    identity = ModelIdentity(Path(name).name, mxa.__version__, info.weights_sha256, used)

    def report(path: Path) -> Dataset:
        images = ((plane, {"file": path.name, **about}) for plane, about in [reader(path)])
        (row,) = score_planes(predictor, images, 1, point if info.calibration else None)
        return structured_report(path, findings_of(row, places.boxes(path)), identity, row.get("warning", ""))

    return report


def receive(event: pynetdicom.events.Event, incoming: Path, largest: int) -> int:
    """Writes an object into the queue, whole, before success is answered."""
    uid, path = str(event.request.AffectedSOPInstanceUID), event.dataset_path
    if not UID(uid).is_valid:  # it becomes a file's name
        return CANNOT_UNDERSTAND
    if path.stat().st_size > largest:
        logger.warning("%s refused: it has %d bytes, and %d are allowed", uid, path.stat().st_size, largest)
        return OUT_OF_RESOURCES
    try:
        atomic_copy(path, incoming / f"{uid}.dcm")
    except (OSError, InputError):
        logger.exception("%s refused: it could not be written", uid)
        return OUT_OF_RESOURCES
    logger.info("%s received", uid)
    return SUCCESS


def deliver(dataset: Dataset, peer: Callable[[], pynetdicom.association.Association]) -> int | None:
    """Sends a report; returns the peer's status, or None where it does not answer."""
    association = peer()
    try:
        return association.send_c_store(dataset).get("Status")
    except RuntimeError:  # there is no association
        return None
    finally:
        association.release()


def report_all(incoming: Path, report: Callable[[Path], Dataset], peer: Callable, stop: threading.Event) -> bool:
    """Reports every file of the queue, oldest first; a file leaves the queue when the peer has accepted its report.

    Returns:
        False if the peer did not take a report: it is to be tried again.
    """
    accepted = True
    for path in sorted(incoming.glob("*.dcm"), key=lambda path: path.stat().st_mtime_ns):
        if stop.is_set():
            break
        try:
            dataset = report(path)
        except InputError as error:  # no report can be made of it: somebody must look
            logger.error("%s set aside: %s", path.stem, error)
            os.replace(path, incoming.with_name("failed") / path.name)
            continue
        status = deliver(dataset, peer)
        if status is None:
            logger.warning("the peer does not answer: %s waits, and all after it", path.stem)
            return False
        if code_to_category(status) in ("Success", "Warning"):
            path.unlink()
            logger.info("%s reported", path.stem)
        else:
            logger.warning("the peer refused the report of %s with status 0x%04X: it waits", path.stem, status)
            accepted = False
    return accepted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="the queue, on a disk that survives a restart")
    parser.add_argument("--callers", nargs="+", required=True, help="AE titles that may send; all others are refused")
    parser.add_argument("--peer", required=True, help="TITLE@HOST:PORT of who gets the reports")
    parser.add_argument("--title", default="MXA", help="own AE title")
    parser.add_argument("--address", default="127.0.0.1", help="own address; 0.0.0.0 listens to the network")
    parser.add_argument("--port", type=int, default=11112)
    parser.add_argument("--largest", type=float, default=100, help="largest object that is taken, in MB")
    parser.add_argument("--model", default=SHIPPED, help="run folder, or a timm name with weights")
    parser.add_argument("--point", choices=("youden", "specificity95", "f1"), default="youden", help="of the calls")
    parser.add_argument("--retry", type=float, default=10, help="seconds until a report is sent again")
    config = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("pynetdicom").setLevel(logging.WARNING)
    os.umask(0o077)  # the queue is about patients
    title, _, place = config.peer.partition("@")
    host, _, port = place.rpartition(":")
    incoming, receiving, failed = (config.folder / name for name in ("incoming", "receiving", "failed"))
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())

    with alone_in(config.folder, "dicom_node", within=("incoming",)):
        shutil.rmtree(receiving, ignore_errors=True)  # what was cut short: no success was answered
        for folder in (incoming, receiving, failed):
            folder.mkdir(exist_ok=True)
        tempfile.tempdir = str(receiving)  # pynetdicom writes there what it has not received to the end
        pynetdicom._config.STORE_RECV_CHUNKED_DATASET = True
        sender = pynetdicom.AE(config.title)
        sender.add_requested_context(sop_class.ComprehensiveSRStorage)
        listener = pynetdicom.AE(config.title)
        listener.require_calling_aet, listener.require_called_aet = config.callers, True
        listener.add_supported_context(sop_class.Verification)
        for taken in TAKEN:
            listener.add_supported_context(taken, pynetdicom.ALL_TRANSFER_SYNTAXES)
        report = reporter(config.model, config.point)
        handlers = [(pynetdicom.evt.EVT_C_STORE, receive, [incoming, int(config.largest * 1e6)])]
        server = listener.start_server((config.address, config.port), block=False, evt_handlers=handlers)
        logger.info("%s listens on %s:%d", config.title, config.address, config.port)
        while not stop.is_set():
            done = report_all(incoming, report, lambda: sender.associate(host, int(port), ae_title=title), stop)
            stop.wait(0.2 if done else config.retry)
        server.shutdown()
    logger.info("stopped; %d images wait in the queue", len(list(incoming.glob("*.dcm"))))


if __name__ == "__main__":
    main()
