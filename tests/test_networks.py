"""Networks: size, shape, gradient and scriptability, against the papers' published code."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from ivdtool.model import attention_maps, build_network
from ivdtool.networks.blocks import Norm
from ivdtool.networks.hca import (
    Depthwise,
    HCANet,
    LargeKernelAttention,
    MultiScaleLargeKernelAttention,
)
from ivdtool.networks.hourglass import StackedHourglass

torch.set_num_threads(1)

SMALL = {"n_labels": 4, "stacks": 2, "channels": 16}
NETWORKS = [
    ("hourglass", {**SMALL, "attention": True}),
    ("hourglass", {**SMALL, "attention": False}),
    ("hourglass", {**SMALL, "stacks": 1}),
    ("hourglass", {**SMALL, "stacks": 4, "blocks": 2}),
    ("hca", SMALL),
    ("hca", {**SMALL, "stacks": 4, "blocks": 2}),
    ("hca", {**SMALL, "local_per_scale": True, "merge": False}),
    ("hca", {**SMALL, "residual": False, "score_lka": True, "feedback": True}),
]


def build(name: str, arguments: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    return build_network(name, arguments).eval()


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


# The authors' code has these numbers of parameters at 11 discs and 3 image channels.
@pytest.mark.parametrize(
    ("stacks", "blocks", "plain", "attention"),
    [
        (1, 1, 3_585_675, 3_620_931),
        (2, 1, 6_727_062, 6_795_086),
        (4, 1, 13_009_836, 13_143_396),
        (2, 4, 24_747_414, 24_815_438),
    ],
)
def test_size_of_paper_1(stacks: int, blocks: int, plain: int, attention: int) -> None:
    with torch.device("meta"):
        for with_attention, expected in ((False, plain), (True, attention)):
            network = StackedHourglass(11, stacks, blocks, in_channels=3, attention=with_attention)
            assert count(network) == expected


@pytest.mark.parametrize(
    ("stacks", "blocks", "expected"),
    [(1, 1, 1_072_787), (2, 1, 1_962_854), (4, 1, 3_742_988), (2, 4, 6_500_198)],
)
def test_size_of_paper_2(stacks: int, blocks: int, expected: int) -> None:
    with torch.device("meta"):
        network = HCANet(
            11, stacks, blocks, in_channels=3, merge=False, score_lka=True, feedback=True
        )
        assert count(network) == expected


@pytest.mark.parametrize("stacks", [1, 2, 4])
def test_size_of_the_merge(stacks: int) -> None:
    """A 1x1 convolution from all stacks' heatmaps to one each; a single stack needs none."""
    with torch.device("meta"):
        merged, last = (count(HCANet(11, stacks, merge=merge)) for merge in (True, False))
    assert merged - last == (stacks * 11 * 11 + 11 if stacks > 1 else 0)


def test_size_of_the_local_convolutions() -> None:
    """1x1, 3x3 and 5x5 per channel in the paper, one 5x5 in the code."""
    with torch.device("meta"):
        paper, code = (
            count(MultiScaleLargeKernelAttention(32, local_per_scale=kind))
            for kind in (True, False)
        )
    dilated_and_mix = 32 * (9 + 25 + 49 + 3) + 3 * 32 * 32 + 32
    assert code == 32 * (25 + 1) + dilated_and_mix
    assert paper == 32 * (1 + 9 + 25 + 3) + dilated_and_mix


