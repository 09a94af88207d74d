"""Predicts one DICOM file: calibrated probabilities, which findings are called, and boxes where the model looks.

    pip install "mxa[dicom,train]"
    python examples/predict_dicom.py xray.dcm

It takes a few seconds. Without a file it makes a DICOM of one of the X-rays beside it, and predicts that.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset

from mxa.data import create_transform, read_image
from mxa.deployment import open_predictor
from mxa.explain import draw_rois, predict_rois
from mxa.models.load import load_model

MODEL = "efficientvit_ml_m0_mxa.r160_nih8k"  # or a run folder
XRAY = Path(__file__).parent / "images" / "00001373_038.jpg"


def write_dicom(image: Image.Image, path: Path) -> None:
    """Writes a gray image as a digital X-ray."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = uid.DigitalXRayImageStorageForPresentation, uid.generate_uid()
    dataset.Modality, dataset.BodyPartExamined, dataset.ViewPosition = "DX", "CHEST", "PA"
    dataset.WindowCenter, dataset.WindowWidth = 128, 256  # gray as it is
    dataset.set_pixel_data(np.asarray(image.convert("L")), "MONOCHROME2", bits_stored=8)
    dataset.save_as(path, enforce_file_format=True)


def main(file: Path, picture: Path | None) -> None:
    predictor = open_predictor(MODEL)
    thresholds = predictor.info.calibration.thresholds["youden"]
    for label, probability in sorted(predictor(file).items(), key=lambda item: -item[1]):
        threshold = thresholds.get(label)  # a label with few validation cases has none
        called = "" if threshold is None else "called" if probability >= threshold else "not called"
        print(f"{label:20} {probability:.3f}  {called}")
    if picture:
        model, image = load_model(MODEL), read_image(file)
        draw_rois(image, predict_rois(model, create_transform(model)(image)[None]), picture)
        print(f"the boxes of the model's MXA blocks: {picture}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?", help="a DICOM file, or any image")
    parser.add_argument("--picture", type=Path, help="PNG to draw")
    config = parser.parse_args()
    with TemporaryDirectory() as folder:
        if config.file is None:
            config.file = Path(folder) / "xray.dcm"
            write_dicom(Image.open(XRAY), config.file)
        main(config.file, config.picture)
