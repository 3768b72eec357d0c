"""Tiny models by name, every parameter random: what the tests of the whole system run on.

Initial values hide mistakes (zero biases, norms of ones), so nothing keeps them.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

os.environ.setdefault("HF_HUB_OFFLINE", "1")

HIDDEN = 32
INNER = 48
HEADS = 4
LAYERS = 2
VOCABULARY = 96

_BUILDERS: dict[str, Callable[[], nn.Module]] = {}


def names() -> tuple[str, ...]:
    """Every model that can be built."""
    return tuple(_BUILDERS)


def build(name: str, seed: int = 0) -> nn.Module:
    """The model so named, in eval mode, with random parameters that depend on ``seed`` alone."""
    state = torch.get_rng_state()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = _BUILDERS[name]()
    finally:
        torch.set_rng_state(state)
    return randomise(model, seed).eval()


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random values for every parameter and running statistic; activations stay tame."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.is_floating_point():
                continue
            noise = torch.randn(parameter.shape, generator=generator)
            scale = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.2
            value = scale * noise
            if parameter.dim() == 1 and bool((parameter == 1).all()):
                value = value + 1
            parameter.copy_(value)
        for module in model.modules():
            if (
                isinstance(module, nn.modules.batchnorm._NormBase)
                and module.running_var is not None
            ):
                module.running_mean.copy_(torch.randn(module.num_features, generator=generator) / 5)
                module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
    return model


def _register(name: str) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    def keep(builder: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        _BUILDERS[name] = builder
        return builder

    return keep


def _hosted(name: str, config: str, model: str, **settings: Any) -> None:
    """A transformers model; imported only when it is built."""

    def builder() -> nn.Module:
        import transformers

        made = getattr(transformers, config)(**settings)
        return getattr(transformers, model)(made)

    _BUILDERS[name] = builder


_TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_DECODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 64,
    **_TOKENS,
}
_GROUPED = {**_DECODER, "num_key_value_heads": 2}
_ENCODER = {**_DECODER, "type_vocab_size": 2}

_hosted("llama", "LlamaConfig", "LlamaForCausalLM", **_GROUPED)
_hosted("qwen2", "Qwen2Config", "Qwen2ForCausalLM", **_GROUPED)
_hosted("qwen3", "Qwen3Config", "Qwen3ForCausalLM", **_GROUPED, head_dim=8)
_hosted("mistral", "MistralConfig", "MistralForCausalLM", **_GROUPED)
_hosted("gemma", "GemmaConfig", "GemmaForCausalLM", **_GROUPED, head_dim=8)
_hosted("gemma2", "Gemma2Config", "Gemma2ForCausalLM", **_GROUPED, head_dim=8)
_hosted("cohere", "CohereConfig", "CohereForCausalLM", **_GROUPED)
_hosted("phi", "PhiConfig", "PhiForCausalLM", **_DECODER)
_hosted("phi3", "Phi3Config", "Phi3ForCausalLM", **_GROUPED)
_hosted("gpt_neox", "GPTNeoXConfig", "GPTNeoXForCausalLM", **_DECODER)
_hosted(
    "mixtral",
    "MixtralConfig",
    "MixtralForCausalLM",
    **_GROUPED,
    num_local_experts=4,
    num_experts_per_tok=2,
)
_hosted(
    "gpt2",
    "GPT2Config",
    "GPT2LMHeadModel",
    vocab_size=VOCABULARY,
    n_embd=HIDDEN,
    n_inner=INNER,
    n_layer=LAYERS,
    n_head=HEADS,
    n_positions=64,
    **_TOKENS,
)
_hosted(
    "gptj",
    "GPTJConfig",
    "GPTJForCausalLM",
    vocab_size=VOCABULARY,
    n_embd=HIDDEN,
    n_inner=INNER,
    n_layer=LAYERS,
    n_head=HEADS,
    n_positions=64,
    rotary_dim=4,
    **_TOKENS,
)
_hosted(
    "falcon",
    "FalconConfig",
    "FalconForCausalLM",
    vocab_size=VOCABULARY,
    hidden_size=HIDDEN,
    ffn_hidden_size=INNER,
    num_hidden_layers=LAYERS,
    num_attention_heads=HEADS,
    **_TOKENS,
)
_hosted(
    "bloom",
    "BloomConfig",
    "BloomForCausalLM",
    vocab_size=VOCABULARY,
    hidden_size=HIDDEN,
    n_layer=LAYERS,
    n_head=HEADS,
    **_TOKENS,
)
_hosted(
    "mpt",
    "MptConfig",
    "MptForCausalLM",
    vocab_size=VOCABULARY,
    d_model=HIDDEN,
    n_layers=LAYERS,
    n_heads=HEADS,
    max_seq_len=64,
    **_TOKENS,
)
_hosted(
    "opt",
    "OPTConfig",
    "OPTForCausalLM",
    vocab_size=VOCABULARY,
    hidden_size=HIDDEN,
    word_embed_proj_dim=HIDDEN,
    ffn_dim=INNER,
    num_hidden_layers=LAYERS,
    num_attention_heads=HEADS,
    max_position_embeddings=64,
    **_TOKENS,
)
_hosted("bert", "BertConfig", "BertModel", **_ENCODER)
_hosted("bert_classifier", "BertConfig", "BertForSequenceClassification", **_ENCODER, num_labels=3)
_hosted("roberta", "RobertaConfig", "RobertaForMaskedLM", **_ENCODER)
_hosted("electra", "ElectraConfig", "ElectraModel", **_ENCODER, embedding_size=HIDDEN)
_hosted("albert", "AlbertConfig", "AlbertModel", **_ENCODER, embedding_size=16)
_hosted(
    "deberta",
    "DebertaV2Config",
    "DebertaV2Model",
    **_ENCODER,
    relative_attention=True,
    position_buckets=8,
    pos_att_type=["c2p", "p2c"],
)
_hosted(
    "distilbert",
    "DistilBertConfig",
    "DistilBertModel",
    vocab_size=VOCABULARY,
    dim=HIDDEN,
    hidden_dim=INNER,
    n_layers=LAYERS,
    n_heads=HEADS,
    max_position_embeddings=64,
    pad_token_id=0,
)
_hosted(
    "t5",
    "T5Config",
    "T5ForConditionalGeneration",
    vocab_size=VOCABULARY,
    d_model=HIDDEN,
    d_ff=INNER,
    d_kv=8,
    num_layers=LAYERS,
    num_heads=HEADS,
    decoder_start_token_id=0,
)
_hosted(
    "bart",
    "BartConfig",
    "BartForConditionalGeneration",
    vocab_size=VOCABULARY,
    d_model=HIDDEN,
    encoder_ffn_dim=INNER,
    decoder_ffn_dim=INNER,
    encoder_layers=LAYERS,
    decoder_layers=LAYERS,
    encoder_attention_heads=HEADS,
    decoder_attention_heads=HEADS,
    max_position_embeddings=64,
    decoder_start_token_id=2,
    forced_eos_token_id=2,
    **_TOKENS,
)
_hosted(
    "whisper",
    "WhisperConfig",
    "WhisperForConditionalGeneration",
    vocab_size=VOCABULARY,
    d_model=HIDDEN,
    encoder_ffn_dim=INNER,
    decoder_ffn_dim=INNER,
    encoder_layers=LAYERS,
    decoder_layers=LAYERS,
    encoder_attention_heads=HEADS,
    decoder_attention_heads=HEADS,
    num_mel_bins=8,
    max_source_positions=16,
    max_target_positions=32,
    decoder_start_token_id=1,
    begin_suppress_tokens=None,
    suppress_tokens=None,
    **_TOKENS,
)
_IMAGE = {"image_size": 16, "patch_size": 8, "num_channels": 3}
_hosted(
    "vit",
    "ViTConfig",
    "ViTForImageClassification",
    hidden_size=HIDDEN,
    intermediate_size=INNER,
    num_hidden_layers=LAYERS,
    num_attention_heads=HEADS,
    num_labels=3,
    **_IMAGE,
)


@_register("clip")
def _clip() -> nn.Module:
    import transformers

    tower = {
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
    }
    text = {**tower, "vocab_size": VOCABULARY, "max_position_embeddings": 16, **_TOKENS}
    config = transformers.CLIPConfig(
        text_config=text, vision_config={**tower, **_IMAGE}, projection_dim=16
    )
    return transformers.CLIPModel(config)


@_register("encoder_layer")
def _encoder_layer() -> nn.Module:
    return nn.TransformerEncoderLayer(HIDDEN, HEADS, INNER, batch_first=True)


class Attention(nn.Module):
    """Causal attention with one linear for queries, keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.c_attn = nn.Linear(HIDDEN, 3 * HIDDEN)
        self.c_proj = nn.Linear(HIDDEN, HIDDEN)
        self.resid_dropout = nn.Dropout(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.size()
        q, k, v = self.c_attn(x).split(HIDDEN, dim=2)
        q, k, v = (t.view(batch, length, HEADS, width // HEADS).transpose(1, 2) for t in (q, k, v))
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        y = y.transpose(1, 2).contiguous().view(batch, length, width)
        return self.resid_dropout(self.c_proj(y))


class FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c_fc = nn.Linear(HIDDEN, INNER)
        self.gelu = nn.GELU()
        self.c_proj = nn.Linear(INNER, HIDDEN)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.c_proj(self.gelu(self.c_fc(x))))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(HIDDEN)
        self.attn = Attention()
        self.ln_2 = nn.LayerNorm(HIDDEN)
        self.mlp = FeedForward()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class NanoGPT(nn.Module):
    """A small GPT as people write it by hand, after Karpathy's nanoGPT."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(VOCABULARY, HIDDEN),
                "wpe": nn.Embedding(64, HIDDEN),
                "drop": nn.Dropout(0.1),
                "h": nn.ModuleList([Block() for _ in range(LAYERS)]),
                "ln_f": nn.LayerNorm(HIDDEN),
            }
        )
        self.lm_head = nn.Linear(HIDDEN, VOCABULARY, bias=False)
        self.lm_head.weight = self.transformer["wte"].weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(0, ids.size(1), dtype=torch.long, device=ids.device)
        x = self.transformer["wte"](ids) + self.transformer["wpe"](positions)
        x = self.transformer["drop"](x)
        for block in self.transformer["h"]:
            x = block(x)
        return self.lm_head(self.transformer["ln_f"](x))


_BUILDERS["nanogpt"] = NanoGPT


class ResidualBlock(nn.Module):
    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.downsample: nn.Module | None = None
        if stride > 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(width, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


class ResNet(nn.Module):
    """Residual blocks of convolutions, after He et al. 2015."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(ResidualBlock(8, 8, 1), ResidualBlock(8, 8, 1))
        self.layer2 = nn.Sequential(ResidualBlock(8, 16, 2), ResidualBlock(16, 16, 1))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer2(self.layer1(x))
        return self.fc(torch.flatten(self.avgpool(x), 1))


_BUILDERS["resnet"] = ResNet


class MixerBlock(nn.Module):
    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(HIDDEN)
        self.mlp_tokens = nn.Sequential(nn.Linear(tokens, 8), nn.GELU(), nn.Linear(8, tokens))
        self.norm2 = nn.LayerNorm(HIDDEN)
        self.mlp_channels = nn.Sequential(
            nn.Linear(HIDDEN, INNER), nn.GELU(), nn.Linear(INNER, HIDDEN)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.mlp_tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.mlp_channels(self.norm2(x))


class Mixer(nn.Module):
    """Feed-forwards across tokens and across channels, after Tolstikhin et al. 2021."""

    def __init__(self) -> None:
        super().__init__()
        self.img_size = 16
        self.stem = nn.Conv2d(3, HIDDEN, 8, 8)
        self.blocks = nn.Sequential(*[MixerBlock(4) for _ in range(LAYERS)])
        self.norm = nn.LayerNorm(HIDDEN)
        self.head = nn.Linear(HIDDEN, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(x)).mean(dim=1))


_BUILDERS["mixer"] = Mixer
