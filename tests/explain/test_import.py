"""The package is cheap to import: the heavy libraries load where they are used."""

from __future__ import annotations

import subprocess
import sys

import mxa.explain


def test_neither_matplotlib_nor_captum_nor_pydicom_is_loaded():
    code = "import sys, mxa.explain; print([m for m in ('matplotlib', 'captum', 'pydicom') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_exist():
    assert sorted(mxa.explain.__all__) == mxa.explain.__all__
    assert all(callable(getattr(mxa.explain, name)) for name in mxa.explain.__all__)
