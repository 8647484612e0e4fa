"""Networks: size, shape, gradient and scriptability, against the papers' published code."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ivdtool.model import build_network
from ivdtool.networks.blocks import Norm
from ivdtool.networks.hca import HCANet
from ivdtool.networks.hourglass import StackedHourglass

torch.set_num_threads(1)

SMALL = {"n_labels": 4, "stacks": 2, "channels": 16}
NETWORKS = [
    ("hourglass", {**SMALL, "attention": True}),
    ("hourglass", {**SMALL, "attention": False}),
    ("hourglass", {**SMALL, "stacks": 1}),
    ("hca", SMALL),
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
        network = HCANet(11, stacks, blocks, in_channels=3, score_lka=True, feedback=True)
    assert count(network) == expected


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
    assert len(heatmaps) == arguments["stacks"]
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


def test_images_of_a_batch_do_not_mix() -> None:
    network = build("hourglass", SMALL)
    images = torch.rand(3, 1, 64, 64)
    with torch.inference_mode():
        together = network(images)[-1]
        alone = torch.cat([network(image[None])[-1] for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


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
    with pytest.raises(ValueError, match=r"'unet'.*hourglass, hca"):
        build_network("unet", {})
    with pytest.raises(ValueError, match=r"hca.*attention"):
        build_network("hca", {"attention": True})
