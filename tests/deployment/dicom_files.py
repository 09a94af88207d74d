"""DICOM chest images for the tests of reports."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..data.dicom_files import dataset, save

ROWS, COLUMNS = 40, 48

#: What a report copies.
COPIED = dict(
    PatientID="ID-7", PatientName="Äpfel^Jörg", PatientBirthDate="19330101", PatientSex="M", StudyID="S1",
    StudyDate="20200101", StudyTime="101010.5", AccessionNumber="A-9", ReferringPhysicianName="Doe^Jane",
)  # fmt: skip
#: What it leaves.
LEFT = dict(
    OtherPatientIDs="SECRET1", PatientAddress="SECRET2", PatientComments="SECRET3", PatientTelephoneNumbers="SECRET4",
    InstitutionName="SECRET5", OperatorsName="SECRET6^A", PatientAge="042Y", PatientWeight="70", EthnicGroup="SECRET7",
    StationName="SECRET8", StudyDescription="SECRET9", AdmissionID="SECRET10", DeviceSerialNumber="SECRET11",
    RequestingPhysician="SECRET12^A", ProtocolName="SECRET13", ImageComments="SECRET14", MilitaryRank="SECRET15",
    InsurancePlanIdentification="SECRET16", PatientBirthName="SECRET17^A", IssuerOfPatientID="SECRET18",
)  # fmt: skip


def write_chest(path: Path, number: int = 1, **tags) -> Path:
    """Writes a small radiograph; ``number`` makes its instance, series and study another one."""
    y, x = np.mgrid[:ROWS, :COLUMNS]
    pixels = (2000 + 1500 * np.sin(x / 9 + number) * np.cos(y / 7)).astype(np.uint16)
    uids = dict(
        SOPInstanceUID=f"1.2.3.{number}", SeriesInstanceUID=f"1.2.4.{number}", StudyInstanceUID=f"1.2.5.{number}"
    )
    described = dict(BodyPartExamined="CHEST", ViewPosition="PA", SpecificCharacterSet="ISO_IR 100", InstanceNumber=1)
    made = dataset(pixels, **{**uids, **described, **COPIED, **LEFT, **tags})
    private = made.private_block(0x0011, "MAKER", create=True)
    private.add_new(1, "LO", "SECRET19")
    return save(path, made)
