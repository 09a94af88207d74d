import math

import pytest
import torch
import torch.nn.functional as F

from mxa.layers import MeanROIHead, ROIHead, ROIPool, roi_resize

HEADS = {"softmax": ROIHead, "mean": MeanROIHead}
BOXES = [[0.13, 0.27, 0.71, 0.88], [0.0, 0.0, 0.31, 0.42], [0.57, 0.63, 1.0, 1.0]]


def resize_loop(x, boxes):
    """Bilinear crop, one output cell at a time; coordinates of cell centres, clamped to the border cells."""
    channels, height, width = x.shape[1:]
    out = torch.empty(x.shape, dtype=torch.float64)
    for b, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        for i in range(height):
            at_y = min(max((y1 + (y2 - y1) * (i + 0.5) / height) * height - 0.5, 0), height - 1)
            top = math.floor(at_y)
            bottom = min(top + 1, height - 1)
            for j in range(width):
                at_x = min(max((x1 + (x2 - x1) * (j + 0.5) / width) * width - 0.5, 0), width - 1)
                left = math.floor(at_x)
                right = min(left + 1, width - 1)
                dy, dx = at_y - top, at_x - left
                for c in range(channels):
                    upper = (1 - dx) * x[b, c, top, left].item() + dx * x[b, c, top, right].item()
                    lower = (1 - dx) * x[b, c, bottom, left].item() + dx * x[b, c, bottom, right].item()
                    out[b, c, i, j] = (1 - dy) * upper + dy * lower
    return out


