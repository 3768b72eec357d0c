"""What a Trainer does with the callback is what a plain loop does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgery

pytestmark = pytest.mark.filterwarnings("ignore")
SPEC = """
on Linear apply adalora(3, ramp(3, 1, 0, 3), until = 3, every = 1)
optimize B of adalora with lr * 4
"""


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        scores = self.layers(x)
        return {"loss": nn.functional.cross_entropy(scores, labels), "logits": scores}


def batches() -> list[dict[str, Tensor]]:
    random = torch.Generator().manual_seed(1)
    return [
        {"x": torch.randn(6, generator=random), "labels": torch.tensor(i % 3)} for i in range(8)
    ]


def adapted() -> Any:
    return surgery.apply(Classifier(), SPEC, seed=0)


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(surgery.param_groups(model, lr=0.1))


def trainer(model: nn.Module, optimizer: Any, folder: Path, callbacks: list[Any]) -> Any:
    transformers = pytest.importorskip("transformers")
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=4,
        per_device_train_batch_size=2,
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    made = transformers.Trainer(
        model, arguments, train_dataset=batches(), optimizers=(optimizer, None), callbacks=callbacks
    )
    made._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(batches())
    return made


def test_a_trainer_with_the_callback_is_a_plain_loop(tmp_path: Path) -> None:
    from surgery.huggingface import TrainingCallback

    theirs, ours = adapted(), adapted()
    trainer(theirs, optimizer(theirs), tmp_path, [TrainingCallback()]).train()
    mine, data = optimizer(ours.train()), batches()
    for step in range(4):
        pair = data[2 * step : 2 * step + 2]
        batch = {key: torch.stack([example[key] for example in pair]) for key in pair[0]}
        (ours(**batch)["loss"] + surgery.penalty(ours)).backward()
        mine.step()
        surgery.step(ours)
        mine.zero_grad()
    for (name, one), other in zip(
        theirs.state_dict().items(), ours.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(one, other, msg=name)
    assert int(theirs.layers[0].adalora.clock[0]) == 4


@pytest.mark.parametrize(("callback", "groups"), [(False, True), (True, False)])
def test_a_trainer_that_lacks_something_is_told_so(
    tmp_path: Path, callback: bool, groups: bool
) -> None:
    from surgery.huggingface import TrainingCallback

    model = adapted()
    made = optimizer(model) if groups else torch.optim.SGD(surgery.trainable(model).values(), 0.1)
    callbacks = [TrainingCallback()] if callback else []
    with pytest.raises(surgery.SurgeryError, match="S575" if callback else "S574"):
        trainer(model, made, tmp_path, callbacks).train()
