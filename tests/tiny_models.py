"""Tiny random models of every supported family, on disk as a user's folder would be.

    folder = save_tiny_model("qwen3", tmp_path / "base")

Weights are seeded and float32; the tokenizer is a real byte-level BPE with the family's special tokens; the chat
template is the family's own. Each family keeps the traits that trip up training code: fused projections (phi3), biases
(qwen2), norms of queries and keys (qwen3), sliding windows (mistral, gemma3), soft caps (gemma2), learnt positions and
transposed weights (gpt2), experts (mixtral, qwen3_moe), tied embeddings, a tokenizer that puts a start token before
every text (llama, mistral, gemma3), special tokens that swallow the white space after them (phi3).
"""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GenerationConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from tunesmith.models.quiet import quiet_libraries

TEMPLATES = Path(__file__).parent / "chat_templates"

#: Longest row that a tiny model takes.
CONTEXT_TOKENS = 1024
#: What a slow model writes for many seconds on any machine, and its context.
LONG_ANSWER_TOKENS, LONG_CONTEXT_TOKENS = 16_000, 32_768
#: Reach of the sliding windows of `mistral`, `gemma2` and `gemma3`, in tokens.
WINDOW_TOKENS = 16

_SENTENCES = (
    "A table for four people at seven o'clock, please. Book it for Friday the 6th of June.",
    'The answer is {"time": "19:30", "people": 4, "name": "Maria", "date": "tomorrow"}.',
    "You are a helpful assistant. What is the capital of France? The capital of France is Paris.",
    "system\nuser\nassistant\nmodel\ntool Hello, how can I help you today? Yes. No. Thank you very much!",
    "def add(a, b):\n    return a + b\n\nfor i in range(10):\n    print(add(i, 1))\n",
)


@dataclass(frozen=True)
class Family:
    """What makes a family: its config class and traits, its special tokens and how its tokenizer treats them."""

    config: type[Any]
    traits: dict[str, Any]
    specials: tuple[str, ...]
    bos: str | None
    eos: str
    pad: str
    ends: tuple[str, ...]
    plain_added: tuple[str, ...] = ()
    adds_bos: bool = False
    swallowing: tuple[str, ...] = ()
    speaks: str | None = None  #: whose chat template it uses, if not its own


_CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_QWEN_PLAIN = ("<tool_call>", "</tool_call>")

