"""Names of a package that are imported when they are first used, and models that register when timm is imported."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["lazy_names", "when_imported"]


def lazy_names(package: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """Makes the ``__getattr__`` of a package whose names come from its modules.

    Args:
        package: The package's ``__name__``.
        names: Each name and the module, within the package, that has it; a module's own name for the module itself.
    """

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(f"{package}.{names[name]}")
        value = module if name == names[name] else getattr(module, name)
        setattr(sys.modules[package], name, value)
        return value

    return get


def when_imported(name: str, then: str) -> None:
    """Imports the module ``then`` as soon as the package ``name`` is imported; at once if it is already."""
    if name in sys.modules:
        importlib.import_module(then)
    else:
        sys.meta_path.insert(0, _After(name, then))


class _After:
    """A finder of one package. It lets the other finders find it, and imports another module after it."""

    def __init__(self, name: str, then: str):
        self.name, self.then = name, then

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self.name:
            return None
        others = (finder for finder in sys.meta_path if not isinstance(finder, _After) and hasattr(finder, "find_spec"))
        spec = next((found for finder in others if (found := finder.find_spec(name, path, target))), None)
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def load_and_follow(module: ModuleType) -> None:
            load(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
                importlib.import_module(self.then)

        spec.loader.exec_module = load_and_follow  # type: ignore[method-assign]
        return spec
