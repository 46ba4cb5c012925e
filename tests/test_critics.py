"""Gaussians whose divergences are known by integration are the oracle, for the best critic and a
trained one; then what a critic may and may not change in the loop around it. A divergence is held
to all of it by one entry in DIVERGENCES.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from math import log
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from components import PUT_ON_WEIGHTS, triangular
from torch import nn
from torch.distributions import Normal

from advssl.branches import branch_batchnorm, on_branch
from advssl.critics import DIVERGENCES as NAMED
from advssl.critics import GlobalDivergenceCritic
from precision import LOWERED_FOR_TERMS, assert_float32s, lowered


class Known(NamedTuple):
    """A divergence by its textbook definition.

    ``of`` is what is integrated, of the densities p and q; ``best`` the logit at which a critic's
    bound is tight (Nowozin et al. 2016), of log p/q.
    """

    of: Callable
    best: Callable


def inverted(ratio):
    """The map of logits to ratios, r = 1 + elu(-t), inverted at r = p / q."""
    return torch.where(ratio > 0, 1 - ratio.exp(), -ratio)


def opposite(ratio):
    """σ(t) = q / (p + q)."""
    return -ratio


# By what a critic is told: a name, or a function of one's own.
DIVERGENCES = {
    "js": Known(
        lambda p, q: ((2 / (1 + q / p)).log() * p + (2 / (1 + p / q)).log() * q) / 2, opposite
    ),
    "kl": Known(lambda p, q: p * (p / q).log(), inverted),
    "pearson": Known(lambda p, q: q * (p / q - 1) ** 2, inverted),
    "tv": Known(lambda p, q: (p - q).abs() / 2, lambda ratio: -1e9 * ratio),  # σ(t) = [q > p]
    triangular: Known(lambda p, q: (p - q) ** 2 / (p + q) / 2, opposite),
}
EVERY_DIVERGENCE = pytest.mark.parametrize(
    "divergence", DIVERGENCES, ids=lambda told: getattr(told, "__name__", told)
)

# Adversarial embeddings are shifted and narrower: D(adversarial ‖ benign) is not the reverse.
BENIGN = Normal(torch.tensor(0.0, dtype=torch.float64), 1.0)
ADVERSARIAL = Normal(torch.tensor(0.9, dtype=torch.float64), 0.75)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def integrated(divergence, p, q):
    """D(p ‖ q) by the trapezoid rule, from its textbook definition."""
    x = torch.linspace(-12, 12, 100_001, dtype=torch.float64)
    integrand = DIVERGENCES[divergence].of(p.log_prob(x).exp(), q.log_prob(x).exp())
    return torch.trapezoid(integrand, x).item()


def quantiles(normal, count=100_000):
    """(count, 1) points that stand for ``normal`` without sampling noise."""
    middles = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return normal.icdf(middles)[:, None]


def trained(critic, draw, *, steps=250, lr=1e-2):
    """The critic after ``steps`` of Adam on fresh (benign, adversarial) pairs of clouds."""
    optimizer = torch.optim.Adam(critic.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        critic.loss(*draw()).backward()
        optimizer.step()
        schedule.step()
    return critic


class TestBound:
    @EVERY_DIVERGENCE
    def test_the_best_critic_attains_the_divergence(self, divergence, monkeypatch):
        critic = GlobalDivergenceCritic(1, divergence=divergence)
        monkeypatch.setattr(
            critic,
            "_logits",
            lambda z, own_gradient: DIVERGENCES[divergence].best(  # noqa: ARG005
                ADVERSARIAL.log_prob(z[:, 0]) - BENIGN.log_prob(z[:, 0])
            ),
        )
        found = critic.estimate(quantiles(BENIGN), quantiles(ADVERSARIAL)).item()
        assert found == pytest.approx(integrated(divergence, ADVERSARIAL, BENIGN), abs=1e-3)

    @pytest.mark.parametrize("divergence", ["kl", "pearson"])
    def test_the_direction_matters_here(self, divergence):
        forth = integrated(divergence, ADVERSARIAL, BENIGN)
        back = integrated(divergence, BENIGN, ADVERSARIAL)
        assert abs(forth - back) > 0.2 * forth

    @pytest.mark.parametrize("hidden_features", [(), (8,)])
    @EVERY_DIVERGENCE
    def test_no_critic_exceeds_the_divergence(self, divergence, hidden_features):
        benign, adversarial = quantiles(BENIGN, 5_000), quantiles(ADVERSARIAL, 5_000)
        truth, found = integrated(divergence, ADVERSARIAL, BENIGN), []
        for scale in torch.logspace(-1, 1.5, 20):
            critic = GlobalDivergenceCritic(1, hidden_features, divergence).double()
            for p in critic.parameters():
                nn.init.normal_(p, std=scale.item())
            found.append(critic.estimate(benign, adversarial).item())
        assert max(found) < truth + 2e-3

    @pytest.mark.slow
    @EVERY_DIVERGENCE
    def test_a_trained_critic_recovers_the_divergence_from_below(self, divergence):
        critic = GlobalDivergenceCritic(1, (32, 32), divergence)

        def draw(count=1024):
            return BENIGN.sample((count, 1)).float(), ADVERSARIAL.sample((count, 1)).float()

        trained(critic, draw)
        truth = integrated(divergence, ADVERSARIAL, BENIGN)
        found = critic.estimate(quantiles(BENIGN), quantiles(ADVERSARIAL)).item()
        assert 0.98 * truth < found < 1.001 * truth

    @pytest.mark.slow
    @EVERY_DIVERGENCE
    def test_two_dimensions_that_differ_in_one_have_the_divergence_of_that_one(self, divergence):
        critic = GlobalDivergenceCritic(2, (32, 32), divergence)
        turn = torch.tensor([[0.6, 0.8], [-0.8, 0.6]])

        def draw(count=1024):
            benign, adversarial = torch.randn(2, count, 2)
            adversarial[:, 0] = ADVERSARIAL.loc + ADVERSARIAL.scale * adversarial[:, 0]
            return benign @ turn, adversarial @ turn

        trained(critic, draw)
        found = critic.estimate(*draw(100_000)).item()
        truth = integrated(divergence, ADVERSARIAL, BENIGN)
        assert 0.95 * truth < found < truth + 0.02

    def test_js_is_at_most_log_2_and_tv_at_most_1(self):
        far, farther = torch.full((8, 1), 1e4), torch.full((8, 1), -1e4)
        for divergence, limit in (("js", log(2)), ("tv", 1.0)):
            critic = GlobalDivergenceCritic(1, divergence=divergence)
            nn.init.ones_(critic.layers[0].weight)
            assert critic.estimate(far, farther).item() == pytest.approx(limit)
            noise = 1e3 * torch.randn(2, 64, 1)
            assert critic.estimate(*noise).item() < limit

    @EVERY_DIVERGENCE
    def test_one_cloud_against_itself_is_never_above_zero(self, divergence):
        for _ in range(10):
            critic = GlobalDivergenceCritic(3, (8,), divergence)
            z = 5 * torch.randn(50, 3)
            assert critic.estimate(z, z).item() <= 1e-6

    @pytest.mark.slow
    @EVERY_DIVERGENCE
    def test_a_critic_trained_on_equal_clouds_finds_about_nothing(self, divergence):
        critic = GlobalDivergenceCritic(1, (32, 32), divergence)
        trained(critic, lambda: torch.randn(2, 512, 1), steps=100)
        assert critic.estimate(*torch.randn(2, 50_000, 1)).item() == pytest.approx(0, abs=0.005)

    @EVERY_DIVERGENCE
    def test_huge_logits_give_finite_values_and_gradients(self, divergence):
        critic = GlobalDivergenceCritic(1, divergence=divergence)
        nn.init.ones_(critic.layers[0].weight)
        for sign in (1, -1):
            clouds = (sign * torch.tensor([[-1e4], [1e4]])).unbind()
            benign, adversarial = (z[:, None].clone().requires_grad_() for z in clouds)
            estimate = critic.estimate(benign, adversarial)
            assert estimate.isfinite()
            for gradient in torch.autograd.grad(estimate, (benign, adversarial)):
                assert gradient.isfinite().all()

    def test_logits_are_positive_for_what_looks_benign(self):
        critic = GlobalDivergenceCritic(2)
        shift = torch.tensor([3.0, 0.0])
        trained(critic, lambda: (torch.randn(256, 2) + shift, torch.randn(256, 2) - shift))
        assert critic(torch.randn(100, 2) + shift).median() > 0
        assert critic(torch.randn(100, 2) - shift).median() < 0

    def test_logits_are_those_of_the_same_layers_by_hand(self):
        critic, z = GlobalDivergenceCritic(4, (6, 5)), torch.randn(7, 4)
        first, second, third = critic.layers
        wanted = third(second(first(z).relu()).relu())[:, 0]
        torch.testing.assert_close(critic(z), wanted)

    def test_js_loss_is_that_of_a_discriminator_up_to_log_2(self):
        # The released code: mean binary cross-entropies, benign = 1 and adversarial = 0, times 1/2.
        critic, benign, adversarial = GlobalDivergenceCritic(3, (8,)), *torch.randn(2, 16, 3)
        real, fake = critic(benign), critic(adversarial)
        cross_entropy = F.binary_cross_entropy_with_logits
        wanted = cross_entropy(real, torch.ones(16)) + cross_entropy(fake, torch.zeros(16))
        found = critic.loss(benign, adversarial)
        torch.testing.assert_close(found, wanted / 2 - log(2))
        torch.testing.assert_close(
            torch.autograd.grad(found, list(critic.parameters())),
            torch.autograd.grad(wanted / 2, list(critic.parameters())),
        )

    @EVERY_DIVERGENCE
    def test_clouds_may_differ_in_size(self, divergence):
        critic = GlobalDivergenceCritic(2, (8,), divergence)
        benign, adversarial = torch.randn(6, 2), torch.randn(4, 2)
        once = critic.estimate(benign, adversarial)
        # Means over each cloud: writing one of them twice over changes nothing.
        torch.testing.assert_close(critic.estimate(benign.repeat(2, 1), adversarial), once)
        torch.testing.assert_close(critic.estimate(benign, adversarial.repeat(3, 1)), once)


@EVERY_DIVERGENCE
class TestGradient:
    @pytest.fixture
    def clouds(self):
        return torch.randn(2, 16, 3).unbind()

    def test_estimate_reaches_both_embeddings_and_no_parameter(self, divergence, clouds):
        critic = GlobalDivergenceCritic(3, (8,), divergence)
        clouds = [z.requires_grad_() for z in clouds]
        critic.estimate(*clouds).backward()
        assert all(z.grad.abs().sum() > 0 for z in clouds)
        assert all(p.grad is None for p in critic.parameters())
        assert all(p.requires_grad for p in critic.parameters())

    def test_loss_reaches_every_parameter_and_no_embedding(self, divergence, clouds):
        critic = GlobalDivergenceCritic(3, (8,), divergence)
        clouds = [z.requires_grad_() for z in clouds]
        critic.loss(*clouds).backward()
        assert all(z.grad is None for z in clouds)
        assert all(p.grad.abs().sum() > 0 for p in critic.parameters())

    def test_loss_is_minus_estimate(self, divergence, clouds):
        critic = GlobalDivergenceCritic(3, (8,), divergence)
        assert torch.equal(critic.loss(*clouds), -critic.estimate(*clouds))

    def test_embeddings_of_a_frozen_branch_need_no_gradient(self, divergence, clouds):
        benign, adversarial = clouds
        critic = GlobalDivergenceCritic(3, (8,), divergence)
        critic.estimate(benign, adversarial.requires_grad_()).backward()
        assert benign.grad is None
        assert adversarial.grad.abs().sum() > 0

    def test_gradient_is_the_derivative(self, divergence):
        critic = GlobalDivergenceCritic(3, (6,), divergence).double()
        clouds = [torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
        assert torch.autograd.gradcheck(critic.estimate, clouds)

    @pytest.mark.slow
    @pytest.mark.parametrize(("sign", "closer"), [(1, True), (-1, False)])
    def test_descending_it_brings_clouds_together_and_ascending_apart(
        self, divergence, sign, closer
    ):
        critic = GlobalDivergenceCritic(2, (16,), divergence)
        critics = torch.optim.Adam(critic.parameters(), lr=1e-2)
        shift = nn.Parameter(torch.tensor([1.0, 0.5]))
        encoders = torch.optim.SGD([shift], lr=0.05)
        for step in range(120):
            benign, noise = torch.randn(2, 256, 2)
            adversarial = noise + shift
            critics.zero_grad()
            critic.loss(benign, adversarial).backward()
            critics.step()
            if step >= 40:  # the critic knows where the clouds are by now
                encoders.zero_grad()
                (sign * critic.estimate(benign, adversarial)).backward()
                encoders.step()
        start = 1.25**0.5
        assert (shift.norm() < 0.8 * start) if closer else (shift.norm() > 1.2 * start)


class TestPrecision:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @EVERY_DIVERGENCE
    def test_half_precision_embeddings_are_taken_as_the_float32_they_stand_for(
        self, divergence, dtype
    ):
        critic = GlobalDivergenceCritic(8, (16,), divergence)
        clouds = torch.randn(2, 32, 8).to(dtype)
        for method in (critic.estimate, critic.loss):
            found = method(*clouds)
            assert found.dtype == torch.float32
            assert torch.equal(found, method(*clouds.float()))
        assert torch.equal(critic(clouds[0]), critic(clouds[0].float()))

    @EVERY_DIVERGENCE
    def test_bf16_autocast_changes_neither_value_nor_gradient(self, divergence):
        critic = GlobalDivergenceCritic(8, (16,), divergence)
        results = []
        for autocast in (True, False):
            clouds = torch.linspace(-1, 1, 512).view(2, 32, 8).sin().requires_grad_()
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                values = critic(clouds[0]), critic.estimate(*clouds), critic.loss(*clouds)
            values[1].backward()
            results.append((*values, clouds.grad))
        torch.testing.assert_close(*results, rtol=0, atol=0)

    def test_a_critic_in_half_precision_still_computes_in_float32(self):
        critic = GlobalDivergenceCritic(8, (16,)).bfloat16()
        wide = copy.deepcopy(critic).float()
        clouds = torch.randn(2, 32, 8)
        assert torch.equal(critic.estimate(*clouds), wide.estimate(*clouds))

    @pytest.mark.parametrize("put", PUT_ON_WEIGHTS)
    def test_what_torch_puts_on_a_weight_counts(self, put):
        critic, clouds = GlobalDivergenceCritic(8, (16,)), torch.randn(2, 32, 8)
        for layer in critic.layers:
            PUT_ON_WEIGHTS[put](layer)
        plain = nn.ModuleList([nn.Linear(8, 16), nn.Linear(16, 1)])
        for layer in plain:
            PUT_ON_WEIGHTS[put](layer)
        plain.load_state_dict(critic.layers.state_dict())
        for module in (critic, plain):
            module.eval()  # spectral norm moves its vectors in training
        torch.testing.assert_close(critic(clouds[0])[:, None], plain[1](plain[0](clouds[0]).relu()))
        clouds.requires_grad_()
        critic.estimate(*clouds).backward()
        assert clouds.grad.any()
        assert all(p.grad is None for p in critic.parameters())
        critic.loss(*clouds).backward()
        assert all(p.grad is not None for p in critic.parameters())

    @pytest.mark.slow
    @LOWERED_FOR_TERMS
    def test_precision_set_elsewhere_changes_neither_value_nor_any_derivative(self, how):
        critic, benign = GlobalDivergenceCritic(64, (32,)), torch.randn(8, 64)
        assert_float32s(lambda z: critic.estimate(benign, z), torch.randn(8, 64), how=how)

    @pytest.mark.slow
    @LOWERED_FOR_TERMS
    def test_nor_the_gradient_of_its_own_parameters(self, how):
        critic, clouds = GlobalDivergenceCritic(64, (32,)), torch.randn(2, 8, 64)
        exact = copy.deepcopy(critic).double()
        exact.loss(*clouds.double()).backward()
        with lowered(how), torch.autocast("cpu", torch.bfloat16):
            torch.compile(critic.loss, backend="aot_eager", fullgraph=True)(*clouds).backward()
        for p, q in zip(critic.parameters(), exact.parameters(), strict=True):
            torch.testing.assert_close(p.grad.double(), q.grad, rtol=1e-4, atol=1e-6)


class Encoder(nn.Module):
    """A small BatchNorm net, images (B, 3, H, W) to embeddings (B, 8)."""

    def __init__(self):
        super().__init__()
        self.features = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, images):
        return F.adaptive_avg_pool2d(self.norm(self.features(images)).relu(), 1).flatten(1)


class TestBranchLeak:
    """With a BatchNorm branch per kind of image, a critic may read the branch."""

    @pytest.fixture
    def encoder(self):
        encoder = branch_batchnorm(Encoder())
        for _ in range(30):
            images = torch.rand(64, 3, 8, 8)
            with torch.no_grad(), on_branch(encoder, "clean"):
                encoder(images)
            with torch.no_grad(), on_branch(encoder, "adversarial"):
                encoder(0.5 + 0.5 * images)
        return encoder.eval()

    def leak(self, encoder, branch, *, same_images):
        """A trained critic's estimate between the clean branch's clouds and ``branch``'s."""

        def draw(count=256):
            images = torch.rand(count, 3, 8, 8)
            others = images if same_images else torch.rand(count, 3, 8, 8)
            clouds = []
            for name, batch in (("clean", images), (branch, others)):
                with torch.no_grad(), on_branch(encoder, name):
                    clouds.append(encoder(batch))
            return clouds

        critic = trained(GlobalDivergenceCritic(8, (32,)), draw, steps=150)
        return critic.estimate(*draw(4096)).item()

    def test_the_same_images_through_two_branches_are_told_apart(self, encoder):
        assert self.leak(encoder, "adversarial", same_images=True) > 0.5

    def test_through_one_branch_they_are_not(self, encoder):
        assert self.leak(encoder, "clean", same_images=False) < 0.005

    def test_the_docstring_warns_of_it(self):
        text = " ".join(GlobalDivergenceCritic.__doc__.split())
        _, warning = text.split("Warning:")
        for said in ("BatchNorm branches", "the *same* clean images through both branches"):
            assert said in warning