FAMILIES: dict[str, Family] = {
    "smollm2": Family(
        config=LlamaConfig,
        traits={"tie_word_embeddings": True},
        specials=_CHATML,
        bos="<|im_start|>",
        eos="<|im_end|>",
        pad="<|im_end|>",
        ends=("<|im_end|>",),
    ),
    "llama": Family(
        config=LlamaConfig,
        traits={"tie_word_embeddings": False},
        specials=(
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eot_id|>",
            "<|eom_id|>",
            "<|python_tag|>",
            "<|finetune_right_pad_id|>",
        ),
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        pad="<|finetune_right_pad_id|>",
        ends=("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
        adds_bos=True,
    ),
    "qwen2": Family(
        config=Qwen2Config,
        traits={"tie_word_embeddings": True},
        specials=_CHATML,
        plain_added=_QWEN_PLAIN,
        bos=None,
        eos="<|im_end|>",
        pad="<|endoftext|>",
        ends=("<|im_end|>", "<|endoftext|>"),
    ),
    "qwen3": Family(
        config=Qwen3Config,
        traits={"tie_word_embeddings": False, "head_dim": 16},
        specials=_CHATML,
        plain_added=(*_QWEN_PLAIN, "<tool_response>", "</tool_response>", "<think>", "</think>"),
        bos=None,
        eos="<|im_end|>",
        pad="<|endoftext|>",
        ends=("<|im_end|>", "<|endoftext|>"),
    ),
    "mistral": Family(
        config=MistralConfig,
        traits={"tie_word_embeddings": False, "sliding_window": WINDOW_TOKENS},
        specials=(
            "<unk>",
            "<s>",
            "</s>",
            "[INST]",
            "[/INST]",
            "[AVAILABLE_TOOLS]",
            "[/AVAILABLE_TOOLS]",
            "[TOOL_RESULTS]",
            "[/TOOL_RESULTS]",
            "[TOOL_CALLS]",
            "<pad>",
        ),
        bos="<s>",
        eos="</s>",
        pad="<pad>",
        ends=("</s>",),
        adds_bos=True,
    ),
    "gemma3": Family(
        config=Gemma3TextConfig,
        traits={
            "tie_word_embeddings": True,
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "num_hidden_layers": 3,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "sliding_window": WINDOW_TOKENS,
        },
        specials=("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
        bos="<bos>",
        eos="<eos>",
        pad="<pad>",
        ends=("<eos>", "<end_of_turn>"),
        adds_bos=True,
    ),
    "phi3": Family(
        config=Phi3Config,
        traits={"tie_word_embeddings": False, "sliding_window": None},
        specials=("<unk>", "<s>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        bos="<s>",
        eos="<|endoftext|>",
        pad="<|endoftext|>",
        ends=("<|endoftext|>", "<|end|>"),
        swallowing=("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    ),
}

#: Those with a chat template of their own.
SPEAKING_FAMILIES = tuple(FAMILIES)

FAMILIES |= {
    "gemma2": replace(
        FAMILIES["gemma3"],
        config=Gemma2Config,
        traits={
            "tie_word_embeddings": True,
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "layer_types": ["sliding_attention", "full_attention"],
            "sliding_window": WINDOW_TOKENS,
            # Low enough to bend what a tiny model says.
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
        speaks="gemma3",
    ),
    "gpt2": replace(
        FAMILIES["smollm2"],
        config=GPT2Config,
        traits={"tie_word_embeddings": True, "n_inner": 64, "num_key_value_heads": 4},
        speaks="smollm2",
    ),
    "mixtral": replace(
        FAMILIES["mistral"],
        config=MixtralConfig,
        traits={"tie_word_embeddings": False, "sliding_window": None, "num_local_experts": 4, "num_experts_per_tok": 2},
        speaks="mistral",
    ),
    "qwen3_moe": replace(
        FAMILIES["qwen3"],
        config=Qwen3MoeConfig,
        traits={
            "tie_word_embeddings": False,
            "head_dim": 16,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
        },
        speaks="qwen3",
    ),
}


def chat_template(family: str) -> str:
    """The family's chat template, as its models ship it."""
    return (TEMPLATES / f"{FAMILIES[family].speaks or family}.jinja").read_text(encoding="utf-8")


@functools.cache
def tiny_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE of some 400 tokens with the family's special tokens and chat template. Don't change it."""
    facts = FAMILIES[family]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    specials = [
        AddedToken(token, special=True, normalized=False, rstrip=token in facts.swallowing) for token in facts.specials
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=256 + len(specials) + 120,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=specials,
        show_progress=False,
    )
    backend.train_from_iterator(_SENTENCES, trainer)
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in facts.plain_added])
    if facts.adds_bos:
        assert facts.bos is not None
        backend.post_processor = processors.Sequence(
            [
                processors.ByteLevel(trim_offsets=False),
                processors.TemplateProcessing(
                    single=f"{facts.bos}:0 $A:0",
                    pair=f"{facts.bos}:0 $A:0 {facts.bos}:1 $B:1",
                    special_tokens=[(facts.bos, backend.token_to_id(facts.bos))],
                ),
            ]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=facts.bos,
        eos_token=facts.eos,
        pad_token=facts.pad,
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT_TOKENS,
    )
    tokenizer.chat_template = chat_template(family)
    return tokenizer


def tiny_model(family: str, *, seed: int = 0, **settings: Any) -> Any:
    """A random model of the family in float32, in evaluation mode; `settings` override its config."""
    facts, tokenizer = FAMILIES[family], tiny_tokenizer(family)
    config = facts.config(
        **{
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": CONTEXT_TOKENS,
            "initializer_range": 0.1,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            **facts.traits,
            **settings,
        }
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                # Norms and biases start as ones and zeros, which would hide a mistake in how they are used.
                if parameter.ndim == 1:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.convert_tokens_to_ids(list(facts.ends)),
        pad_token_id=tokenizer.pad_token_id,
    )
    return model.eval()


def save_tiny_model(
    family: str, folder: Path, *, seed: int = 0, context_tokens: int = CONTEXT_TOKENS, **settings: Any
) -> Path:
    """Write a tiny model with its tokenizer and chat template to `folder`, as a user's model folder, and return it."""
    with quiet_libraries():
        tiny_model(family, seed=seed, max_position_embeddings=context_tokens, **settings).save_pretrained(folder)
    tokenizer = copy.deepcopy(tiny_tokenizer(family))
    tokenizer.model_max_length = context_tokens
    tokenizer.save_pretrained(folder)
    return folder


def save_slow_model(family: str, folder: Path) -> Path:
    """Write a model that is still busy with its answer of `LONG_ANSWER_TOKENS` when a test has looked at it."""
    return save_tiny_model(family, folder, context_tokens=LONG_CONTEXT_TOKENS, num_hidden_layers=24)
