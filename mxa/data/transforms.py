"""The one transform of training, evaluation, prediction and benchmarks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from timm.data.model_config import resolve_input_data_config
from timm.data.transforms import str_to_interp_mode
from torch import nn
from torchvision import transforms, tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as v2F

from ..utils.errors import InputError
from .gray import input_gray

__all__ = ["ToXrayTensor", "XrayTransform", "create_transform", "data_config"]


def data_config(model: nn.Module, img_size: int | tuple[int, int] | None = None) -> dict:
    """Returns a model's preprocessing: ``input_size``, ``mean``, ``std``, ``interpolation`` (timm's names).

    Args:
        model: Any timm model.
        img_size: Side of the input, or its height and width, for a model that takes any; its own by default.
    """
    return resolve_input_data_config(model, {"img_size": img_size})


_LEAST_SEEN = 0.25  # share of a box that a crop must keep


class RandomPart(transforms.RandomResizedCrop):
    """A random part of an image, resized; ``ratio`` changes the image's own aspect ratio, as the squash does.

    Boxes may go with the image. One of which less than a quarter is kept becomes empty, at (0, 0).
    """

    def forward(
        self, image: Image.Image, boxes: tv_tensors.BoundingBoxes | None = None
    ) -> Image.Image | tuple[Image.Image, tv_tensors.BoundingBoxes]:
        """Cuts and resizes an image ``(H, W)``, and its boxes ``(K, 4)``."""
        part = self.get_params(image, self.scale, self.ratio)  # top, left, height, width
        image = v2F.resized_crop(image, *part, self.size, self.interpolation)
        if boxes is None:
            return image
        cut = v2F.resized_crop(boxes, *part, self.size)
        enlarged = self.size[0] * self.size[1] / (part[2] * part[3])
        seen = _areas(cut) >= _LEAST_SEEN * enlarged * _areas(boxes)
        return image, tv_tensors.wrap(cut * seen[:, None], like=cut)

    @staticmethod
    def get_params(image: Image.Image, scale: tuple[float, float], ratio: tuple[float, float]) -> tuple[int, ...]:
        """Draws top, left, height and width."""
        aspect = image.width / image.height
        return transforms.RandomResizedCrop.get_params(image, scale, [r * aspect for r in ratio])


def _areas(boxes: torch.Tensor) -> torch.Tensor:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


class ToXrayTensor:
    """Turns a gray PIL image (``"L"``, or ``"F"`` in [0, 255]) into a normalised tensor ``(C, H, W)``, float32.

    The image becomes C channels only here.

    Args:
        mean: Mean of each of the C channels, for values in [0, 1].
        std: Standard deviation of each.
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]):
        self.mean = np.array(mean, dtype=np.float32)[:, None, None]
        self.std = np.array(std, dtype=np.float32)[:, None, None]

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """Converts one image."""
        x = np.asarray(image, dtype=np.float32).clip(0, 255) / 255  # numpy: torch's threads cost more than they bring
        return torch.from_numpy((x[None] - self.mean) / self.std)

    def normalize(self, planes: torch.Tensor) -> torch.Tensor:
        """Converts the gray planes of a batch, ``(B, 1, H, W)`` in [0, 255], to ``(B, C, H, W)``."""
        return self.normalizer(planes.device)(planes)

    def normalizer(self, device: torch.device | str) -> Callable[[torch.Tensor], torch.Tensor]:
        """Returns ``normalize`` for planes on a device, with mean and deviation copied there once."""
        mean, std = (torch.from_numpy(v).to(device) for v in (self.mean, self.std))
        return lambda planes: (planes.float().clamp(0, 255) / 255 - mean) / std


class XrayTransform(transforms.Compose):
    """What ``create_transform`` returns: ``to_gray``, steps from image to image, then ``to_tensor``.

    It takes what ``read_image`` returns, and whatever ``to_gray`` takes. A PIL image of mode F may also be in [0, 255],
    if it has values above 1.

    Attributes:
        decode_size: Height and width that an image must have for the smallest part kept to be no smaller than the
            input (see ``read_image``).
        to_tensor: The last step. But for that of ``to_planes``, its ``normalize`` makes the input of a batch of planes.
    """

    to_tensor: Any

    def __init__(self, steps: list, to_tensor: Callable[[Image.Image], torch.Tensor], decode_size: tuple[int, int]):
        super().__init__([*steps, to_tensor])
        self.to_tensor, self.decode_size = to_tensor, decode_size

    def __call__(
        self, image: Image.Image | np.ndarray | torch.Tensor, boxes: tv_tensors.BoundingBoxes | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, tv_tensors.BoundingBoxes]:
        """Transforms one image, and boxes in it ``(K, 4)`` that move with the picture.

        Raises:
            InputError: as ``to_gray``; boxes with one of the paper's sets of augmentations.
        """
        image = input_gray(image)
        if boxes is None:
            return super().__call__(image)
        *steps, to_tensor = self.transforms
        for step in steps:
            if not isinstance(step, (v2.Transform, RandomPart)):
                raise InputError("boxes do not move with the augmentations paper and better: give --augment crop")
            image, boxes = step(image, boxes)
        return to_tensor(image), boxes

    def to_planes(self) -> XrayTransform:
        """Returns the same transform without the normalisation.

        It gives the gray plane ``(1, H, W)``: uint8, or float32 for an image deeper than 8 bits.
        ``to_tensor.normalize`` makes the model's input of a batch of them.
        """
        return XrayTransform(self.transforms[:-1], _to_plane, self.decode_size)