class TestInTheLoop:
    def test_estimate_after_the_critics_step_sees_the_new_critic(self):
        critic = GlobalDivergenceCritic(3, (8,))
        optimizer = torch.optim.SGD(critic.parameters(), lr=1.0)
        encoder = nn.Linear(5, 3)
        benign, adversarial = encoder(torch.randn(16, 5)), encoder(torch.randn(16, 5) + 1)
        before = critic.estimate(benign, adversarial).item()
        critic.loss(benign, adversarial).backward()
        optimizer.step()
        term = critic.estimate(benign, adversarial)
        term.backward()
        assert term.item() > before
        assert all(p.grad.abs().sum() > 0 for p in encoder.parameters())

    @pytest.mark.parametrize("hidden_features", [(), (8,)])
    @pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
    def test_estimate_before_it_fails_loudly(self, optimizer, hidden_features):
        critic = GlobalDivergenceCritic(3, hidden_features)
        optimizer = optimizer(critic.parameters(), lr=0.1)
        benign, adversarial = torch.randn(2, 16, 3).requires_grad_()
        term = critic.estimate(benign, adversarial)
        critic.loss(benign, adversarial).backward()
        optimizer.step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            term.backward()

    def test_both_in_one_backward_leave_both_gradients(self):
        critic = GlobalDivergenceCritic(3, (8,))
        clouds = [z.requires_grad_() for z in torch.randn(2, 16, 3)]
        alone = torch.autograd.grad(critic.loss(*clouds), list(critic.parameters()))
        term = torch.autograd.grad(critic.estimate(*clouds), clouds)
        (critic.loss(*clouds) + critic.estimate(*clouds)).backward()
        found = [p.grad for p in critic.parameters()], [z.grad for z in clouds]
        torch.testing.assert_close(found, (list(alone), list(term)))

    def test_compiled_in_one_graph_equals_eager(self):
        critic, clouds = GlobalDivergenceCritic(3, (8,)), torch.randn(2, 16, 3)
        compiled = torch.compile(critic.estimate, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(*clouds), critic.estimate(*clouds))

    def test_a_checkpoint_gives_the_same_critic(self):
        critic, z = GlobalDivergenceCritic(3, (8, 4)), torch.randn(5, 3)
        other = GlobalDivergenceCritic(3, (8, 4))
        assert not torch.equal(other(z), critic(z))
        other.load_state_dict(critic.state_dict())
        assert torch.equal(other(z), critic(z))
        assert list(critic.state_dict()) == [
            f"layers.{i}.{kind}" for i in range(3) for kind in ("weight", "bias")
        ]

    def test_a_deepcopy_is_its_own_critic(self):
        critic, z = GlobalDivergenceCritic(3, (8,), "kl"), torch.randn(5, 3)
        other, before = copy.deepcopy(critic), critic(z)
        assert torch.equal(other(z), before)
        assert other.divergence == "kl"
        nn.init.zeros_(other.layers[0].weight)
        assert torch.equal(critic(z), before)
        assert not torch.equal(other(z), before)

    def test_default_is_the_papers_single_layer_js(self):
        critic = GlobalDivergenceCritic(128)
        assert [(m.in_features, m.out_features) for m in critic.layers] == [(128, 1)]
        assert critic.divergence == "js"

    def test_repr_names_the_divergence_and_the_layers(self):
        assert "divergence='pearson'" in repr(GlobalDivergenceCritic(3, (8,), "pearson"))
        assert "in_features=3, out_features=8" in repr(GlobalDivergenceCritic(3, (8,), "pearson"))


