"""Draws chest phantoms as DICOM files, and a table of them as an office keeps it: a stand-in for a lab's own X-rays.

Writes ``FOLDER/films/*.dcm`` and ``FOLDER/reads.csv``: semicolons, paths of Windows, yes and no, cells left blank.

    python examples/draw_films.py ward

A minute. Needs ``pip install "mxa[dicom]"``.
"""

import argparse
import csv
from pathlib import Path

from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset

from mxa.data.collections.phantom import PhantomSample, draw
from mxa.labels import CHEXPERT

LABELS = ("Cardiomegaly", "Pleural Effusion", "Pneumothorax", "Lung Opacity")


def write_dicom(path: Path, film: PhantomSample, number: int) -> None:
    """Writes a phantom as a digital radiograph; its bones are dark in every third file, as some scanners store them."""
    dark = number % 3 == 0
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    ds.SOPClassUID = uid.DigitalXRayImageStorageForPresentation
    ds.SOPInstanceUID, ds.SeriesInstanceUID = f"2.25.{number + 1}", f"2.25.{number + 1}.1"
    ds.StudyInstanceUID, ds.StudyID = f"2.25.{number + 1}.2", str(number)
    ds.PatientID, ds.PatientName, ds.PatientBirthDate, ds.PatientSex = str(film.patient), "Phantom", "", ""
    ds.StudyDate = ds.StudyTime = ds.AccessionNumber = ds.ReferringPhysicianName = ""
    ds.Modality, ds.BodyPartExamined, ds.ViewPosition = "DX", "CHEST", film.view
    ds.Rows, ds.Columns = film.image.shape
    ds.BitsAllocated = ds.BitsStored = 8
    ds.SamplesPerPixel, ds.PixelRepresentation = 1, 0
    ds.PhotometricInterpretation = "MONOCHROME1" if dark else "MONOCHROME2"
    ds.add_new("PixelData", "OW", (255 - film.image if dark else film.image).tobytes())
    ds.save_as(path, enforce_file_format=True)


def write_films(folder: Path, count: int, size: int) -> None:
    (folder / "films").mkdir(parents=True, exist_ok=True)
    with (folder / "reads.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow(("File Name", "Patient ID", "View", *LABELS))
        for number in range(count):
            film = draw(number, size)
            name = f"film{number:04d}.dcm"
            write_dicom(folder / "films" / name, film, number)
            cells = ["yes" if film.labels[CHEXPERT.index(label)] else "no" for label in LABELS]
            if number % 10 == 7:
                cells[number // 10 % len(LABELS)] = ("", "uncertain")[number % 4 // 2]
            writer.writerow((f"D:\\PACS\\films\\{name}", film.patient, film.view, *cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--size", type=int, default=160, help="side of a film in pixels")
    arguments = parser.parse_args()
    write_films(arguments.folder, arguments.count, arguments.size)
    print(f"{arguments.count} films in {arguments.folder / 'films'}, their labels in {arguments.folder / 'reads.csv'}")


if __name__ == "__main__":
    main()