def _to_plane(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image))[None]


def _to_8_bit(image: Image.Image) -> Image.Image:
    return image if image.mode == "L" else Image.fromarray(np.asarray(image).round().clip(0, 255).astype(np.uint8))


def _named_set(name: str, size: list[int], interpolation: transforms.InterpolationMode) -> list:
    """The steps of one of the paper's sets; their operations want 8 bits."""
    whole = [transforms.Resize(size, interpolation), transforms.Lambda(_to_8_bit)]
    if name == "paper":
        hparams = {"translate_const": round(0.45 * min(size)), "img_mean": 124}  # what timm gives them, one channel
        return [*whole, rand_augment_transform("rand-m5-mstd0.2-inc2", hparams)]
    if name == "better":
        bilinear = transforms.InterpolationMode.BILINEAR
        return [
            *whole,
            transforms.RandomApply([transforms.ElasticTransform()], 0.6),
            transforms.RandomApply([transforms.GaussianBlur(3)], 0.4),
            transforms.RandomHorizontalFlip(),
            transforms.RandomRotation(10, bilinear),
            transforms.RandomAffine(10, (0.05, 0.05), (0.9, 1.1), interpolation=bilinear),
            RandomPart(size, (0.8, 1.0), (3 / 4, 4 / 3), interpolation),
        ]
    raise InputError(f"unknown set of augmentations {name!r}: give crop, paper or better")


def create_transform(
    cfg: Mapping | nn.Module,
    is_training: bool = False,
    scale: tuple[float, float] = (0.8, 1.0),
    ratio: tuple[float, float] = (0.9, 1.1),
    rotation: float = 10.0,
    hflip: float = 0.0,
    augment: Literal["crop", "paper", "better"] = "crop",
) -> XrayTransform:
    """Creates the transform from an image to a model's input ``(C, H, W)``.

    The image is what ``read_image`` returns, or any PIL image, array or tensor that ``to_gray`` takes.

    Without training the whole image is resized to the input size: an X-ray is never cropped, so ``crop_pct`` does not
    apply. In training a random part of it is, then rotated and flipped.

    Args:
        cfg: A model, or its configuration: ``input_size``, ``mean``, ``std``, ``interpolation``.
        is_training: Augment; the fields below apply only then.
        scale: Range of the area that is kept, in (0, 1].
        ratio: Range of the change of the aspect ratio, above 0.
        rotation: Largest angle, in degrees, either way.
        hflip: Probability of a horizontal flip. It mirrors the heart: off by default.
        augment: ``"crop"``, what the four above say. Or a set of the paper's, for which they do not count:
            ``"paper"`` (appendix P), the whole image with RandAugment (2 of its operations, magnitude 5 +- 0.2);
            ``"better"`` (its published code's, the ablation's), the whole image with elastic deformation (probability
            0.6), blur (0.4), flip (0.5), rotation (10 degrees), shift and scale (5 and 10 %), and a crop of 80 %
            or more.

    Raises:
        InputError: the model takes neither 1 nor 3 channels, ``scale`` or ``ratio`` is not such a range, or an unknown
            set.
    """
    for name, (low, high), most, of in (("scale", scale, 1, "in (0, 1]"), ("ratio", ratio, math.inf, "above 0")):
        if not 0 < low <= high <= most:
            raise InputError(f"{name} must be a range {of}, the lower end first, got {(low, high)}")
    cfg = data_config(cfg) if isinstance(cfg, nn.Module) else cfg
    channels, *size = cfg["input_size"]
    if channels not in (1, 3):
        raise InputError(f"the model takes {channels} channels; an X-ray gives 1 or 3")
    mean, std = (tuple(cfg[k]) * channels if len(cfg[k]) == 1 else tuple(cfg[k]) for k in ("mean", "std"))
    if len(mean) != channels:
        mean, std = (sum(mean) / len(mean),) * channels, (sum(std) / len(std),) * channels
    interpolation = str_to_interp_mode(cfg.get("interpolation", "bicubic"))
    steps: list = [v2.Resize(size, interpolation)]
    if is_training:
        steps = [RandomPart(size, scale, ratio, interpolation)]
        if rotation:
            steps.append(v2.RandomRotation(rotation, v2.InterpolationMode.BILINEAR))
        if hflip:
            steps.append(v2.RandomHorizontalFlip(hflip))
    least = scale[0] * min(ratio[0], 1 / ratio[1]) if is_training else 1.0
    if is_training and augment != "crop":
        steps, least = _named_set(augment, size, interpolation), 0.8 if augment == "better" else 1.0
    decode_size = tuple(math.ceil(side / math.sqrt(least)) for side in size)
    return XrayTransform(steps, ToXrayTensor(mean, std), decode_size)
