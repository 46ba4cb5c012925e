"""The papers' encoders: published sizes, and fit for all that a training does to an encoder."""

from __future__ import annotations

import pytest
import torch

from advssl import branch_batchnorm, evaluating, on_branch
from advssl.integrations.cifar import CNN, ENCODERS, NoIdentityResNet, ResNet20, WideResNet
from advssl.integrations.timm import backbone

SMALL = [lambda: WideResNet(10, 1), ResNet20, lambda: NoIdentityResNet(width=4), CNN]


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "width", "with_classifier"),
    [
        ("wrn28_10", 640, 36_479_194),  # 36.5 million
        ("wrn34_10", 640, 46_160_474),  # 46.2 million
        ("resnet20", 64, 269_722),  # 0.27 million in Table 6 of He et al. 2016
        ("cnn", 256, 1_147_978),
        ("resnet18_no_identity", 512, 11_173_962),  # a ResNet-18's: identities have no weights
    ],
)
def test_sizes_are_the_published_ones(name, width, with_classifier):
    with torch.device("meta"):
        model = ENCODERS[name](3)
        assert model(torch.empty(2, 3, 32, 32)).shape == (2, width)
    assert model.num_features == width
    assert parameters(model) + (width + 1) * 10 == with_classifier


def test_layers_are_the_published_ones():
    def convolutions(model):
        return [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]

    with torch.device("meta"):
        wide = WideResNet(34, 10)
    assert len(convolutions(wide)) == 34  # the three shortcuts that have weights count
    assert len(convolutions(ResNet20())) + 1 == 20  # here the classifier does
    assert [c.out_channels for c in convolutions(CNN())] == [64, 64, 128, 128]


@pytest.mark.parametrize("make", SMALL)
def test_the_seed_decides_the_start(make):
    starts = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        starts.append(torch.cat([p.flatten() for p in make().parameters()]))
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


@pytest.mark.parametrize("make", SMALL)
def test_the_memory_format_changes_nothing(make):
    model, x = make().eval(), torch.rand(2, 3, 32, 32)
    ours = model(x)
    last = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(last, ours, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("make", SMALL)
def test_one_graph(make):
    torch._dynamo.reset()
    model, x = make(), torch.rand(2, 3, 32, 32)
    expected = model.eval()(x)
    whole = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(whole(x), expected)


@pytest.mark.parametrize("make", SMALL[:3])
def test_batchnorm_has_branches(make):
    model, x = branch_batchnorm(make(), ("clean", "adversarial")), torch.rand(4, 3, 32, 32)
    with on_branch(model, "adversarial"):
        model(x)
    with evaluating(model):
        with on_branch(model, "clean"):
            clean = model(x)
        with on_branch(model, "adversarial"):
            assert not torch.allclose(model(x), clean)


def test_images_of_one_channel():
    for make in ENCODERS.values():
        with torch.device("meta"):
            assert make(1)(torch.empty(2, 1, 32, 32)).shape[0] == 2


def test_a_shortcut_without_weights_keeps_every_second_pixel():
    """With the residual at zero a block of He et al.'s option A is a strided identity."""
    block = ResNet20().blocks[3].eval()  # 16 to 32 channels
    torch.nn.init.zeros_(block.norm2.weight)
    x = torch.rand(2, 16, 8, 8)
    out = block(x)
    assert torch.equal(out[:, :16], x[:, :, ::2, ::2])
    assert out[:, 16:].count_nonzero() == 0


class Nothing(torch.nn.Module):
    def forward(self, x):
        return torch.zeros_like(x)


def test_a_block_without_projection_adds_nothing():
    """timm's ResNet-18 with its identities replaced by zeros, and weights of the same order."""
    ours, theirs = NoIdentityResNet(width=4), backbone("cifar:resnet18:4")
    with_identity = [
        block
        for stage in (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4)
        for block in stage
        if block.downsample is None
    ]
    assert len(with_identity) == 5
    for block in with_identity:
        block.downsample = Nothing()
    own = {
        name.replace("conv3.", "downsample.0.").replace("bn3.", "downsample.1."): value
        for name, value in ours.state_dict().items()
    }
    theirs.load_state_dict(own)
    x = torch.rand(4, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(ours.double()(x), theirs.double()(x), rtol=1e-12, atol=1e-12)
    for block in with_identity:
        block.downsample = None
    assert not torch.allclose(ours(x), theirs(x))


@pytest.mark.parametrize("name", ["resnet18:4", "resnet34:4", "resnet50", "resnet18_no_identity:4"])
def test_blocks_start_active_as_the_papers_do(name):
    """He's start, fan-out, and every BatchNorm at weight 1: no residual branch ends in zeros."""
    torch.manual_seed(0)
    for module in backbone(f"cifar:{name}").modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
        if isinstance(module, torch.nn.Conv2d) and module.weight.numel() > 5000:
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)


def test_a_backbone_by_timms_name_starts_as_timms():
    assert (backbone("timm:resnet18").layer1[0].bn2.weight == 0).all()


def test_errors():
    with pytest.raises(ValueError, match=r"depth of a WideResNet is 6 n \+ 4, got 35"):
        WideResNet(35, 1)
    with pytest.raises(ValueError, match=r"reads images of 32 x 32, got \(16, 16\)"):
        CNN()(torch.rand(1, 3, 16, 16))
