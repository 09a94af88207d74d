"""The arms of a comparison: the fields of a training recipe that each of them changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import yaml

from .errors import InputError
from .train_config import TrainConfig
from .yaml_fields import coerce

__all__ = ["TABLE_2", "arm_fields", "read_arms"]

#: The paper's rows, and the one that it leaves out: the row of the table of each arm.
TABLE_2 = {"baseline": "baseline", "mxa": "+ MXA", "kd": "+ KD", "mxa+kd": "+ MXA + KD"}
#: Fields that all arms share: where they are run, and on what.
_SHARED = {
    *("output", "seed", "resume", "data", "root", "columns", "labels", "merge", "views", "blank"),
    *("workers", "device", "tensorboard"),
}


def read_arms(arms: Sequence[str | Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Reads arms: names of ``TABLE_2``, or ``NAME: {field: value}`` as YAML or as a dict.

    Returns:
        The fields that each arm changes, by name; those of the paper's arms are in ``arm_fields``.

    Raises:
        InputError: an unknown name or field, or a name twice.
    """
    found: dict[str, dict[str, Any]] = {}
    known = {f.name: f for f in fields(TrainConfig) if f.name not in _SHARED}
    for arm in arms:
        try:
            content = yaml.safe_load(arm) if isinstance(arm, str) else arm
        except yaml.YAMLError:
            content = None
        content = {content: None} if isinstance(content, str) else content
        if not isinstance(content, Mapping) or len(content) != 1:
            raise InputError(f"an arm is a name or NAME: {{field: value}}, got {arm!r}")
        ((name, changed),) = content.items()
        name = str(name)
        if not name or name != name.strip() or set(name) & set('/\\|*?"<>\n') or "-seed" in name:
            raise InputError(f"the arm {name!r} names files and a row of a table: give letters, digits and spaces")
        if name in found:
            raise InputError(f"the arm {name!r} is given twice")
        if (changed is None) != (name in TABLE_2):
            what = "is the paper's" if name in TABLE_2 else f"is not one of {', '.join(TABLE_2)}"
            raise InputError(f"the arm {name!r} {what}: give NAME: {{field: value}} for one of your own")
        if not isinstance(changed or {}, Mapping):
            raise InputError(f"the arm {name!r} must be NAME: {{field: value}}, got {arm!r}")
        if unknown := [field for field in changed or {} if field not in known]:
            raise InputError(f"the arm {name!r} cannot change {', '.join(map(str, unknown))}")
        found[name] = {k: coerce(f"the arm {name!r}", k, v, str(known[k].type)) for k, v in (changed or {}).items()}
    return found


def arm_fields(config: TrainConfig, name: str, changed: Mapping[str, Any]) -> dict[str, Any]:
    """What an arm changes in a recipe whose model has MXA; only the arms with KD have the teacher."""
    if name not in TABLE_2:
        return {"teacher": None, "teacher_sha256": None, **changed}
    kept = {} if "kd" in name else {"teacher": None, "teacher_sha256": None}
    return kept if "mxa" in name else {"model": config.model.removesuffix("_mxa"), **kept}
