"""The picture of one image of ``mxa predict``: where the model finds what it finds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..data import create_transform
from ..data.image_io import read_image
from ..explain import FindingAt, draw_findings, draw_rois, predict_findings, predict_rois
from ..layers.attach import finding_rows
from ..models.load import load_model, named_outputs
from ..utils.distributed import pick_device

__all__ = ["draw_row"]


def draw_row(name: str, device: str | None, row: Mapping[str, Any], output: Path) -> None:
    """Draws an image with the box of each finding, where the model has a finding head, else with its blocks' boxes.

    Args:
        name: Run folder, or a timm name with weights.
        device: Of PyTorch.
        row: What ``predict`` gives for the image. The findings are those it calls positive, or the three most probable.
        output: PNG file.

    Raises:
        InputError: the model has neither a finding head nor an MXA block.
    """
    model, path = load_model(name).to(pick_device(device)), Path(row["file"])
    transform = create_transform(model)
    x = transform(read_image(path, transform.decode_size))[None].to(next(model.parameters()).device)
    image, shown = read_image(path), Path(name).name
    if finding_rows(model) is None:
        draw_rois(image, predict_rois(model, x), output, f"{path.name}: regions of the MXA blocks", shown)
        return
    found, labels = predict_findings(model, x), named_outputs(model)
    placed = {labels[label]: i for i, label in enumerate(found.rows)}
    probabilities = row["probabilities"]
    called = row.get("positive", sorted(placed, key=lambda label: -probabilities[label])[:3])
    places = {
        f"{label} {probabilities[label]:.2f}": FindingAt(
            found.heat_maps[0, placed[label]], found.boxes[0, placed[label]]
        )
        for label in called
        if label in placed
    }
    kind = "positive findings" if "positive" in row else "the most probable findings"
    draw_findings(image, places, output, f"{path.name}: {kind}", shown)