@pytest.mark.parametrize("blocks", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", [StackedHourglass, HCANet])
def test_size_grows_by_one_bottleneck_per_sequence(kind: type[nn.Module], blocks: int) -> None:
    """13 sequences in an hourglass and one after it; a bottleneck has two 1x1 and one 3x3."""
    width, stacks = 64, 2
    with torch.device("meta"):
        size = count(kind(11, stacks, blocks, channels=width))
        least = count(kind(11, stacks, 1, channels=width))
    half = width // 2
    convolutions = (width * half + half) + (9 * half * half + half) + (half * width + width)
    norms = 2 * (width + half + half)
    assert size - least == stacks * 14 * (blocks - 1) * (convolutions + norms)


@pytest.mark.parametrize("kind", [StackedHourglass, HCANet])
def test_one_image_channel_changes_the_first_convolution_only(kind: type[nn.Module]) -> None:
    with torch.device("meta"):
        grey, colour = (kind(11, in_channels=n).state_dict() for n in (1, 3))
    assert list(grey) == list(colour)
    changed = [name for name in grey if grey[name].shape != colour[name].shape]
    assert changed == [next(iter(grey))]
    assert grey[changed[0]].shape[1:] == (1, 7, 7)


@pytest.mark.parametrize(("name", "arguments"), NETWORKS)
@pytest.mark.parametrize("size", [(64, 64), (128, 64), (64, 192)])
def test_shape(name: str, arguments: dict[str, Any], size: tuple[int, int]) -> None:
    with torch.inference_mode():
        heatmaps = build(name, arguments)(torch.rand(2, 1, *size))
    merged = name == "hca" and arguments.get("merge", True)
    assert len(heatmaps) == arguments["stacks"] + merged
    assert all(h.shape == (2, 4, size[0] // 4, size[1] // 4) for h in heatmaps)


@pytest.mark.parametrize("name", ["hourglass", "hca"])
def test_other_sizes_are_refused(name: str) -> None:
    network = build(name, SMALL)
    script = torch.jit.script(network)
    for size in ((65, 64), (64, 96), (32, 64), (200, 200)):
        with pytest.raises(ValueError, match="multiples of 64"):
            network(torch.rand(1, 1, *size))
        with pytest.raises(torch.jit.Error, match="multiples of 64"):
            script(torch.rand(1, 1, *size))


@pytest.mark.parametrize(("name", "arguments"), NETWORKS)
def test_scripted_equals_eager_and_repeats(name: str, arguments: dict[str, Any]) -> None:
    network = build(name, arguments)
    image = torch.rand(2, 1, 64, 128)
    with torch.inference_mode():
        expected = network(image)
        again = network(image)
        scripted = torch.jit.script(network)(image)
    assert all(torch.equal(a, b) for a, b in zip(expected, again, strict=True))
    torch.testing.assert_close(scripted, expected, rtol=1e-4, atol=1e-5)
    assert float(expected[-1].std()) > 1e-4  # a constant would be equal, too


@pytest.mark.parametrize(("name", "arguments"), NETWORKS)
def test_the_last_heatmaps_train_every_weight(name: str, arguments: dict[str, Any]) -> None:
    """Also the earlier stacks', through the features, scores and attention that feed the last."""
    network = build(name, arguments).train()
    network(torch.rand(2, 1, 64, 64))[-1].square().sum().backward()
    idle = [
        key
        for key, weight in network.named_parameters()
        if weight.grad is None or not torch.isfinite(weight.grad).all() or not weight.grad.any()
    ]
    idle = [key for key in idle if not key.endswith("bias")]  # Norm takes some biases out again
    assert not idle
    first = next(network.parameters())
    assert first.shape[2:] == (7, 7)  # the image's convolution is among them


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("hourglass", SMALL),
        ("hca", {**SMALL, "score_lka": True}),
        ("hca", {**SMALL, "local_per_scale": True}),
        ("counting", {"channels": 8}),
        ("lookonce", {"n_labels": 4, "channels": 16}),
    ],
)
def test_gradients_of_mixed_precision(name: str, arguments: dict[str, Any]) -> None:
    """As training computes on CPUs, bfloat16 and channels last, against float32."""
    network = build(name, arguments).train()
    for module in network.modules():
        if isinstance(module, Norm):  # statistics of so few cells would amplify what is rounded
            module.eval()
    image = torch.rand(2, 1, 128, 128)

    def gradients() -> dict[str, Tensor]:
        network.zero_grad()
        sum(output.float().square().mean() for output in network(image)).backward()
        return {
            key: weight.grad.clone().flatten()
            for key, weight in network.named_parameters()
            if weight.ndim == 4 and weight.grad is not None
        }

    exact = gradients()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    image = image.contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = gradients()
    for key, gradient in exact.items():
        cosine = torch.cosine_similarity(gradient, rounded[key], dim=0).item()
        assert cosine > 0.9, key
        assert 0.5 < (rounded[key].norm() / gradient.norm()).item() < 2, key


@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("size", [(12, 18), (16, 13)])
def test_dilated_filters_are_the_same_in_training(dilation: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer = Depthwise(3, 5, dilation)
    x = torch.rand(2, 3, *size)
    torch.testing.assert_close(layer.train()(x), layer.eval()(x))


def test_images_of_a_batch_do_not_mix() -> None:
    network = build("hourglass", SMALL)
    images = torch.rand(3, 1, 64, 64)
    with torch.inference_mode():
        together = network(images)[-1]
        alone = torch.cat([network(image[None])[-1] for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_the_merge_starts_as_the_mean_of_the_stacks() -> None:
    with torch.inference_mode():
        *stacks, merged = build("hca", {**SMALL, "stacks": 4})(torch.rand(1, 1, 64, 64))
    torch.testing.assert_close(merged, torch.stack(stacks).mean(dim=0))


# --- receptive fields ---


class Interval(NamedTuple):
    """Cells first .. last along one axis, looked up from output to input."""

    first: int
    last: int

    def conv(self, kernel: int, dilation: int = 1, stride: int = 1) -> "Interval":
        reach = dilation * (kernel - 1) // 2
        return Interval(self.first * stride - reach, self.last * stride + reach)

    def pool(self) -> "Interval":
        return Interval(2 * self.first, 2 * self.last + 1)

    def upsample(self) -> "Interval":
        return Interval(self.first // 2, self.last // 2)

    def bottlenecks(self, count: int) -> "Interval":
        return self.conv(2 * count + 1)

    def hourglass(self, blocks: int, depth: int = 4) -> "Interval":
        low = self.upsample().bottlenecks(blocks)
        low = low.hourglass(blocks, depth - 1) if depth > 1 else low.bottlenecks(blocks)
        low, up = low.bottlenecks(blocks).pool(), self.bottlenecks(blocks)
        return Interval(min(low.first, up.first), max(low.last, up.last))

    def stem(self) -> "Interval":
        return self.bottlenecks(2).pool().bottlenecks(1).conv(7, stride=2)


def transparent(network: nn.Module) -> nn.Module:
    """In float64 and eval mode, with nothing that could stop a gradient: only reach counts."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.Identity())
            if isinstance(child, nn.MaxPool2d):
                setattr(module, name, nn.AvgPool2d(2))
            if isinstance(child, Norm):
                setattr(module, name, nn.Identity())
    for weight in network.parameters():
        nn.init.constant_(weight, 1 / max(1, weight[0].numel()))
    return network.double().eval()


def reach(network: nn.Module, image: Tensor, cell: int) -> Interval:
    """Image columns that the heatmaps' column `cell` depends on, by its gradient."""
    image.requires_grad_()
    output = network(image)
    last = output[-1] if isinstance(output, list) else output
    last[..., cell].sum().backward()
    assert image.grad is not None
    seen = image.grad.abs().amax(dim=(0, 1, 2)).nonzero().flatten()
    assert len(seen) == seen[-1] - seen[0] + 1  # without gaps
    return Interval(int(seen[0]), int(seen[-1]))


@pytest.mark.parametrize(
    ("kind", "stacks", "blocks", "cell"),
    [
        ("hourglass", 1, 1, 256),
        ("hourglass", 1, 1, 263),  # another place within the coarsest cells
        ("hourglass", 2, 1, 250),
        ("hourglass", 1, 2, 256),
        ("hca", 2, 1, 256),
        ("hca, score_lka", 1, 1, 256),
    ],
)
def test_receptive_field(kind: str, stacks: int, blocks: int, cell: int) -> None:
    """Against the sum over layers. It covers any scan: 649 pixels with one stack and block."""
    arguments: dict[str, Any] = {"n_labels": 2, "stacks": stacks, "blocks": blocks, "channels": 8}
    if kind == "hca, score_lka":
        arguments["score_lka"] = True
    network = transparent(build_network(kind.split(",")[0], arguments))
    field = Interval(cell, cell)
    for _ in range(stacks):
        if "score_lka" in kind:
            field = field.conv(7, dilation=3).conv(5)
        if "hca" in kind:
            field = field.conv(7, dilation=3).conv(5)  # the widest of the scales
        field = field.bottlenecks(blocks).hourglass(blocks)
    field = field.stem()
    assert field.first > 0
    assert field.last < 2047
    assert reach(network, torch.ones(1, 1, 64, 2048, dtype=torch.float64), cell) == field
    assert field.last - field.first >= 648


@pytest.mark.parametrize("local_per_scale", [False, True])
def test_fields_of_the_scales(local_per_scale: bool) -> None:
    """P2's scales: each dilated convolution alone, and with what comes before it."""
    block = MultiScaleLargeKernelAttention(2, local_per_scale).double()
    local = [1, 3, 5] if local_per_scale else [5, 5, 5]
    for index, (scale, field) in enumerate(zip(block.scales, (3, 9, 19), strict=True)):
        before = local[index]
        path = transparent(nn.Sequential(block.local, scale))
        seen = reach(path, torch.ones(1, 2, 64, 64, dtype=torch.float64), 32)
        assert seen.last - seen.first + 1 == field + before - 1
    lka = reach(transparent(LargeKernelAttention(2)), torch.ones(1, 2, 64, 64).double(), 32)
    assert lka.last - lka.first + 1 == 23


# --- attention ---


def test_attention_maps() -> None:
    """As the network multiplies them, and without a trace in it."""
    network = build("hourglass", SMALL)
    assert isinstance(network, StackedHourglass)
    image = torch.rand(2, 1, 64, 128)
    with torch.inference_mode():
        before = network(image)
        (name,) = (found := attention_maps(network, image))
        after = network(image)
    assert name == "attention"
    assert found[name].shape == (2, 16, 32)
    assert ((found[name] > 0) & (found[name] < 1)).all()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))

    class Spy(nn.Module):
        def forward(self, _: Tensor) -> Tensor:
            return found["attention"][:, None]

    network.attention = Spy()  # type: ignore[assignment]
    with torch.inference_mode():
        again = network(image)
    assert all(torch.equal(a, b) for a, b in zip(before, again, strict=True))


def test_attention_maps_of_hca() -> None:
    found = attention_maps(build("hca", {**SMALL, "score_lka": True}), torch.rand(1, 1, 64, 64))
    assert sorted(found) == [
        "contexts.0.2.layers.2",
        "contexts.1.2.layers.2",
        "refine.0.attention",
        "refine.1.attention",
    ]
    assert all(values.shape == (1, 16, 16) for values in found.values())
    assert all((values >= 0).all() for values in found.values())
    without = build("hourglass", {**SMALL, "attention": False})
    assert attention_maps(without, torch.rand(1, 1, 64, 64)) == {}


def test_norm_computes_in_float32() -> None:
    """A channel far from zero that hardly varies: bfloat16 sums would lose its variance."""
    seen: list[torch.dtype] = []
    norm = Norm(2)

    def watch(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:  # noqa: ARG001
        seen.append(inputs[0].dtype)

    norm.norm.register_forward_pre_hook(watch)
    x = torch.full((4, 2, 64, 64), 3e4)
    x[:, :, 0] *= 1.01
    x = x.bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(x)
    assert seen == [torch.float32]
    assert y.dtype == torch.bfloat16
    exact = x.detach().double()
    exact = (exact - exact.mean((0, 2, 3), keepdim=True)) / exact.std((0, 2, 3), keepdim=True)
    torch.testing.assert_close(y.double(), exact, rtol=0.02, atol=0.02)
    y.square().sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_unknown_networks_and_arguments() -> None:
    with pytest.raises(ValueError, match=r"'unet'.*hourglass, hca, counting, lookonce, template"):
        build_network("unet", {})
    with pytest.raises(ValueError, match=r"hca.*attention"):
        build_network("hca", {"attention": True})
