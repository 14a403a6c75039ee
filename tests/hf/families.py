"""Tiny random encoders of the families that are supported."""

import torch
from transformers import (
    AutoModelForSequenceClassification,
    BartConfig,
    BertConfig,
    BertTokenizer,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    RobertaConfig,
    XLMConfig,
)

LAYERS = 3
HEADS = 2
VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz")
FAMILIES = ("bert", "roberta", "distilbert", "electra")
OTHERS = ("bart", "modernbert")
"""Not supported, but for what a test of them says."""


def config(family, **changes):
    sizes = {
        "vocab_size": len(VOCABULARY),
        "hidden_size": 8,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": 12,
        "max_position_embeddings": 40,
        "initializer_range": 0.5,  # large: attention far from uniform, logits far from equal
    } | changes
    match family:
        case "bert":
            return BertConfig(**sizes)
        case "roberta":
            return RobertaConfig(**sizes)
        case "electra":
            return ElectraConfig(**sizes, embedding_size=6)
        case "distilbert":
            names = {
                "hidden_size": "dim",
                "num_hidden_layers": "n_layers",
                "num_attention_heads": "n_heads",
                "intermediate_size": "hidden_dim",
            }
            return DistilBertConfig(**{names.get(k, k): v for k, v in sizes.items()})
        case "modernbert":
            tokens = {f"{name}_token_id": 1 for name in ("bos", "eos", "cls", "sep", "pad")}
            return ModernBertConfig(**tokens, **sizes)
        case "xlm":
            names = {
                "vocab_size": "n_words",
                "hidden_size": "emb_dim",
                "num_hidden_layers": "n_layers",
                "num_attention_heads": "n_heads",
            }
            rest = {k: v for k, v in changes.items() if k not in names}
            return XLMConfig(**{names[k]: sizes[k] for k in names}, **rest)
        case "bart":
            stacks = {
                f"{stack}_{name}": sizes[size]
                for stack in ("encoder", "decoder")
                for name, size in (
                    ("layers", "num_hidden_layers"),
                    ("attention_heads", "num_attention_heads"),
                    ("ffn_dim", "intermediate_size"),
                )
            }
            rest = {k: v for k, v in sizes.items() if not k.startswith(("hidden", "num", "inter"))}
            tokens = {f"{name}_token_id": 2 for name in ("eos", "decoder_start", "forced_eos")}
            return BartConfig(d_model=sizes["hidden_size"], **stacks, **rest, **tokens)


def model(family="bert", *, seed=0, **changes):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = AutoModelForSequenceClassification.from_config(config(family, **changes))
    return made.eval()


def tokenizer(words=VOCABULARY):
    return BertTokenizer(vocab={word: i for i, word in enumerate(words)})


def batch():
    """Three rows of 6, 4 and 1 tokens."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.tensor([[int(i < length) for i in range(6)] for length in (6, 4, 1)])
    ids = torch.randint(5, len(VOCABULARY), mask.shape, generator=generator)
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([0, 1, 0])}
