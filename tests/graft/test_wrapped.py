"""Wrappers around adapted models: PyTorch's own, accelerate's, and modules that hold a model."""

from __future__ import annotations

import warnings
from collections.abc import Generator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.hooks import ModelHook, add_hook_to_module
from accelerate.state import AcceleratorState
from torch import Tensor, nn

import surgery

SPEC = "on Linear apply lora(2)  on Sequential parallel adapter(3)  train bias"


def made() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))


@pytest.fixture
def base() -> nn.Module:
    return made()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(4, 6)


def disturb(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in surgery.trainable(model).values():
            parameter.add_(0.3 * torch.randn_like(parameter))


@pytest.fixture
def group(tmp_path: Path) -> Generator[None]:
    """A process group of this process alone."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")  # type: ignore[return-value]


class Holder(nn.Module):
    """A wrapper of somebody's own, which holds nothing else."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.inner = model

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


WRAPPERS = {
    "compiled": compiled,
    "DataParallel": nn.DataParallel,
    "DistributedDataParallel": nn.parallel.DistributedDataParallel,
    "Holder": Holder,
    "two of them": lambda model: Holder(compiled(model)),
}


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_verbs_find_what_was_applied_within_a_wrapper(wrap, base, x, tmp_path) -> None:
    before = base(x)
    surgery.apply(base, SPEC, seed=0)
    disturb(base)
    adapted = base(x)
    wrapped = wrap(base)
    assert torch.equal(wrapped(x), adapted)
    assert surgery.trainable(wrapped).keys() == surgery.trainable(base).keys()
    with surgery.disabled(wrapped):
        assert torch.equal(wrapped(x), before)
    with surgery.merged(wrapped):
        torch.testing.assert_close(wrapped(x), adapted)
    path = surgery.save(wrapped, tmp_path)
    assert torch.equal(surgery.load(made(), path)(x), adapted)
    assert torch.equal(wrapped(x), adapted)
    surgery.remove(wrapped)
    assert torch.equal(wrapped(x), before)
    assert torch.equal(base(x), before)


@pytest.mark.parametrize("wrap", [compiled, nn.DataParallel])
def test_a_wrapped_model_is_adapted_under_its_own_names(wrap, base, x) -> None:
    wrapped = wrap(base)
    wrapped(x)
    assert surgery.apply(wrapped, SPEC, seed=0) is wrapped
    disturb(wrapped)
    direct = surgery.trainable(base)
    assert all(not name.startswith(("module.", "_orig_mod.")) for name in direct)
    assert torch.equal(wrapped(x), base(x))


@pytest.mark.usefixtures("group")
def test_parameters_that_would_not_be_synchronised_are_refused(base) -> None:
    wrapped = nn.parallel.DistributedDataParallel(base)
    for outside in (wrapped, torch.compile(wrapped, backend="eager"), nn.DataParallel(wrapped)):
        with pytest.raises(surgery.SurgeryError, match="S547"):
            surgery.apply(outside, SPEC)
    assert surgery.plan(wrapped, SPEC).added > 0


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = made(), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x))


VERBS = {
    "save": lambda model, path: surgery.save(model, path),
    "remove": lambda model, path: surgery.remove(model),
    "merge": lambda model, path: surgery.merge(model),
    "merged": lambda model, path: surgery.merged(model).__enter__(),
    "disabled": lambda model, path: surgery.disabled(model).__enter__(),
}


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_verbs_say_which_module_was_adapted(verb, x, tmp_path) -> None:
    outer = Pair()
    surgery.apply(outer.encoder, SPEC, seed=0)
    before = outer(x)
    with pytest.raises(surgery.SurgeryError, match=r"(?s)S5(12|21).*its `encoder`"):
        verb(outer, tmp_path / "file")
    surgery.remove(outer.encoder)
    surgery.apply(outer, "on `encoder.0` apply lora(2)", seed=0)
    with pytest.raises(surgery.SurgeryError, match=r"(?s)S5(12|21).*`encoder` of an adapted Pair"):
        verb(outer.encoder, tmp_path / "file")
    assert torch.equal(outer(x), before)
    assert not (tmp_path / "file").exists()