class TestADivergenceOfOnesOwn:
    @pytest.mark.parametrize("name", NAMED)
    def test_a_named_one_is_the_function_that_stands_by_its_name(self, name):
        named, told = (
            GlobalDivergenceCritic(3, (), name),
            GlobalDivergenceCritic(3, (), NAMED[name]),
        )
        told.load_state_dict(named.state_dict())
        clouds = torch.randn(2, 16, 3)
        assert torch.equal(named.estimate(*clouds), told.estimate(*clouds))

    def test_all_that_have_a_name_are_held_to_the_laws(self):
        assert {told for told in DIVERGENCES if isinstance(told, str)} == set(NAMED)

    @pytest.mark.parametrize(
        "answer", [lambda b, a: b - a, lambda *_: 1.0, lambda b, a: b.mean() > a.mean()]
    )
    def test_its_answer_is_one_number_for_both_clouds(self, answer):
        critic = GlobalDivergenceCritic(3, divergence=answer)
        for call in (critic.estimate, critic.loss):
            with pytest.raises(ValueError, match=r"one floating point number .*; take the mean"):
                call(*torch.randn(2, 4, 3))

    def test_it_is_no_part_of_the_state(self):
        critic, other = (GlobalDivergenceCritic(3, (), how) for how in (triangular, "js"))
        assert critic.state_dict().keys() == other.state_dict().keys()
        other.load_state_dict(critic.state_dict())
        assert other.divergence == "js"


