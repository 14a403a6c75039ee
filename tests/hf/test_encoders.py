import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertModel

from kd_prune.cli.bench_folder import load_model
from kd_prune.errors import ConfigError
from kd_prune.export.source import Source
from kd_prune.hf import (
    Classification,
    PretrainedEncoder,
    check_pair,
    check_vocabularies,
    load_error,
    model_fingerprint,
)
from kd_prune.hf.tiny import make_model

from .families import LAYERS, VOCABULARY, batch, model, tokenizer


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """The environment variable is read when huggingface_hub is imported, by then long ago."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "bert"
    model(num_labels=3).save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path


def load(path, num_labels=3):
    return PretrainedEncoder(path=str(path)).load(kind=Classification(), num_outputs=num_labels)


@pytest.mark.parametrize(
    "load_it", [lambda p: p.load(kind=Classification(), num_outputs=2), lambda p: p.tokenizer()]
)
def test_load_expands_a_tilde(folder, monkeypatch, load_it):
    monkeypatch.setenv("HOME", str(Path(folder).parent))
    loaded = load_it(PretrainedEncoder(path=f"~/{Path(folder).name}"))
    assert loaded.name_or_path == str(folder)


def test_load_gives_the_saved_weights(folder):
    assert_same_weights(load(folder), model(num_labels=3))


def assert_same_weights(actual, expected):
    for name, tensor in expected.state_dict().items():
        assert torch.equal(actual.state_dict()[name], tensor), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_load_half_precision_gives_float32(tmp_path, dtype):
    saved = model(num_labels=3).to(dtype)
    saved.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert_same_weights(loaded.to(dtype), saved)


@pytest.mark.parametrize("num_labels", [1, 2, 5])
def test_load_head_of_another_size_is_new(folder, num_labels):
    loaded = load(folder, num_labels)
    assert loaded.classifier.weight.shape[0] == loaded.config.num_labels == num_labels
    assert loaded.classifier.weight.isfinite().all()
    assert_same_weights(loaded.bert, model(num_labels=3).bert)


def test_load_encoder_without_head_and_pooler(tmp_path):
    whole = model().bert
    bare = BertModel(whole.config, add_pooling_layer=False)
    bare.load_state_dict(whole.state_dict(), strict=False)
    bare.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert_same_weights(loaded.bert.encoder, whole.encoder)


def one_line(caught, *parts):
    message = str(caught.value)
    assert "\n" not in message
    for part in ("model.path=", *map(str, parts)):
        assert part in message


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/no/such/folder", "there is no such folder"),
        ("./no-such-folder", "there is no such folder"),
        ("no/such/folder", "there is no such folder"),
        ("no-such", "not a local folder, and not available from the hub"),
        ("no/such", "not a local folder, and not available from the hub"),
        (__file__, "a file; pass the folder"),
    ],
)
@pytest.mark.parametrize("what", ["model", "tokenizer"])
def test_load_unreachable_path_raises(path, says, what):
    pretrained = PretrainedEncoder(path=path)
    with pytest.raises(ValueError, match=rf"^model.path=\S+: {says}") as caught:
        pretrained.load(
            kind=Classification(), num_outputs=2
        ) if what == "model" else pretrained.tokenizer()
    one_line(caught, path, "pass the ")


BROKEN = {
    "empty": lambda folder: [file.unlink() for file in folder.iterdir()],
    "no config": lambda folder: (folder / "config.json").unlink(),
    "a config of nothing": lambda folder: (folder / "config.json").write_text("{}"),
    "a truncated config": lambda folder: (folder / "config.json").write_text('{"model_type":'),
    "an unknown family": lambda folder: change_config(folder, model_type="no-such-type"),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "empty weights": lambda folder: (folder / "model.safetensors").write_bytes(b""),
    "truncated weights": lambda folder: truncate(folder / "model.safetensors"),
    "pickled weights, empty": lambda folder: (
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin").write_bytes(b"")
    ),
    "pickled weights, broken": lambda folder: (folder / "model.safetensors").rename(
        folder / "pytorch_model.bin"
    ),
}


def change_config(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def truncate(file):
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize("how", BROKEN)
def test_load_broken_folder_raises(folder, how):
    BROKEN[how](folder)
    with pytest.raises(ValueError, match="the folder cannot be read") as caught:
        load(folder)
    one_line(caught, folder)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"hidden_size": 16}, r"bert\.\S+"),
        ({"intermediate_size": 16}, r"bert\.encoder\.layer\.0\.intermediate\.dense\.\w+"),
        ({"num_hidden_layers": LAYERS + 1}, rf"bert\.encoder\.layer\.{LAYERS}\.\S+"),
        ({"vocab_size": 50}, r"bert\.embeddings\.word_embeddings\.weight"),
        ({"model_type": "roberta"}, r"roberta\.\S+"),
    ],
)
def test_load_weights_of_another_model_raises(folder, changes, name):
    """transformers begins with random weights in their place, and only logs it."""
    change_config(folder, **changes)
    with pytest.raises(ValueError, match=f": {name} is missing or of another shape") as caught:
        load(folder)
    one_line(caught, folder)


def test_tokenizer_is_read(folder):
    assert PretrainedEncoder(path=str(folder)).tokenizer().get_vocab() == tokenizer().get_vocab()


@pytest.mark.parametrize("text", ["", "{", "{}"])
def test_tokenizer_broken_raises(folder, text):
    (folder / "tokenizer.json").write_text(text)
    with pytest.raises(ValueError, match="the folder cannot be read") as caught:
        PretrainedEncoder(path=str(folder)).tokenizer()
    one_line(caught, folder)


def test_tokenizer_missing_raises(folder):
    """transformers would make one up, to which every word is unknown."""
    for file in folder.glob("*token*"):
        file.unlink()
    with pytest.raises(ValueError, match="no tokenizer comes with the model; save it") as caught:
        PretrainedEncoder(path=str(folder)).tokenizer()
    one_line(caught, folder)


def test_load_error_without_message_names_its_type(tmp_path):
    assert "(EOFError)" in str(load_error("task.path", str(tmp_path), EOFError()))


def test_check_pair_that_fits_passes():
    pair = model(seed=1, num_labels=3), model(seed=2, num_labels=3, num_hidden_layers=1)
    check_pair(*pair, Classification())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_labels": 2}, "number of labels is 2, the student's 3"),
        ({"num_labels": 1}, "number of labels is 1, the student's 3"),
        ({"num_labels": 3, "vocab_size": 99}, f"vocabulary is 99, the student's {len(VOCABULARY)}"),
    ],
)
def test_check_pair_that_does_not_fit_raises(changes, message):
    with pytest.raises(ValueError, match=f"^path: the teacher's {message}; take a teacher"):
        check_pair(model(num_labels=3), model(**changes), Classification())


def test_check_vocabularies_in_another_order_raises():
    check_vocabularies(tokenizer(), tokenizer())
    with pytest.raises(ValueError, match=r"^path=.*: .* has \d+ for '.*', the student's \d+;"):
        check_vocabularies(tokenizer(), tokenizer(reversed(VOCABULARY)))


@pytest.mark.parametrize("what", ["missing", "of another shape"])
def test_load_fine_tuned_model_without_its_head_raises(folder, what):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    if what == "missing":
        del tensors["classifier.weight"]
    else:
        tensors["classifier.weight"] = torch.zeros(5, 8)
    save_file(tensors, file, metadata={"format": "pt"})
    assert load(folder).classifier.weight.shape == (3, 8)  # to be fine-tuned: a new head will do
    with pytest.raises(ValueError, match=r"^teacher.path=.*: classifier.weight is missing or"):
        PretrainedEncoder(path=str(folder)).load(
            kind=Classification(), num_outputs=3, head=True, key="teacher.path"
        )


def test_model_fingerprint_depends_on_content_not_on_place(folder, tmp_path):
    expected = model_fingerprint(load(folder), tokenizer())
    assert model_fingerprint(load(folder), tokenizer()) == expected
    copy = shutil.copytree(folder, tmp_path / "elsewhere")
    assert model_fingerprint(load(copy), tokenizer()) == expected

    new_heads = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        new_heads.append(model_fingerprint(load(folder, num_labels=7), tokenizer()))
    assert new_heads[0] == new_heads[1] != new_heads[2]


def test_model_fingerprint_changes_with_weights_config_and_tokenizer(folder):
    original = load(folder)
    prints = {"original": model_fingerprint(original, tokenizer())}
    for name in (
        "bert.embeddings.word_embeddings.weight",
        "bert.encoder.layer.2.output.dense.weight",
        "classifier.bias",
    ):
        changed = load(folder)
        with torch.no_grad():
            changed.get_parameter(name).view(-1)[-1].add_(1e-3)
        prints[name] = model_fingerprint(changed, tokenizer())
    assert model_fingerprint(
        load(folder, num_labels=7), tokenizer(), head=False
    ) == model_fingerprint(load(folder, num_labels=7), tokenizer(), head=False)
    prints["words"] = model_fingerprint(original, tokenizer(reversed(VOCABULARY)))
    change_config(folder, hidden_dropout_prob=0.3)
    prints["dropout"] = model_fingerprint(load(folder), tokenizer())
    assert len(set(prints.values())) == len(prints)


def test_model_fingerprint_is_not_changed_by_a_forward_pass(folder):
    made = load(folder)
    before = model_fingerprint(made, tokenizer())
    made(**batch() | {"labels": torch.tensor([0, 1, 2])})
    assert model_fingerprint(made, tokenizer()) == before


def test_tokenizer_without_a_padding_token_is_refused(tmp_path):
    folder = make_model(str(tmp_path), layers=1, hidden_size=8, heads=1)
    settings = Path(folder) / "tokenizer_config.json"
    kept = {k: v for k, v in json.loads(settings.read_text()).items() if k != "pad_token"}
    settings.write_text(json.dumps(kept | {"tokenizer_class": "PreTrainedTokenizerFast"}))
    with pytest.raises(ConfigError, match=r"model\.path=.*: its tokenizer has no padding token"):
        PretrainedEncoder(path=folder).tokenizer()


def test_load_error_of_a_folder_with_a_tilde_is_that_of_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    error = load_error("path", "~/model", OSError("no config"))
    assert str(error).startswith("path=~/model: the folder cannot be read (no config)")


def test_a_folders_own_code_is_refused_without_a_question(tmp_path, monkeypatch):
    """By default transformers asks on standard input, where a pipe may answer yes."""
    evil = tmp_path / "evil"
    evil.mkdir()
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asks"))
    (evil / "code.py").write_text(f"open({str(tmp_path / 'called')!r}, 'w')\n")
    written = {"model_type": "theirs", "auto_map": {"AutoConfig": "code.Config"}}
    (evil / "config.json").write_text(json.dumps(written))
    with pytest.raises(ConfigError, match=r"^model.path=.*names code of its own, which is not run"):
        load(evil)
    with pytest.raises(ConfigError, match="which is not run"):
        Source.find(str(evil)).load()
    with pytest.raises(ConfigError, match="which is not run"):
        load_model(evil)
    assert not (tmp_path / "called").exists()
