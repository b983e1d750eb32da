"""Linear layers through oneDNN: the same numbers as torch's own, in value and gradient, and only where they apply."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.fixtures.tiny_models import tiny_model
from twdpo.pipeline import cpu_linear
from twdpo.pipeline.cpu_linear import (
    FastExactLinear,
    FastLinear,
    exact_matmul_nt,
    matmul_nt,
    onednn_is_faster,
    use_fast_exact_linear,
    use_fast_linear,
)


@pytest.fixture
def faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor where it is, if this build of torch can do it at all."""
    if not cpu_linear._works():
        pytest.skip("this build of torch lacks oneDNN's linear operation")
    monkeypatch.setattr(cpu_linear, "onednn_is_faster", lambda: True)


@pytest.fixture
def decided_anew() -> Iterator[None]:
    """The decision is made once a process: forget it before and after."""
    onednn_is_faster.cache_clear()
    yield
    onednn_is_faster.cache_clear()


@pytest.mark.usefixtures("faster")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(3, 5, 16), (7, 16), (1, 16), (2, 1, 3, 16)])
def test_values_and_gradients(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(16, 9, bias=bias)
    fast = nn.Sequential(copy.deepcopy(plain))
    assert use_fast_linear(fast) == 1
    assert type(fast[0]) is FastLinear
    assert use_fast_linear(fast) == 0
    results = []
    for layer in (plain, fast):
        x = torch.linspace(-1, 1, 16 * 3 * 5 * 2)[: torch.Size(shape).numel()].view(shape).clone().requires_grad_()
        y = layer(x)
        upstream = torch.cos(torch.arange(y.numel(), dtype=torch.float32)).view_as(y)
        (y * upstream).sum().backward()
        results.append((y, x.grad, *(p.grad for p in layer.parameters())))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("faster")
def test_other_types_take_the_ordinary_way() -> None:
    layer = nn.Sequential(nn.Linear(4, 3))
    use_fast_linear(layer)
    x = torch.ones(2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert layer.double()(x.double()).dtype == torch.float64
    assert use_fast_linear(nn.Sequential(nn.Linear(4, 3, dtype=torch.bfloat16))) == 0
    a, b = torch.randn(3, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(matmul_nt(a, b), a @ b.T)


@pytest.mark.usefixtures("faster")
def test_names_parameters_and_subclasses_stay() -> None:
    class Own(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(4, 4), Own(4, 4))
    before = {name: value.data_ptr() for name, value in model.named_parameters()}
    use_fast_linear(model)
    assert {name: value.data_ptr() for name, value in model.named_parameters()} == before
    assert type(model[1]) is Own


@pytest.mark.usefixtures("decided_anew")
@pytest.mark.parametrize(("vendor", "faster"), [("GenuineIntel", False), ("AuthenticAMD", True), (None, False)])
def test_the_processor_decides(
    vendor: str | None, faster: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cpuinfo"
    if vendor:
        file.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n")
    monkeypatch.setattr(cpu_linear, "_CPUINFO", file)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(cpu_linear, "_works", lambda: True)
    assert onednn_is_faster() is faster


@pytest.mark.usefixtures("faster")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("width", [16, 192, 193, 500])
def test_in_pieces(width: int, bias: bool) -> None:
    """Whatever the pieces: the values, the weights as their users see them, and a second call changes nothing."""
    torch.manual_seed(0)
    plain = nn.Linear(width, 9, bias=bias)
    exact = nn.Sequential(copy.deepcopy(plain))
    assert use_fast_exact_linear(exact) == 1
    assert type(exact[0]) is FastExactLinear
    assert use_fast_exact_linear(exact) == 0
    assert torch.equal(exact[0].weight, plain.weight)
    x = torch.randn(2, 7, width)
    with torch.inference_mode():
        torch.testing.assert_close(exact(x), plain(x), rtol=1e-5, atol=1e-5)
        assert exact(x[:, :0]).shape == (2, 0, 9)
        assert exact(x.double().float()[..., :width]).dtype == torch.float32


@pytest.mark.usefixtures("faster")
def test_pieces_round_less_than_one_long_sum() -> None:
    torch.manual_seed(0)
    a, b = torch.rand(64, 1536), torch.rand(1536, 48).t()
    exact = a.double() @ b.double().t()

    def error(product: torch.Tensor) -> float:
        return float((product - exact).norm())

    assert error(exact_matmul_nt(a, b)) < 0.8 * error(matmul_nt(a, b))


@pytest.mark.usefixtures("faster")
def test_the_output_head_keeps_its_weights_layout() -> None:
    """Often it shares them with the embedding, which looks rows up."""
    model = tiny_model()
    use_fast_exact_linear(model)
    assert model.get_output_embeddings().weight.is_contiguous()
    assert type(model.model.layers[0].mlp.up_proj) is FastExactLinear
