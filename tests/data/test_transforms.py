"""One transform for training, evaluation and prediction: values, whole images, and what each field does."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torchvision.transforms import functional as F

from mxa.data import create_transform, data_config
from mxa.data.dataset import seeded
from mxa.data.image_io import read_image
from mxa.utils.errors import InputError

PLAIN = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "rotation": 0.0, "hflip": 0.0}


def cfg(size=(3, 32, 32), mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD, interpolation="bicubic") -> dict:
    return {"input_size": size, "mean": mean, "std": std, "interpolation": interpolation}


def xray(height: int = 40, width: int = 40, seed: int = 0) -> Image.Image:
    """Smooth gray blobs."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 6), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def augmented(image: Image.Image, seed: int = 0, size=(3, 32, 32), **fields) -> torch.Tensor:
    torch.manual_seed(seed)
    return create_transform(cfg(size), is_training=True, **{**PLAIN, **fields})(image)


def test_golden_values():
    image = Image.fromarray(np.uint8([[0, 51], [102, 255]]))  # 0, 0.2, 0.4, 1
    x = create_transform(cfg((3, 2, 2), mean=(0.5, 0.4, 0.0), std=(0.5, 0.2, 1.0)))(image)
    expected = [
        [[-1.0, -0.6], [-0.2, 1.0]],
        [[-2.0, -1.0], [0.0, 3.0]],
        [[0.0, 0.2], [0.4, 1.0]],
    ]
    assert x.dtype == torch.float32
    torch.testing.assert_close(x, torch.tensor(expected))
    one = create_transform(cfg((1, 2, 2), mean=(0.4,), std=(0.2,)))(image)
    torch.testing.assert_close(one, torch.tensor([expected[1]]))


def test_halving_averages_as_bilinear_does():
    image = Image.fromarray(np.uint8([[0, 0, 200, 200], [0, 0, 200, 200]]))
    x = create_transform(cfg((1, 1, 2), (0.0,), (1.0,), "bilinear"))(image)
    # PIL's triangle filter, twice as wide as the step: weights 3/7, 3/7, 1/7 at the border
    torch.testing.assert_close(x, torch.tensor([[[200 / 7, 200 * 6 / 7]]]) / 255, atol=0.5 / 255, rtol=0)


@pytest.mark.parametrize("shape", [(100, 40), (40, 100), (64, 64), (500, 300)])
def test_the_whole_image_is_squashed(shape):
    height, width = shape
    pixels = np.zeros(shape, dtype=np.uint8)
    side = min(shape) // 8
    corners = [(0, 0), (0, width - side), (height - side, 0), (height - side, width - side)]
    for y, x in corners:
        pixels[y : y + side, x : x + side] = 255
    x = create_transform(cfg((1, 32, 32), (0.0,), (1.0,)))(Image.fromarray(pixels))[0]
    assert x.shape == (32, 32)
    assert min(x[0, 0], x[0, -1], x[-1, 0], x[-1, -1]) > 0.6
    mean = 4 * side * side / (height * width)
    assert float(x.mean()) == pytest.approx(mean, rel=0.1)


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_of_a_model(channels):
    model = timm.create_model("efficientvit_ml_m0", in_chans=channels, num_classes=2)
    for is_training in (False, True):
        assert create_transform(model, is_training)(xray()).shape == (channels, 224, 224)


def test_image_size():
    fixed = timm.create_model("efficientvit_ml_m0", img_size=128, num_classes=2)
    assert create_transform(fixed)(xray()).shape == (3, 128, 128)
    flexible = timm.create_model("test_resnet", num_classes=2)
    assert create_transform(data_config(flexible, 96))(xray()).shape == (3, 96, 96)
    assert create_transform({**data_config(flexible), "input_size": (3, 48, 64)})(xray()).shape == (3, 48, 64)


