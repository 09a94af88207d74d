"""Folders of weights that somebody else made, of each kind of model."""

from __future__ import annotations

import copy

import timm
import torch

import mxa
from mxa.layers import graft

from ..contracts import randomise

ABC = ("Edema", "Mass", "Pleural Effusion")
KINDS = ("efficientvit_ml_m0", "test_resnet", "graft")
OURS = ("efficientvit_ml_m0", "graft")


def build(kind: str, labels=ABC) -> torch.nn.Module:
    name = "test_vit" if kind == "graft" else kind
    model = randomise(timm.create_model(name, num_classes=len(labels)))
    mxa.set_label_names(model, labels)
    return randomise(graft(model)) if kind == "graft" else model


def at(path: str, value):
    """Sets a value at a path of keys, ``.`` for the root."""

    def change(config):
        *parents, last = path.split("/")
        for parent in parents:
            config = config.setdefault(parent, {})
        config[last] = copy.deepcopy(value)

    return change


def sources(path, hub):
    """Every way to name a folder: itself, and a repository that holds it."""
    hub.push("lab/received", path)
    return str(path), "hf-hub:lab/received", "hf_hub:lab/received@main"
