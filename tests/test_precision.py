"""Float32 is computed in float32, and all settings are there again afterwards."""

from __future__ import annotations

import threading

import pytest
import torch

from advssl.precision import full_precision, product, uphill, widen
from precision import LOWERED, lowered, settings


def test_full_precision_leaves_autocast_and_float64_stays(device):
    a = torch.ones(2, 2, device=device)
    with torch.autocast(device.type, torch.bfloat16):
        assert (a @ a).dtype == torch.bfloat16
        with full_precision(device):
            assert (a @ a).dtype == torch.float32
    with full_precision(torch.device("meta")):
        pass
    assert widen(a.double()).dtype == torch.float64
    assert widen(a.half()).dtype == torch.float32


def off(found, a, b):
    """How far a product is from float64's, in terms of its own length."""
    wanted = a.double() @ b.double()
    return ((found - wanted).norm() / wanted.norm()).item()


class TestFullPrecision:
    @LOWERED
    def test_of_every_setting_and_gives_each_back(self, how):
        a, b = torch.randn(2, 64, 64)
        with lowered(how):
            before = settings()
            with pytest.raises(KeyboardInterrupt), full_precision(a.device):
                with full_precision(a.device):
                    assert off(a @ b, a, b) < 1e-6
                assert off(a @ b, a, b) < 1e-6  # the inner block gave nothing back
                assert not set(settings().values()) & {"bf16", "tf32", "medium", "high"}
                raise KeyboardInterrupt
            assert settings() == before

    @pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="before torch 2.9")
    def test_what_was_inherited_is_inherited_again(self):
        with lowered("fp32_precision"):
            with full_precision(torch.device("cpu")):
                pass
            torch.backends.fp32_precision = "ieee"
            assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"

    def test_lasts_until_the_last_thread_leaves(self):
        entered, leave = threading.Event(), threading.Event()

        def other():
            with full_precision(torch.device("cpu")):
                entered.set()
                leave.wait(10)

        with lowered("matmul_precision"):
            thread = threading.Thread(target=other)
            with full_precision(torch.device("cpu")):
                thread.start()
                assert entered.wait(10)
            inside = torch.get_float32_matmul_precision()
            leave.set()
            thread.join()
            assert (inside, torch.get_float32_matmul_precision()) == ("highest", "medium")


class TestProduct:
    @pytest.fixture
    def factors(self):
        return [torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((3, 4), (4, 5))]

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's forward mode
    def test_has_every_derivative_of_a_matrix_product(self, factors):
        assert torch.autograd.gradcheck(product, factors, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(product, factors, check_fwd_over_rev=True)

    @pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
    def test_goes_through_function_transforms(self, factors):
        a, b = (f.detach() for f in factors)
        hessian = torch.func.hessian(lambda a: (a @ b).pow(3).sum())(a)
        for outer in (torch.func.jacrev, torch.func.jacfwd):
            for inner in (torch.func.jacrev, torch.func.jacfwd):
                found = outer(inner(lambda a: product(a, b).pow(3).sum()))(a)
                torch.testing.assert_close(found, hessian)

    @pytest.mark.slow
    @LOWERED
    @pytest.mark.parametrize("compiled", [False, True])
    def test_is_float32s_with_both_gradients_whatever_is_set(self, how, compiled):
        torch.compiler.reset()
        a, b, weight = torch.randn(3, 32, 32)
        run = torch.compile(product, backend="aot_eager", fullgraph=True) if compiled else product
        for asking in ((True, False), (False, True), (True, True)):
            first, second = (
                x.clone().requires_grad_(r) for x, r in zip((a, b), asking, strict=True)
            )
            with lowered(how), torch.autocast("cpu", torch.bfloat16):
                out = run(first, second)
                (out * weight).sum().backward()
            assert out.dtype == torch.float32
            assert off(out.detach(), a, b) < 1e-6
            assert first.grad is None or off(first.grad, weight, b.T) < 1e-6
            assert second.grad is None or off(second.grad, a.T, weight) < 1e-6


def test_uphill_is_the_gradient_where_nothing_is_float16():
    w = torch.randn(4, requires_grad=True)
    unused = torch.randn(2, requires_grad=True)
    direction, nothing = uphill(w.pow(3).sum(), [w, unused])
    torch.testing.assert_close(direction, 3 * w.detach() ** 2)
    assert nothing is None


@pytest.mark.parametrize("scale", [2.0**-80, 2.0**-20, 1.0, 2.0**12, 2.0**60])
def test_uphill_is_the_gradient_where_part_is_float16(scale):
    w = torch.randn(64, requires_grad=True)

    def gradient(c):
        half = (w.half() * 0.37).tanh()
        (g,) = uphill((half.float().square() * c).sum(), [w])
        return g

    torch.testing.assert_close(gradient(scale), gradient(1.0) * scale, rtol=0, atol=0)
    plain = torch.autograd.grad((w * 0.37).tanh().square().sum(), w)[0]
    torch.testing.assert_close(gradient(1.0), plain, rtol=0.02, atol=0.01)


@pytest.mark.parametrize("peak", [0.0, 2.0**-140, 2.0**-120, 2.0**120, torch.inf])
def test_uphill_spoils_nothing_where_gradients_are_extreme(peak):
    w, slopes = torch.randn(3, requires_grad=True), torch.tensor([peak * 0.75, peak / 2, 0.0])
    (found,) = uphill((w.half().float() * slopes).sum(), [w])
    vanishing = 0 < peak < 2.0**-126  # in float32 already
    assert torch.equal(found, torch.zeros(3) if vanishing else slopes)


@pytest.mark.parametrize("of", ["inputs", "height"])
def test_uphill_is_the_gradient_where_an_end_is_float16(of):
    w = torch.randn(64).to(torch.float16 if of == "inputs" else torch.float32).requires_grad_()
    height = (w.float() * 1e-9).sum() if of == "inputs" else (w / 1024).sum().half()
    (found,) = uphill(height, [w])
    assert found.dtype == torch.float32
    wanted = torch.full((64,), 1e-9 if of == "inputs" else 1 / 1024)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=0)