def grid_sample_crop(x, boxes):
    x1, y1, x2, y2 = boxes.unbind(1)
    zero = torch.zeros_like(x1)
    theta = torch.stack([x2 - x1, zero, x1 + x2 - 1, zero, y2 - y1, y1 + y2 - 1], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def perturbed(module, seed=0):
    """Gives every parameter and every running statistic a value of its own."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.5 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
        for name, b in module.named_buffers():
            if b.is_floating_point():
                noise = 0.3 * torch.rand(b.shape, generator=generator, dtype=b.dtype)
                b.add_(noise if "var" in name else noise - 0.15)
    return module


@pytest.mark.parametrize("size", [(5, 7), (8, 3), (1, 1), (1, 6)])
def test_resize_equals_loop(size):
    torch.manual_seed(0)
    x = torch.randn(3, 2, *size, dtype=torch.float64)
    boxes = torch.tensor(BOXES, dtype=torch.float64)
    torch.testing.assert_close(roi_resize(x, boxes), resize_loop(x, boxes))


@pytest.mark.parametrize("size", [(5, 7), (12, 12), (1, 1)])
@pytest.mark.parametrize("batch", [1, 3])
def test_resize_equals_grid_sample_in_values_and_gradients(batch, size):
    torch.manual_seed(0)
    x = torch.randn(batch, 4, *size, dtype=torch.float64)
    boxes = torch.tensor(BOXES[:batch], dtype=torch.float64)
    weight = torch.randn_like(x)
    results = []
    for crop in (roi_resize, grid_sample_crop):
        inputs = x.clone().requires_grad_(), boxes.clone().requires_grad_()
        out = crop(*inputs)
        results.append((out, *torch.autograd.grad((out * weight).sum(), inputs)))
    torch.testing.assert_close(results[0], results[1])
    assert size == (1, 1) or results[0][2].abs().min() > 0


def test_resize_gradcheck_in_map_and_boxes():
    torch.manual_seed(0)
    x = torch.randn(3, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    boxes = torch.tensor(BOXES, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(roi_resize, (x, boxes))
    assert torch.autograd.gradgradcheck(lambda x: roi_resize(x, boxes.detach()), (x,))


@pytest.mark.parametrize("size", [(1, 1), (6, 9), (56, 40)])
def test_whole_map_is_the_identity(size):
    x = torch.randn(2, 3, *size)
    torch.testing.assert_close(roi_resize(x, torch.tensor([[0.0, 0.0, 1.0, 1.0]] * 2)), x, atol=2e-5, rtol=0)


@pytest.mark.parametrize("size", [(3, 4), (4, 2), (20, 20), (1, 1)])
def test_another_size_is_the_mean_of_points_of_the_box(size):
    """As cropped at a multiple of that size, then averaged."""
    torch.manual_seed(0)
    x = torch.randn(3, 2, 12, 8, dtype=torch.float64)
    boxes = torch.tensor(BOXES, dtype=torch.float64)
    by = [math.ceil(n / out) for n, out in zip(x.shape[2:], size, strict=True)]
    x1, y1, x2, y2 = boxes.unbind(1)
    zero = torch.zeros_like(x1)
    theta = torch.stack([x2 - x1, zero, x1 + x2 - 1, zero, y2 - y1, y1 + y2 - 1], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(theta, [3, 2, by[0] * size[0], by[1] * size[1]], align_corners=False)
    fine = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    torch.testing.assert_close(roi_resize(x, boxes, size), F.avg_pool2d(fine, by))
    inputs = x[:1, :1].clone().requires_grad_(), boxes[:1].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, boxes: roi_resize(x, boxes, size), inputs)


def test_the_whole_of_a_finer_map_is_its_mean():
    x = torch.randn(2, 3, 20, 12)
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]] * 2)
    torch.testing.assert_close(roi_resize(x, whole, (5, 3)), F.avg_pool2d(x, 4), atol=2e-5, rtol=0)
    assert torch.equal(roi_resize(x, whole, (20, 12)), roi_resize(x, whole))


def test_each_map_is_cropped_by_its_own_box():
    x = torch.arange(12.0).repeat(2, 1, 12, 1)  # the value is the column
    out = roi_resize(x, torch.tensor([[0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0]]))
    torch.testing.assert_close(out.mean((1, 2, 3)), torch.tensor([2.5 + 0.25 / 12, 8.5 - 0.25 / 12]), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[:, ::2, 1:, :-1],
        lambda x: x.transpose(2, 3),
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: x[:, :1].expand(-1, 5, -1, -1),
    ],
    ids=["slice", "transpose", "channels_last", "expand"],
)
def test_resize_takes_any_strides(view):
    torch.manual_seed(0)
    x, boxes = view(torch.randn(3, 4, 6, 8)), torch.tensor(BOXES)
    torch.testing.assert_close(roi_resize(x, boxes), roi_resize(x.clone(memory_format=torch.contiguous_format), boxes))


@pytest.mark.parametrize(
    ("dtype", "atol"), [(torch.float32, 1e-5), (torch.float16, 4e-3), (torch.bfloat16, 3e-2), (torch.float64, 1e-5)]
)
@pytest.mark.parametrize("box_dtype", [torch.float32, torch.float64])
def test_resize_keeps_the_dtype_of_the_map(dtype, box_dtype, atol):
    torch.manual_seed(0)
    x = torch.rand(3, 1, 20, 56).to(dtype)  # coordinates in half precision would be off by 0.1 cells
    boxes = torch.tensor(BOXES, dtype=box_dtype)
    out = roi_resize(x, boxes)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), resize_loop(x, boxes), atol=atol, rtol=0)


@pytest.mark.parametrize("size", [(7, 7), (14, 9), (1, 1), (3, 50)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_first_box_is_the_centred_80_percent(size, dtype):
    x = torch.randn(2, 8, *size, dtype=dtype)
    expected = torch.tensor([[0.1, 0.1, 0.9, 0.9]] * 2, dtype=dtype)
    torch.testing.assert_close(
        ROIHead(8, dtype=dtype)(x), expected, rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-8
    )


def test_first_box_of_the_mean_head_is_near_the_centred_80_percent():
    torch.manual_seed(0)
    boxes = MeanROIHead(32)(torch.randn(16, 32, 14, 14))
    torch.testing.assert_close(boxes.mean(0), torch.tensor([0.1, 0.1, 0.9, 0.9]), atol=0.1, rtol=0)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_boxes_are_always_valid(head, dtype):
    generator = torch.Generator().manual_seed(0)
    widest = 2.0 if dtype == torch.float16 else 8.0  # in decades; activations stay finite

    def scale():
        return 10 ** (widest * (torch.rand((), generator=generator) - 0.5)).item()

    for trial in range(100):
        torch.manual_seed(trial)
        min_size = 0.02 + 0.5 * torch.rand((), generator=generator).item()
        module = HEADS[head](6, min_size=min_size, dtype=dtype).train(trial % 2 == 0)
        size = torch.randint(1, 12, (2,), generator=generator).tolist()
        x = (torch.randn(3, 6, *size) * scale() + scale()).to(dtype)
        with torch.no_grad():
            for p in module.parameters():
                p.copy_(torch.randn(p.shape) * scale())
            if head == "softmax":
                module.log_scale.copy_(torch.randn(2) * scale() * 10)
            boxes = module(x)
        assert boxes.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert boxes.min() >= 0
        assert boxes.max() <= 1
        assert (boxes[:, 2:] - boxes[:, :2]).min() >= min_size - 1e-6


@pytest.mark.parametrize("log_scale", [-1e4, -20.0, 3.0, 20.0, 89.0, 1e4])
def test_scale_saturates(log_scale):
    head = ROIHead(4).eval()
    torch.nn.init.constant_(head.log_scale, log_scale)
    box = head(torch.randn(1, 4, 7, 9))
    expected = [0.0, 0.0, 1.0, 1.0] if log_scale > 0 else [0.45, 0.45, 0.55, 0.55]
    torch.testing.assert_close(box, torch.tensor([expected]), atol=1e-6, rtol=0)
    (box[:, 2:] - box[:, :2]).sum().backward()
    assert head.log_scale.grad.isfinite().all()


def spotlight(sharpness):
    """A head whose score is the map, blurred over 3x3 cells, times sharpness."""
    head = ROIHead(1, hidden_dim=1).eval()
    with torch.no_grad():
        for conv in (head.score[0], head.score[3]):
            conv.weight.fill_(1 / conv.weight[0].numel())
        head.score[-1].weight.fill_(sharpness)
    return head


def spot(x, y, size=(24, 32)):
    """A map with one bright square of 5x5 cells at column x, row y."""
    image = torch.zeros(1, 1, *size)
    image[:, :, y : y + 5, x : x + 5] = 1
    return image


def centre(boxes):
    return (boxes[:, :2] + boxes[:, 2:]) / 2


@pytest.mark.parametrize(("x", "y"), [(3, 3), (25, 3), (3, 17), (14, 10), (25, 17)])
def test_box_follows_a_bright_spot(x, y):
    target = torch.tensor([[(x + 2.5) / 32, (y + 2.5) / 24]])
    distances = [(centre(spotlight(s)(spot(x, y))) - target).norm().item() for s in (0.0, 2.0, 5.0, 40.0)]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 1e-4


def test_box_is_translation_equivariant_in_the_interior():
    head = spotlight(60.0)
    shift = torch.tensor([6 / 32, -7 / 24])
    first, second = head(spot(9, 12)), head(spot(15, 5))
    torch.testing.assert_close(second, first + torch.cat([shift, shift]), atol=1e-5, rtol=0)


def test_mean_head_is_blind_to_where_things_are():
    torch.manual_seed(0)
    head = perturbed(MeanROIHead(1))
    first, second = head(spot(9, 12)), head(spot(15, 5))
    torch.testing.assert_close(second, first, atol=1e-6, rtol=0)
    assert (head(2 * spot(9, 12)) - first).abs().max() > 1e-4


def test_mean_head_puts_its_corners_in_order():
    torch.manual_seed(0)
    head, x = MeanROIHead(8), torch.randn(2, 8, 5, 7)
    boxes = head(x)
    with torch.no_grad():
        for p in head.conv2.parameters():
            p.copy_(p[[2, 3, 0, 1]])
    torch.testing.assert_close(head(x), boxes)


def test_heat_map_is_a_distribution():
    head = perturbed(ROIHead(8, dtype=torch.bfloat16))
    heat = head.heat_map(torch.randn(3, 8, 5, 7, dtype=torch.bfloat16))
    assert heat.shape == (3, 5, 7)
    assert heat.dtype == torch.float32
    assert heat.min() >= 0
    assert heat.std() > 1e-3
    torch.testing.assert_close(heat.sum((1, 2)), torch.ones(3))


@pytest.mark.parametrize("log_scale", [math.log(0.8), 3.0], ids=["inside", "on the clamp"])
def test_every_parameter_gets_a_gradient(log_scale):
    torch.manual_seed(0)
    pool = ROIPool(8)
    torch.nn.init.normal_(pool.head.score[-1].weight)
    torch.nn.init.constant_(pool.head.log_scale, log_scale)
    x = torch.randn(2, 8, 9, 11)
    (pool(x) * torch.randn_like(x)).sum().backward()
    for name, p in pool.named_parameters():
        assert p.grad.isfinite().all(), name
        assert p.grad.abs().max() > 0, name
    assert pool.head.log_scale.grad.abs().min() > 0


def test_first_gradient_reaches_the_last_convolution_and_the_scale():
    torch.manual_seed(0)
    pool, x = ROIPool(8), torch.randn(2, 8, 9, 11)
    (pool(x) * torch.randn_like(x)).sum().backward()
    assert pool.head.score[-1].weight.grad.abs().max() > 0
    assert pool.head.log_scale.grad.abs().min() > 0


def test_every_parameter_of_the_mean_head_gets_a_gradient():
    torch.manual_seed(0)
    pool, x = ROIPool(8, "mean"), torch.randn(2, 8, 9, 11)
    (pool(x) * torch.randn_like(x)).sum().backward()
    assert all(p.grad.abs().max() > 0 for p in pool.parameters())


def test_box_on_the_border_can_leave_it():
    head = ROIHead(4)
    torch.nn.init.constant_(head.log_scale, 1.0)
    optimizer = torch.optim.SGD(head.parameters(), lr=1.0)
    for _ in range(3):
        box = head(torch.randn(2, 4, 7, 7))
        optimizer.zero_grad()
        (box[:, 2:] - box[:, :2]).sum().backward()
        optimizer.step()
    assert head(torch.randn(2, 4, 7, 7)).max() < 1


def conv_loop(x, conv):
    """Convolution of one map, C x H x W nested lists, with zero padding and stride 1."""
    height, width = len(x[0]), len(x[0][0])
    weight = conv.weight.tolist()
    bias = [0.0] * len(weight) if conv.bias is None else conv.bias.tolist()
    per_group = len(weight) // conv.groups
    pad = len(weight[0][0]) // 2
    out = [[[bias[o]] * width for _ in range(height)] for o in range(len(weight))]
    for o, filters in enumerate(weight):
        for c, kernel in enumerate(filters):
            source = x[o // per_group * len(filters) + c]
            for i in range(height):
                for j in range(width):
                    for u, row in enumerate(kernel):
                        for v, w in enumerate(row):
                            y, z = i + u - pad, j + v - pad
                            if 0 <= y < height and 0 <= z < width:
                                out[o][i][j] += w * source[y][z]
    return out


def norm_loop(x, norm):
    stats = zip(
        *(t.tolist() for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias)), x, strict=True
    )  # one channel at a time
    return [[[(v - m) / math.sqrt(s + norm.eps) * w + b for v in row] for row in c] for m, s, w, b, c in stats]


def relu_loop(x):
    return [[[max(v, 0.0) for v in row] for row in c] for c in x]


def softmax_box_loop(head, x):
    """Box from mean and spread of the softmax of one map's scores."""
    s = head.score
    x = relu_loop(norm_loop(conv_loop(x, s[0]), s[1]))
    x = relu_loop(norm_loop(conv_loop(x, s[3]), s[4]))
    score = conv_loop(x, s[6])[0]
    height, width = len(score), len(score[0])
    total = sum(math.exp(v) for row in score for v in row)
    cells = [(math.exp(score[i][j]) / total, i, j) for i in range(height) for j in range(width)]
    edges = []
    for axis, size in ((2, width), (1, height)):
        mean = sum(c[0] * (c[axis] + 0.5) / size for c in cells)
        # the variance of a piecewise constant density: exact integral over each cell
        second = sum(c[0] * ((c[axis] + 1) ** 3 - c[axis] ** 3) / (3 * size**2) for c in cells)
        scale = math.exp(head.log_scale[2 - axis].item())
        edges.append(ends(mean, math.sqrt(3 * (second - mean**2)) * scale, head.min_size))
    return [edges[0][0], edges[1][0], edges[0][1], edges[1][1]]


def mean_box_loop(head, x):
    corners = conv_loop(relu_loop(conv_loop(x, head.conv1)), head.conv2)
    a = [sum(1 / (1 + math.exp(-v)) for row in c for v in row) / (len(c) * len(c[0])) for c in corners]
    edges = [ends((a[k] + a[k + 2]) / 2, abs(a[k + 2] - a[k]) / 2, head.min_size) for k in (0, 1)]
    return [edges[0][0], edges[1][0], edges[0][1], edges[1][1]]


def ends(centre, half, min_size):
    centre = min(max(centre, min_size / 2), 1 - min_size / 2)
    half = min(max(half, min_size / 2), 1.0)
    return max(centre - half, 0.0), min(centre + half, 1.0)


@pytest.mark.parametrize(("roi_head", "box_loop"), [("softmax", softmax_box_loop), ("mean", mean_box_loop)])
@pytest.mark.parametrize("min_size", [0.1, 0.7])
def test_pool_equals_loop(roi_head, box_loop, min_size):
    torch.manual_seed(0)
    pool = perturbed(ROIPool(8, roi_head, min_size, dtype=torch.float64)).eval()
    x = torch.randn(2, 8, 4, 5, dtype=torch.float64)
    boxes = torch.tensor([box_loop(pool.head, image) for image in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(pool.head(x), boxes)
    torch.testing.assert_close(pool(x), resize_loop(x, boxes))


@pytest.mark.parametrize("name", ["", "max", "Softmax"])
def test_unknown_head_is_an_error(name):
    with pytest.raises(ValueError, match="unknown roi_head"):
        ROIPool(8, name)
