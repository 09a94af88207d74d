"""Where a model of ``mxa predict`` finds what it finds: the boxes of its findings, and a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...data import create_transform
from ...data.image_io import read_image
from ...explain import FindingAt, Findings, draw_findings, draw_rois, predict_findings, predict_rois
from ...layers.attach import finding_rows
from ...models.load import load_model, named_outputs
from ...utils.distributed import pick_device

__all__ = ["Places"]


class Places:
    """Finds places with PyTorch.

    Args:
        model: Run folder, or a timm name with weights.
        device: Of PyTorch; ``cuda`` where there is one, else ``cpu``, by default.
    """

    def __init__(self, model: str, device: str | None = None):
        self.name = Path(model).name
        self.model = load_model(model, finding_head=True).to(pick_device(device))
        self.labels = named_outputs(self.model)
        self._transform = create_transform(self.model)

    def _input(self, path: Path) -> torch.Tensor:
        image = read_image(path, self._transform.decode_size)
        return self._transform(image)[None].to(next(self.model.parameters()).device)

    def _findings(self, path: Path) -> tuple[Findings, dict[str, int]] | None:
        """The findings of the finding head, and the row of each label; None without a head."""
        if finding_rows(self.model) is None:
            return None
        found = predict_findings(self.model, self._input(path))
        return found, {self.labels[label]: i for i, label in enumerate(found.rows)}

    def boxes(self, path: Path) -> dict[str, tuple[float, ...]]:
        """Returns the box of each label of a finding head: ``x1, y1, x2, y2`` in [0, 1]; none without such a head.

        Raises:
            InputError: the image does not read.
        """
        found, placed = self._findings(path) or (None, {})
        return {label: tuple(found.boxes[0, i].tolist()) for label, i in placed.items()}

    def draw(self, row: Mapping[str, Any], output: Path) -> None:
        """Draws an image with the box of each finding, where there is a finding head, else with its blocks' boxes.

        Args:
            row: What ``predict`` gives for the image. The findings are those it calls positive, or the three most
                probable.
            output: PNG file.

        Raises:
            InputError: the image does not read, or the model has neither a finding head nor an MXA block.
        """
        path = Path(row["file"])
        image, head = read_image(path), self._findings(path)
        if head is None:
            boxes = predict_rois(self.model, self._input(path))
            draw_rois(image, boxes, output, f"{path.name}: regions of the MXA blocks", self.name)
            return
        found, placed = head
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
        draw_findings(image, places, output, f"{path.name}: {kind}", self.name)
