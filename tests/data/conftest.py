"""Fixtures of the data room's tests."""

from __future__ import annotations

import pytest

from .dicom_files import DEEP, dataset, save


@pytest.fixture
def made(tmp_path):
    """Writes a file of pixels and tags."""
    return lambda pixels=DEEP, **tags: save(tmp_path / "made.dcm", dataset(pixels, **tags))