@pytest.mark.parametrize(
    ("mean", "std"), [(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD), ((0.5,) * 3, (0.5,) * 3), ((0.1, 0.2, 0.3),) * 2]
)
def test_three_channels_are_the_gray_plane_under_each_mean_and_std(mean, std):
    image = xray(50, 45)
    rgb = image.resize((32, 32), Image.Resampling.BICUBIC).convert("RGB")
    expected = F.normalize(F.to_tensor(rgb), mean, std)
    torch.testing.assert_close(create_transform(cfg(mean=mean, std=std))(image), expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_mean_and_std_of_another_length(channels):
    image = Image.fromarray(np.full((8, 8), 102, dtype=np.uint8))  # 0.4
    one = create_transform(cfg((channels, 8, 8), (0.2,), (0.5,)))(image)
    torch.testing.assert_close(one, torch.full((channels, 8, 8), 0.4))
    three = create_transform(cfg((channels, 8, 8), (0.1, 0.2, 0.3), (0.3, 0.5, 0.7)))(image)
    expected = {1: [0.4], 3: [1.0, 0.4, 1 / 7]}[channels]
    torch.testing.assert_close(three, torch.tensor(expected)[:, None, None].expand(channels, 8, 8))


@pytest.mark.parametrize("shape", [(40, 40), (40, 60), (90, 40)])
def test_training_with_everything_off_is_evaluation(shape):
    image = xray(*shape)
    expected = create_transform(cfg())(image)
    for seed in range(3):
        torch.testing.assert_close(augmented(image, seed), expected)


@pytest.mark.parametrize("field", [{"scale": (0.3, 0.5)}, {"ratio": (0.5, 0.6)}, {"rotation": 20.0}, {"hflip": 1.0}])
def test_every_training_field_changes_something(field):
    image = xray()
    for seed in range(4):
        plain = augmented(image, seed, scale=(0.5, 0.5))
        changed = augmented(image, seed, **{"scale": (0.5, 0.5), **field})
        assert not torch.allclose(changed, plain, atol=0.05)


def test_evaluation_ignores_the_training_fields():
    image = xray()
    off = create_transform(cfg(), scale=(0.1, 0.2), ratio=(0.5, 2.0), rotation=90.0, hflip=1.0)
    torch.testing.assert_close(off(image), create_transform(cfg())(image), rtol=0, atol=0)


def test_hflip_mirrors():
    image = xray()
    torch.testing.assert_close(augmented(image, hflip=1.0), augmented(image).flip(-1))
    half = [torch.equal(augmented(image, seed, hflip=0.5), augmented(image)) for seed in range(40)]
    assert 8 < sum(half) < 32


def test_rotation_stays_within_its_range():
    pixels = np.zeros((65, 65), dtype=np.uint8)
    pixels[:12, 29:36] = 255  # a bar above the centre
    for seed in range(20):
        x = augmented(Image.fromarray(pixels), seed, (1, 65, 65), rotation=10.0)[0]
        y, x = (x - x.min()).nonzero().float().mean(0) - 32
        assert abs(float(torch.rad2deg(torch.atan2(x, -y)))) < 11


def test_the_crop_keeps_scale_and_shape_of_an_image_that_is_not_square():
    # marks a quarter and three quarters along each axis: their distance in the output is the zoom of that axis
    height, width = 200, 100
    zooms = []
    for seed in range(30):
        places = []
        for axis, length in ((0, height), (1, width)):
            pixels = np.zeros((height, width), dtype=np.uint8)
            index = [slice(None), slice(None)]
            for at in (length * 3 // 8, length * 5 // 8):
                index[axis] = slice(at - 1, at + 1)
                pixels[tuple(index)] = 255
            x = augmented(Image.fromarray(pixels), seed, (1, 128, 128), scale=(0.8, 1.0), ratio=(0.9, 1.1))[0]
            line = x.mean(1 - axis)
            line = line - line.min()
            middle = int((line * torch.arange(128)).sum() / line.sum())
            first, second = line[:middle], line[middle:]
            centre = [float((split * torch.arange(len(split))).sum() / split.sum()) for split in (first, second)]
            places.append((middle + centre[1] - centre[0]) / 128 / 0.25)
        zooms.append(places)
    zooms = np.array(zooms)
    kept, change = 1 / zooms.prod(1), zooms[:, 0] / zooms[:, 1]
    assert kept.min() > 0.77 and kept.max() < 1.03 and np.ptp(kept) > 0.05
    assert change.min() > 0.87 and change.max() < 1.13 and np.ptp(change) > 0.05


@pytest.mark.parametrize("is_training", [False, True])
def test_8_bit_and_deeper_images_agree(is_training):
    image = xray(50, 60)
    results = []
    for mode in ("L", "F"):
        torch.manual_seed(1)
        transform = create_transform(cfg((1, 32, 32), (0.0,), (1.0,)), is_training)
        results.append(transform(image.convert(mode)))
    assert results[0].std() > 0.1
    torch.testing.assert_close(*results, atol=2 / 255, rtol=0)


def test_bicubic_overshoot_of_deep_images_is_cut():
    pixels = np.zeros((40, 40), dtype=np.float32)
    pixels[:, 20:] = 255
    x = create_transform(cfg((1, 100, 100), (0.0,), (1.0,)))(Image.fromarray(pixels))
    assert x.min() == 0 and x.max() == 1


@pytest.mark.parametrize("channels", [2, 4])
def test_other_channel_counts_are_an_error(channels):
    with pytest.raises(InputError, match=f"takes {channels} channels; an X-ray gives 1 or 3"):
        create_transform(cfg((channels, 32, 32)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scale": (1.0, 0.5)}, r"scale must be a range in \(0, 1\], the lower end first, got \(1\.0, 0\.5\)"),
        ({"scale": (0.0, 0.5)}, "scale must be a range"),
        ({"scale": (0.5, 1.5)}, "scale must be a range"),
        ({"ratio": (1.1, 0.9)}, r"ratio must be a range above 0, the lower end first, got \(1\.1, 0\.9\)"),
        ({"ratio": (-1.0, 1.0)}, "ratio must be a range"),
    ],
)
def test_what_is_not_a_range_is_an_error(fields, message):
    with pytest.raises(InputError, match=message):
        create_transform(cfg((3, 32, 32)), is_training=True, **fields)


def test_what_is_decoded_is_enough_for_the_smallest_part():
    fields = {"scale": (0.3, 1.0), "ratio": (0.8, 1.5)}
    transform = create_transform(cfg((3, 96, 64)), is_training=True, **{**PLAIN, **fields})
    height, width = transform.decode_size
    assert (height, width) == (215, 144)  # 96 and 64 over the square root of 0.3 / 1.5
    image = Image.new("L", (2 * width, height))
    split = transform.transforms[0]
    torch.manual_seed(0)
    smallest = np.min([split.get_params(image, split.scale, split.ratio)[2:] for _ in range(3000)], axis=0)
    assert smallest[0] >= 96 and smallest[1] >= 2 * 64
    assert smallest[0] < 110 and smallest[1] < 2 * 90  # not much more than needed
    assert create_transform(cfg((3, 96, 64))).decode_size == (96, 64)


def test_golden_tensor_of_a_jpeg(tmp_path):
    """Decoding, draft mode, resizing and normalisation together, pinned."""
    y, x = np.mgrid[:128, :160]
    Image.fromarray(((x * 3 + y * 5) % 256 // 2 + 40).astype(np.uint8)).save(tmp_path / "x.jpg", quality=90)
    transform = create_transform(cfg((3, 32, 40)))
    tensor = transform(read_image(tmp_path / "x.jpg", transform.decode_size))
    expected = [
        [-1.3302, 0.0056, -0.8507, 0.4679],
        [0.3823, -0.4739, -1.3302, 0.0056],
        [-0.0972, -0.9534, 0.3823, -0.4739],
        [-0.5767, -0.3369, -0.0972, -0.9534],
    ]
    torch.testing.assert_close(tensor[0, ::10, ::13], torch.tensor(expected), atol=0.05, rtol=0)  # decoders differ by 1
    assert tensor.shape == (3, 32, 40)
    assert tensor.mean() == pytest.approx(-0.1813, abs=0.005) and tensor.std() == pytest.approx(0.6015, abs=0.005)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["L", "F"])
@pytest.mark.parametrize("name", ["paper", "better"])
def test_the_papers_sets(name, mode, channels):
    cfg = {"input_size": (channels, 48, 48), "mean": (0.5,) * channels, "std": (0.25,) * channels}
    y, x = np.mgrid[:60, :80]
    image = Image.fromarray((120 + 80 * np.sin(x / 9) * np.cos(y / 7)).astype(np.uint8)).convert(mode)
    transform = create_transform(cfg, is_training=True, augment=name)
    seen = []
    for seed in range(12):
        with seeded(0, seed):
            seen.append(transform(image))
        with seeded(0, seed):
            assert torch.equal(transform(image), seen[-1])
    assert all(x.shape == (channels, 48, 48) and x.dtype == torch.float32 for x in seen)
    assert len({x.sum().item() for x in seen}) > 6
    assert all(x.min() >= -2 and x.max() <= 2 for x in seen)
    assert torch.equal(create_transform(cfg, augment=name)(image), create_transform(cfg)(image))  # in training alone
    assert transform.decode_size == ((48, 48) if name == "paper" else (54, 54))
    with pytest.raises(InputError, match="unknown set of augmentations 'mine'"):
        create_transform(cfg, is_training=True, augment="mine")
