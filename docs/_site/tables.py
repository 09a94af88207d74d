"""Tables that are made of the code: run this file after a change of a model, a layer or the manifest of weights.

A table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``. A test says where one is out of date.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import mxa.layers as layers
from mxa.models.hub import manifest

DOCS = Path(__file__).resolve().parents[1]


def _cost(module: nn.Module, x: torch.Tensor) -> tuple[int, int]:
    """Parameters and multiply-adds of one forward."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module.eval()(x)
    return sum(p.numel() for p in module.parameters()), counter.get_total_flops() // 2


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head, *body = (f"| {' | '.join(row)} |" for row in (list(header), *rows))
    return "\n".join([head, f"|{'---|' * (head.count('|') - 1)}", *body])


def models() -> str:
    """Size of every registered model."""
    rows, image = [], torch.randn(1, 3, 224, 224)
    for name in timm.list_models(module="efficientvit_ml", exclude_filters="*_mxa"):
        costs = [_cost(timm.create_model(n, num_classes=14), image) for n in (name, f"{name}_mxa")]
        rows.append([f"`{name}`", *(text for p, macs in costs for text in (f"{p / 1e6:.2f}", f"{macs / 1e9:.3f}"))])
    return _table(("Name", "Parameters (M)", "GMACs", "with `_mxa`: parameters (M)", "GMACs"), rows)


def weights() -> str:
    """Every entry of the manifest that has weights, and the tags that have none."""
    rows, absent = [], Counter()
    for name, entry in manifest().items():
        if not entry["sha256"]:
            absent[name.partition(".")[2]] += 1
            continue
        auc, low, high = entry["metrics"]["macro_auc_min20"]
        where = f"`{entry['repo']}` on the Hub" if entry["repo"] else "come with the package"
        size = f"{entry['size'] / 1e6:.1f} MB, {where}"
        side = "x".join(map(str, entry["preprocessing"]["input_size"][1:]))
        data = re.sub(r" \(docs/(.*)\)", r" ([its card](\1))", entry["data"])
        rows.append([f"`{name}`", size, side, data, f"{auc:.3f} ({low:.3f} to {high:.3f})", entry["license"]])
    table = _table(("Name", "Weights", "Input", "Data", "Test AUC", "Licence"), rows)
    lacking = " and ".join(f"the tag `.{tag}` of {count} architectures" for tag, count in absent.items())
    return f"{table}\n\nNot published yet: {lacking}."


def cost() -> str:
    """Parameters and multiply-adds of each layer, and of what is added to three networks."""
    maps, image, dim = torch.randn(1, 256, 14, 14), torch.randn(1, 3, 224, 224), 256
    own = {
        "`MXABlock(256)`": layers.MXABlock(dim),
        "its `ROIPool(256)`": layers.ROIPool(dim),
        "its `CBAM(256)`": layers.CBAM(dim),
    }
    rows = []
    for name, module in own.items():
        parameters, macs = _cost(module, maps)
        rows.append([name, f"{parameters:,}", f"{macs / 1e6:.2f} M", ""])
    places = {"vit_tiny_patch16_224": {}, "resnet18": {"where": "layer4.*.conv2"}, "efficientvit_m0": {}}
    adds: dict[str, Callable] = {"`graft`": layers.graft, "`attach_finding_head`": layers.attach_finding_head}
    for network, where in places.items():
        pool = {"global_pool": "avg"} if network.startswith("vit") else {}
        before = _cost(timm.create_model(network, num_classes=14, **pool), image)
        for name, add in adds.items():
            options = where if add is layers.graft else {}
            after = _cost(add(timm.create_model(network, num_classes=14, **pool), **options), image)
            shares = [f"{now / was:.3f} times" for now, was in zip(after, before, strict=True)]
            rows.append([f"{name} on `{network}`", f"{after[0] - before[0]:,}", f"{(after[1] - before[1]) / 1e6:.0f} M",
                         f"{shares[0]}; {shares[1]}"])  # fmt: skip
    return _table(("", "Parameters added", "Multiply-adds added", "The whole network: parameters; multiply-adds"), rows)


TABLES = {"models.md": (models, weights), "block.md": (cost,)}


def filled(page: str) -> str:
    """The text of a page with its tables made anew."""
    text = (DOCS / page).read_text(encoding="utf-8")
    for make in TABLES[page]:
        place = rf"(<!-- table: {make.__name__} -->\n).*?(<!-- end -->)"
        text, found = re.subn(place, lambda m: f"{m[1]}\n{make()}\n\n{m[2]}", text, flags=re.DOTALL)  # noqa: B023
        assert found == 1, f"{page} has no place for the table {make.__name__}"
    return text


if __name__ == "__main__":
    for page in TABLES:
        (DOCS / page).write_text(filled(page), encoding="utf-8")
