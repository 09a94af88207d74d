"""The commands that do not run in ``make test``, each with its reason: by page, by how they start."""

from __future__ import annotations

NIH = "needs the X-rays of NIH ChestX-ray14, and hours"
STUDY = "needs run folders of the study, which are not in the repository"
PYPI = "needs a checkpoint that somebody else published"
HUB = "needs the Hugging Face Hub"
RAY = 'needs pip install "mxa[ray]" and a cluster'
CALLS = "needs a teacher that calls findings on films; tests/training/test_without_labels.py calibrates a student"
SERVES = "serves until it is stopped; make test-app runs it"
HOST = "measures a machine that does nothing else"

#: They never run: only the parser sees them.
PARSED_ONLY: dict[str, dict[str, str]] = {
    "README.md": {"mxa app": SERVES},
    "docs/app.md": {"mxa app": SERVES},
    "docs/deployment.md": {"mxa": "takes minutes; tests/deployment/test_export.py exports in every format"},
    "docs/performance.md": {"mxa bench": HOST},
    "docs/predict.md": {"mxa predict /shared/": RAY},
    "docs/reproduce.md": {"mxa": "needs CheXpert's images and a GPU; the page says what was run"},
    "docs/results.md": {
        "mxa train --data nih": NIH,
        "mxa teach teacher --data nih": NIH,
        "mxa ablate": NIH,
        "mxa train --config": NIH,
        "mxa evaluate RUN...": STUDY,
        "mxa bench": HOST,
        "mxa localize table2": STUDY,
        "mxa convert": PYPI,
        "mxa convert m0_mxa_whole": STUDY,
        "mxa evaluate probe": STUDY,
        "mxa evaluate m0_mxa m0": STUDY,
        "mxa train --recipe nih8k_m0_mxa": NIH,
        "mxa train --data phantom": "takes an hour",
        "mxa localize phantom": STUDY,
        "mxa localize block": STUDY,
    },
    "docs/results/study/localization.md": {"mxa localize": STUDY},
    "docs/training.md": {
        "mxa train --model efficientvit_ml_m0_mxa --epochs 2": "draws 1,600 phantoms",
        "mxa calibrate runs/nih": "needs more validation images than the stand-in has",
        "mxa train --recipe paper_mxa": "needs CheXpert's images and a GPU",
        "mxa ablate": NIH,
        "mxa convert": PYPI,
        "mxa train --data nih --root NIH512": PYPI,
        "mxa localize runs/boxes": PYPI,
        "mxa predict xray.png --model runs/boxes": PYPI,
    },
    "docs/weights-r160_nih8k.md": {"mxa train": NIH},
    "docs/weights.md": {
        "mxa convert": PYPI,
        "mxa train --model tf_efficientnet_lite0": PYPI,
        "mxa publish RUN --repo lab/efficientvit_ml_m0_mxa.chexpert\n": HUB,
        "mxa publish --check": HUB,
    },
    "docs/without_labels.md": {"mxa calibrate": CALLS, "mxa predict": CALLS},
}
#: How many commands that is.
COUNT = 81

#: They run in ``make test-slow``: a model trains for longer, or many maps are computed.
LONG = {
    "README.md": (
        "mxa train --data table --root my.csv --boxes",
        "mxa localize",
        "mxa predict xray.dcm --model runs/where",
    ),
    "docs/evaluation.md": ("mxa evaluate runs/a-0",),
    "docs/explain.md": ("mxa localize", "mxa explain examples/images"),
    "docs/faq.md": ("mxa train", "mxa prepare", "mxa evaluate runs/mine,", "mxa explain"),
    "docs/training.md": ("mxa",),
    "docs/tutorial.md": ("mxa evaluate ward/run --split val", "mxa explain"),
}

#: They run in ``make test-deploy``, which has ONNX Runtime and OpenVINO.
EXPORTED = {
    "docs/clients.md": ("mxa export",),
    "README.md": ("mxa export", "mxa predict films/ --model exported"),
    "docs/predict.md": ("mxa predict xray.png --model exported",),
    "docs/tutorial.md": ("mxa export", "mxa predict ward/films --model ward/exported"),
    "docs/without_labels.md": ("mxa export",),
}
