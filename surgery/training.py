"""What a training loop asks of an adapted model, beside its forward.

>>> import torch, surgery
>>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
>>> spec = "on Linear apply lora(r = 2)  optimize B of lora with lr * 16"
>>> model = surgery.apply(model, spec + "  penalty 0.1 * frobenius(A) of lora", seed=0)
>>> optimizer = torch.optim.AdamW(surgery.param_groups(model, lr=1e-3))
>>> for _ in range(2):
...     loss = model(torch.ones(4, 8)).square().mean() + surgery.penalty(model)
...     loss.backward()
...     optimizer.step()
...     surgery.step(model)
...     optimizer.zero_grad()
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from surgery.graft.contexts import adapted
from surgery.graft.optimizing import groups_of
from surgery.graft.penalties import penalty_of
from surgery.graft.stepping import step_specs
from surgery.graft.target import adapted_of
from surgery.graft.watching import note_penalty, note_step


def param_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float | None = None,
    momentum: float | None = None,
    eps: float | None = None,
) -> list[dict[str, Any]]:
    """Return the trainable parameters of ``model`` in groups, as torch's optimizers take them.

    Each trainable parameter is in one group. The options are those given here, changed by the
    `optimize` statements of the specs and rules that were applied.

    Args:
        model: any module, adapted or not.
        lr: the learning rate that `lr * 16` is sixteen times of.
        weight_decay: the same for `weight_decay`, and so on; what is not given is left to the
            optimizer.
        momentum: of SGD and RMSprop.
        eps: of the Adam family.

    Raises:
        SurgeryError: S570 if a statement changes an option that is not given here.

    >>> import torch, surgery
    >>> model = surgery.apply(torch.nn.Linear(8, 8), "on Linear apply lora_plus(2)", seed=0)
    >>> [(group["lr"], len(group["params"])) for group in surgery.param_groups(model, lr=0.001)]
    [(0.001, 1), (0.016, 1)]

    """
    options = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "eps": eps}
    given = {name: value for name, value in options.items() if value is not None}
    target = adapted_of(model)
    with adapted(target):
        return groups_of(target, given)


def penalty(model: nn.Module) -> Tensor:
    """Return the sum of all penalties of specs and rules, to be added to the loss.

    It is one number, [], with a gradient; 0 if there are no penalties.

    >>> import torch, surgery
    >>> model = surgery.apply(torch.nn.Linear(8, 8), "on Linear apply lora(2)", seed=0)
    >>> surgery.penalty(model)
    tensor(0.)

    """
    target = adapted_of(model)
    with adapted(target):
        note_penalty(target)
        return penalty_of(target)


def step(model: nn.Module) -> None:
    """Do what the rules of ``model`` say of a step of the optimizer; nothing if they say nothing.

    Call it once for each step, between `optimizer.step()` and `optimizer.zero_grad()`: rules may
    read gradients. The number of steps is part of the model, and of what :func:`surgery.save` writes.

    Raises:
        SurgeryError: S512 if nothing was applied, S571 if a rule reads gradients that are gone.

    """
    target = adapted_of(model)
    with adapted(target):
        step_specs(target)
        note_step(target)
