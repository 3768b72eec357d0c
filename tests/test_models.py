"""Models come from what a user types; a merged one is written only as what loads again."""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from safetensors.torch import load_model as load_state
from torch import nn
from transformers import AutoModel, LlamaConfig, LlamaForCausalLM

from surgery.language.diagnostics import SurgeryError
from surgery.models import load_model, load_tokenizer, save_model

FACTORIES = """
import torch
from torch import nn

ready = nn.Linear(3, 2)
number = 7


def small():
    return nn.Linear(4, 4)


def needy(size):
    return nn.Linear(size, size)


def forgetful():
    nn.Linear(4, 4)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory with a module of factories, forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toys").mkdir()
    (tmp_path / "toys" / "__init__.py").touch()
    (tmp_path / "toys" / "factories.py").write_text(FACTORIES)
    (tmp_path / "toys" / "broken.py").write_text("import nothing_of_this_name\n")
    yield tmp_path
    for name in [n for n in sys.modules if n.partition(".")[0] == "toys"]:
        del sys.modules[name]


def llama(**options: object) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        **options,
    )
    return LlamaForCausalLM(config)


def message(text: str) -> str:
    with pytest.raises(SurgeryError) as caught:
        load_model(text)
    return str(caught.value)


def test_factory_is_called_and_instance_taken(here: Path):
    assert load_model("toys.factories:small").in_features == 4
    assert load_model("toys.factories:ready").out_features == 2
    assert load_model("toys.factories:ready") is load_model("toys.factories:ready")


def test_current_directory_is_importable_only_while_loading(here: Path):
    before = list(sys.path)
    load_model("toys.factories:small")
    assert sys.path == before


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("toys.factorys:small", "S503", "did you mean `toys.factories`?"),
        ("toyz.factories:small", "S503", "did you mean `toys`?"),
        ("toys.broken:small", "S503", "importing `toys.broken` raised ModuleNotFoundError"),
        ("toys.factories:smal", "S504", "did you mean `small`?"),
        ("toys.factories:qqq", "S504", "it has `torch`, `nn`, `ready` and 4 more"),
        ("toys.factories:needy", "S505", "missing 1 required positional argument: 'size'"),
        ("toys.factories:forgetful", "S506", "gives a NoneType"),
        ("toys.factories:number", "S506", "gives a int"),
        ("./toy", "S501", "did you mean `toys`?"),
        ("toys/factorie.gguf", "S501", "no model `toys/factorie.gguf`"),
        ("toys/nowhere/at/all", "S501", "there is no such file or directory"),
        ("toys", "S501", "holds no config.json and no GGUF file"),
        ("toys/factories.py", "S501", "is a file of no kind known here"),
        ("nobody/nothing-here", "S501", "isn't here, and from the hub"),
        ("", "S501", "holds no config.json"),
    ],
)
def test_error_says_what_and_what_is_near(here: Path, text: str, code: str, said: str):
    shown = message(text)
    assert shown.startswith(f"error[{code}]: ")
    assert said in shown


def test_several_gguf_files_are_named(here: Path):
    (here / "packed").mkdir()
    for name in ("one.gguf", "two.gguf"):
        (here / "packed" / name).touch()
    assert "name one of them: `packed/one.gguf`, `packed/two.gguf`" in message("packed")


def test_damaged_files_are_an_error_with_the_reason(here: Path):
    (here / "damaged").mkdir()
    (here / "damaged" / "config.json").write_text('{"model_type": "no-such-type"}')
    assert re.match(r"error\[S507\]: `damaged` can't be loaded: .*no-such-type", message("damaged"))


def test_a_gguf_file_is_found_by_its_path(here: Path):
    (here / "packed.gguf").write_bytes(b"not really")
    assert message("packed.gguf").startswith("error[S507]: `packed.gguf` can't be loaded: ")


def test_missing_transformers_says_what_to_install(here: Path):
    (here / "model").mkdir()
    (here / "model" / "config.json").write_text("{}")
    program = (
        "import sys, importlib.util as util\n"
        "find = util.find_spec\n"
        "hidden = lambda name, *rest: None if name == 'transformers' else find(name, *rest)\n"
        "util.find_spec = hidden\n"
        "from surgery.models import load_model\n"
        "assert 'transformers' not in sys.modules\n"
        "load_model('model')\n"
    )
    root = Path(__file__).parents[1]
    ran = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(root)!r})\n{program}"],
        capture_output=True,
        text=True,
    )
    assert "`model` needs the package `transformers`" in ran.stderr
    assert "pip install 'model-surgery[transformers]'" in ran.stderr


def test_minilm_is_its_own_class_and_silent():
    heard = io.StringIO()
    with contextlib.redirect_stderr(heard), contextlib.redirect_stdout(heard):
        model = load_model("examples.models:minilm")
        tokenizer = load_tokenizer("examples.models:minilm_tokenizer")
    assert type(model).__name__ == "BertModel"
    assert not heard.getvalue()
    with torch.no_grad():
        near, far, same = (
            model(**tokenizer(t, return_tensors="pt")).last_hidden_state.mean(1)
            for t in ("a cat sleeps", "interest rates rose", "the kitten is asleep")
        )
    assert torch.cosine_similarity(near, same) > 0.5 > torch.cosine_similarity(near, far)


@pytest.mark.slow
def test_gguf_gives_a_dense_model_that_can_be_saved(tmp_path: Path):
    model = load_model("examples.models:smollm2")
    assert type(model).__name__ == "LlamaForCausalLM"
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    save_model(model, tmp_path / "dense", load_tokenizer("examples.models:smollm2_tokenizer"))
    again = load_model(tmp_path / "dense")
    assert all(
        torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True)
    )
    assert load_tokenizer(tmp_path / "dense")("Hello").input_ids


def test_saved_model_loads_again_bit_for_bit(tmp_path: Path):
    model = llama()
    assert save_model(model, tmp_path / "deep" / "out") == tmp_path / "deep" / "out"
    again = load_model(tmp_path / "deep" / "out")
    assert type(again) is LlamaForCausalLM
    for (name, value), (same, other) in zip(
        model.state_dict().items(), again.state_dict().items(), strict=True
    ):
        assert name == same
        assert torch.equal(value, other)


def test_a_bias_the_architecture_lacks_is_an_error_and_leaves_nothing(tmp_path: Path):
    model = llama()
    for layer in model.model.layers:
        layer.self_attn.q_proj.bias = nn.Parameter(torch.ones(16))
    with pytest.raises(SurgeryError, match="S508") as caught:
        save_model(model, tmp_path / "out")
    assert "LlamaForCausalLM does not have: `model.layers.0.self_attn.q_proj.bias`" in str(
        caught.value
    )
    assert list(tmp_path.iterdir()) == []


def test_a_weight_that_is_gone_or_reshaped_is_an_error(tmp_path: Path):
    gone, reshaped = llama(), llama()
    del gone.model.norm.weight
    reshaped.model.layers[1].mlp.up_proj.weight = nn.Parameter(torch.ones(33, 16))
    with pytest.raises(SurgeryError, match=r"has, and the model lacks: `model.norm.weight`"):
        save_model(gone, tmp_path / "out")
    with pytest.raises(SurgeryError, match=r"another shape: `model.layers.1.mlp.up_proj.weight`"):
        save_model(reshaped, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_untied_head_is_written_as_untied(tmp_path: Path):
    model = llama(tie_word_embeddings=True)
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach() + 1)
    save_model(model, tmp_path / "out")
    assert (
        json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    )
    assert model.config.tie_word_embeddings is True
    again = load_model(tmp_path / "out")
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)
    assert torch.equal(again.model.embed_tokens.weight, model.model.embed_tokens.weight)


def test_missing_weights_are_never_filled_with_noise(tmp_path: Path):
    model = llama(tie_word_embeddings=False)
    save_model(model, tmp_path / "out")
    AutoModel.from_pretrained(tmp_path / "out").save_pretrained(tmp_path / "headless")
    config = json.loads((tmp_path / "headless" / "config.json").read_text())
    config["architectures"] = ["LlamaForCausalLM"]
    (tmp_path / "headless" / "config.json").write_text(json.dumps(config))
    assert "S507" in message(str(tmp_path / "headless"))
    assert "lacks weights that LlamaForCausalLM has: `lm_head.weight`" in message(
        str(tmp_path / "headless")
    )


def test_writing_over_keeps_other_files_and_drops_stale_shards(tmp_path: Path):
    (tmp_path / "spec.peft").write_text("freeze all\n")
    (tmp_path / "model-00001-of-00002.safetensors").touch()
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    save_model(llama(), tmp_path)
    names = {file.name for file in tmp_path.iterdir()}
    assert names >= {"spec.peft", "config.json", "model.safetensors"}
    assert not {n for n in names if "of-00002" in n or n.endswith("index.json")}
    assert not {n for n in names if n.startswith(".")}


def test_plain_module_is_one_file_with_tied_tensors_once(tmp_path: Path):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(8, 4)
            self.head = nn.Linear(4, 8, bias=False)
            self.head.weight = self.embedding.weight

    model, fresh = Tied(), Tied()
    file = save_model(model, tmp_path / "out") / "model.safetensors"
    assert len(load_file(file)) == 1
    load_state(fresh, file)
    assert torch.equal(fresh.head.weight, model.embedding.weight)


def test_a_file_in_the_way_is_an_error(tmp_path: Path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(SurgeryError, match="S509"):
        save_model(nn.Linear(2, 2), tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("given", [5, None, b"model", "a\0b"])
@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_what_is_no_path_is_refused(load: Any, given: Any) -> None:
    with pytest.raises(SurgeryError, match="S501"):
        load(given)