class TestErrors:
    def test_an_unknown_divergence_lists_the_known(self):
        message = rf"one of {re.escape(str(sorted(NAMED)))} or a function .*, got 'wasserstein'"
        with pytest.raises(ValueError, match=message):
            GlobalDivergenceCritic(3, divergence="wasserstein")

    @pytest.mark.parametrize("width", [0, -1, 2.5, "3", True, None, (3,)])
    def test_widths_are_positive_whole_numbers(self, width):
        with pytest.raises(ValueError, match="in_features must be"):
            GlobalDivergenceCritic(width)
        with pytest.raises(ValueError, match="hidden_features must be"):
            GlobalDivergenceCritic(3, (8, width))

    @pytest.mark.parametrize("hidden", [8, "8", None])
    def test_hidden_widths_are_several(self, hidden):
        with pytest.raises(ValueError, match="hidden_features must be a sequence"):
            GlobalDivergenceCritic(3, hidden)

    def test_widths_may_be_numpys(self):
        critic = GlobalDivergenceCritic(np.int64(3), np.array([8, 4]))
        assert [m.out_features for m in critic.layers] == [8, 4, 1]

    @pytest.mark.parametrize("wrong", [[[0.0] * 3], np.zeros((5, 3)), torch.ones(5, 3).int(), None])
    def test_what_is_no_tensor_of_floats_is_refused_by_its_name(self, wrong):
        critic, right = GlobalDivergenceCritic(3), torch.randn(5, 3)
        for name, call in (
            ("z", lambda: critic(wrong)),
            ("benign", lambda: critic.estimate(wrong, right)),
            ("adversarial", lambda: critic.loss(right, wrong)),
        ):
            with pytest.raises(ValueError, match=f"floating point embeddings .* got {name} "):
                call()

    @pytest.mark.parametrize("shape", [(5, 4), (3,), (5, 3, 1, 1), (0, 3)])
    def test_embeddings_of_another_shape_are_refused_on_either_side(self, shape):
        critic, right, wrong = GlobalDivergenceCritic(3), torch.randn(5, 3), torch.randn(shape)
        message = rf"shape \(B, 3\), got .*\({', '.join(map(str, shape))},?\); set in_features"
        calls = (
            lambda: critic(wrong),
            lambda: critic.estimate(wrong, right),
            lambda: critic.estimate(right, wrong),
            lambda: critic.loss(right, wrong),
        )
        for call in calls:
            with pytest.raises(ValueError, match=message):
                call()
