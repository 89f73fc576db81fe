"""Which backend runs a model: what is asked for is done, or refused by name."""

import pytest
import torch

from nanollama.backends import torch_compile
from nanollama.backends.select import BackendChoice, load_backend, physical_cores, thread_count
from nanollama.backends.torch_backend import choose_device
from nanollama.errors import UnsupportedError, UsageError
from nanollama.model.spec import ModelSpec
from toys import llama_spec, make_toy, toy_of


@pytest.fixture
def wide_heads() -> ModelSpec:
    """A model that the kernels have no code for."""
    return llama_spec(head_dim=528)


def test_torch_stands_in_for_the_native_backend_with_a_notice(wide_heads: ModelSpec) -> None:
    notices: list[str] = []
    loaded = load_backend(
        BackendChoice(device="cpu"), wide_heads, toy_of(wide_heads).tensors, cache_tokens=64,
        notice=notices.append,
    )  # fmt: skip
    assert loaded.name == "torch"
    assert len(notices) == 1
    assert "slower torch backend" in notices[0]
    assert "528 dimensions" in notices[0]
    loaded.backend.close()


def test_the_native_backend_asked_for_by_name_refuses_by_name(wide_heads: ModelSpec) -> None:
    with pytest.raises(UnsupportedError, match="heads of 528 dimensions"):
        load_backend(
            BackendChoice(backend="native"), wide_heads, toy_of(wide_heads).tensors, cache_tokens=64,
            notice=print,
        )  # fmt: skip


def test_a_thousand_threads_are_cut_to_what_a_machine_can_use_with_a_notice() -> None:
    """On two processors they took more than a minute for a few tokens."""
    notices: list[str] = []
    most = thread_count(1024, notices.append)
    assert most <= 1024
    assert thread_count(most) == most
    assert bool(notices) == (most < 1024)
    assert all(f"1024 threads would wait for one another on {most // 8} processors" in n for n in notices)


def test_without_a_wish_there_is_a_thread_for_each_core() -> None:
    assert thread_count(None) == physical_cores()


def test_the_native_backend_refuses_to_be_compiled() -> None:
    with pytest.raises(UsageError, match="compiled already; leave --compile out"):
        BackendChoice(backend="native", compile=True)


def test_to_be_compiled_a_model_goes_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_compile.CompiledModel, "prepare", lambda self: None)
    toy, notices = make_toy("llama"), []
    choice = BackendChoice(device="cpu", compile=True)
    loaded = load_backend(choice, toy.spec, toy.tensors, cache_tokens=64, notice=notices.append)
    assert (loaded.name, loaded.device, loaded.dtype) == ("torch", "cpu", "float32")
    assert not notices
    loaded.backend.close()


@pytest.mark.parametrize(
    ("cuda", "mps", "chosen"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_auto_takes_cuda_then_mps_then_the_cpu(
    cuda: bool, mps: bool, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert choose_device("auto") == chosen
