"""The README.md of a published model."""

from __future__ import annotations

from typing import Any

import yaml

from ...utils.config import write_yaml
from ...utils.text import for_markdown, printable
from .rows import card

__all__ = ["model_card"]

_PAPER = (
    "Rand and Ibrahim, *Beyond Conventional Transformers: A Medical X-ray Attention Block for Improved Multi-Label "
    "Diagnosis*"
)


def model_card(name: str, entry: dict[str, Any], result: dict[str, Any]) -> str:
    """Returns the card of a model: how it is loaded, what it is for, its data and terms, its numbers, its limits.

    Args:
        name: The name for ``timm.create_model``: ``hf-hub:organisation/architecture.tag``, or ``architecture.tag``.
        entry: The model's entry in the manifest.
        result: What ``evaluate`` returned: the model first, then those that it is compared with.
    """
    front = {"library_name": "timm", "license": entry["license"], "tags": ["mxa", "timm", "chest-x-ray", "multi-label"]}
    recipe = {k: v for k, v in entry["recipe"].items() if v is not None}
    scored = {k: v for k, v in result["models"][0]["metadata"][0].items() if k in ("data", "split", "views")}
    seen = ", every image, training images included" if scored.get("split") == "all" else ""
    _, height, width = entry["preprocessing"]["input_size"]
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n",
        f'```python\nimport mxa\nimport timm\n\nmodel = timm.create_model("{name}", pretrained=True).eval()\n'
        "mxa.label_names(model)   # one logit for each\n```\n",
        f"# {name.rpartition('/')[2]}\n",
        f"Findings: {for_markdown(', '.join(entry['labels']))}. The whole image, gray, {height} x {width} pixels "
        "(`mxa.data.create_transform(model)`).\n",
        "## Use\n",
        "For research: to compare, to fine-tune, to study. Not a medical device; not for diagnosis, triage or any "
        "decision about a patient.\n",
        "## Training data\n",
        f"{for_markdown(entry['terms'])}. Labels mined from reports have errors; what a model learns of views, "
        "scanners and wards may stand in for a finding. Recipe:\n",
        f"```yaml\n{write_yaml(_one_line(recipe))}```\n",
        f"Weights: SHA-256 `{entry['sha256']}`, {entry['size']:,} bytes.\n",
        card(result),
        "## Limits\n",
        f"Scored on {for_markdown(', '.join(f'{k} {v}' for k, v in scored.items()))}{seen}, and nowhere else: other "
        "hospitals, scanners and populations give other numbers. Labels with few positives have wide intervals. Scores "
        "are logits; probabilities need calibration on one's own patients (`mxa calibrate`).\n",
        "## Sources\n",
        f"{_PAPER}; Liu et al., *EfficientViT*, CVPR 2023. Made with mxa; cite both, and the data.\n",
    ]
    return "\n".join(parts)


def _one_line(value: Any) -> Any:
    """Values whose texts have one line each, so that none of them ends the block that shows them."""
    if isinstance(value, dict):
        return {printable(k): _one_line(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_one_line(v) for v in value]
    return printable(value) if isinstance(value, str) else value
