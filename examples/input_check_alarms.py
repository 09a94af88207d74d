"""Counts how often ``check_radiograph`` speaks against the images of folders: ``input_check_alarms.py FOLDER ...``."""

import sys
from pathlib import Path

from PIL import Image

from mxa.data import check_radiograph
from mxa.data.image_io import find_images


def main(folders: list[str]) -> None:
    files, alarms = find_images(tuple(map(Path, folders))), 0
    for file in files:
        with Image.open(file) as image:
            if reason := check_radiograph(image):
                alarms += 1
                print(f"{file}: {reason}")
    print(f"{alarms} of {len(files)} images")


if __name__ == "__main__":
    main(sys.argv[1:])