@pytest.mark.parametrize("given", [None, "llama", {"model": 1}, 3, nn.Linear])
def test_what_is_no_model_is_told_so(given) -> None:
    for verb in (surgery.apply, surgery.plan, surgery.diff, surgery.verify):
        with pytest.raises(surgery.SurgeryError, match="S546"):
            verb(given, "on Linear apply lora")
    for verb in (surgery.remove, surgery.trainable, surgery.merge, surgery.merged, surgery.inspect):
        with pytest.raises(surgery.SurgeryError, match="S546"):
            verb(given)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_graft_on_the_root_survives_accelerates_preparation(precision, base, x) -> None:
    before = base(x)
    surgery.apply(base, SPEC, seed=0)
    disturb(base)
    AcceleratorState._reset_state(reset_partial_state=True)
    prepared = Accelerator(cpu=True, mixed_precision=precision).prepare_model(base)
    adapted = prepared(x)
    assert not torch.equal(adapted, before)
    with surgery.disabled(prepared):
        assert torch.allclose(prepared(x), before, atol=0 if precision == "no" else 0.05)
    assert torch.equal(prepared(x), adapted)
    with surgery.merged(prepared):
        assert torch.allclose(prepared(x), adapted, atol=1e-5 if precision == "no" else 0.1)
    assert torch.equal(prepared(x), adapted)
    surgery.remove(prepared)
    assert torch.allclose(prepared(x), before, atol=0 if precision == "no" else 0.05)


class Doubled(ModelHook):
    def post_forward(self, module: nn.Module, output: Tensor) -> Tensor:
        return 2 * output


@pytest.mark.parametrize("path", ["", "0"])
def test_hooks_that_replace_a_forward_run_what_the_module_is_now(path, base, x) -> None:
    plain = made()
    add_hook_to_module(plain.get_submodule(path), Doubled())
    doubled = plain(x)
    surgery.apply(base, SPEC, seed=0)
    add_hook_to_module(base.get_submodule(path), Doubled())
    assert torch.equal(base(x), doubled)
    disturb(base)
    with surgery.disabled(base):
        assert torch.equal(base(x), doubled)
    surgery.remove(base)
    assert torch.equal(base(x), doubled)


def test_warnings_of_a_plan_are_python_warnings(base) -> None:
    with pytest.warns(surgery.SurgeryWarning, match="S302") as found:
        surgery.apply(base, "on Linear except `lm_head` apply lora(2)")
    assert found[0].filename == __file__
    with pytest.warns(surgery.SurgeryWarning, match="S302"):
        surgery.select(base, "Linear except `lm_head`")


@pytest.mark.parametrize(
    "verb",
    [
        lambda model, path: surgery.apply(model, "on Linear except Tanh apply lora(2)"),
        lambda model, path: surgery.load(model, path, base="shape"),
    ],
)
def test_where_warnings_are_errors_nothing_is_half_done(verb, base, x, tmp_path) -> None:
    surgery.save(surgery.apply(made(), "on Linear apply lora(2)"), tmp_path)
    expected, names = base(x), list(base.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(surgery.SurgeryWarning):
            verb(base, tmp_path)
    assert list(base.state_dict()) == names
    assert torch.equal(base(x), expected)
    assert all(p.requires_grad for p in base.parameters())


@pytest.mark.parametrize("given", [5, ["lora"], {}])
def test_a_text_that_is_none_is_told_so(given, base) -> None:
    surgery.apply(base, "on Linear apply lora(2)")
    for ask in (surgery.remove, surgery.select, surgery.inspect):
        with pytest.raises(surgery.SurgeryError, match="is a text, and this is"):
            ask(base, given)
    with pytest.raises(surgery.SurgeryError, match="S305"):
        surgery.explain(base, given, "on Linear apply ia3")
