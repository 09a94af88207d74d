"""The arms of a comparison: the fields of a training recipe that each of them changes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..training.config import ModelConfig, TrainConfig, model_arguments
from ..utils.config import checked_fields, read_named
from ..utils.errors import InputError

__all__ = ["TABLE_2", "arm_fields", "read_arms", "same_arm"]

#: The arms of the paper's table, and KD alone, which it leaves out; each with the name of its row.
TABLE_2 = {"baseline": "baseline", "mxa": "+ MXA", "kd": "+ KD", "mxa+kd": "+ MXA + KD"}
#: Fields that all arms share: where they are run, and on what.
_SHARED = {
    *("output", "seed", "resume", "data", "root", "columns", "labels", "merge", "views", "blank"),
    *("workers", "device", "tensorboard"),
}


_NAME = re.compile(r"[\w+%.()=:-](?:[\w +%.()=:-]*[\w+%.()=:-])?")


def read_arms(arms: Sequence[str | Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Reads arms: names of ``TABLE_2``, or ``NAME: {field: value}`` as YAML or as a dict.

    Returns:
        The fields that each arm changes, by name; those of the paper's arms are in ``arm_fields``.

    Raises:
        InputError: an unknown name or field, a value of another kind, or a name twice.
    """
    found: dict[str, dict[str, Any]] = {}
    for arm in arms:
        name, changed = read_named(arm, "the arm")
        if not _NAME.fullmatch(name) or "-seed" in name:
            raise InputError(
                f"the arm {name!r} names files and a row of a table: give letters, digits, spaces and +-.%"
            )
        if name.casefold() in (other.casefold() for other in found):
            raise InputError(f"the arm {name!r} is given twice")
        if (changed is None) != (name in TABLE_2):
            what = "is the paper's" if name in TABLE_2 else f"is not one of {', '.join(TABLE_2)}"
            raise InputError(f"the arm {name!r} {what}: give NAME: {{field: value}} for one of your own")
        if changed is not None and name.casefold() in (row.casefold() for row in TABLE_2.values()):
            raise InputError(f"the arm {name!r} is what a row of the paper's is called: give another name")
        for field in set(changed or {}) & _SHARED:
            raise InputError(f"the arm {name!r} cannot change {field}, which all arms share")
        found[name] = checked_fields(TrainConfig, changed or {}, f"the arm {name!r}")
    return found


def same_arm(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether two arms change the same, however it was written."""

    def plain(changed: Mapping[str, Any]) -> Any:
        arguments = model_arguments(ModelConfig(model_args=changed.get("model_args")))
        return {**{k: list(v) if isinstance(v, tuple) else v for k, v in changed.items()}, "model_args": arguments}

    return plain(first) == plain(second)


def arm_fields(config: TrainConfig, name: str, changed: Mapping[str, Any]) -> dict[str, Any]:
    """What an arm changes in a recipe whose model has MXA; only the arms with KD have the teacher."""
    if name not in TABLE_2:
        return {"teacher": None, "teacher_sha256": None, **changed}
    kept = {} if "kd" in name else {"teacher": None, "teacher_sha256": None}
    return kept if "mxa" in name else {"model": config.model.removesuffix("_mxa"), **kept}
