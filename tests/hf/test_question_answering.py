"""Question answering: windows, labels, spans, loss and metrics against plain restatements."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from kd_prune.distillation.activations import Activations
from kd_prune.distillation.losses import soft_cross_entropy
from kd_prune.errors import ConfigError
from kd_prune.hf import PretrainedEncoder, QuestionAnswering, Task, forward, load_data, loaders
from kd_prune.hf.tiny import make_model
from kd_prune.hf.windows import best_spans

CONTEXT = "The small green canoe and the lute , old hammer and shiny pear"
QUESTIONS = [
    ("first", ["canoe", "green canoe"]),
    ("the second", ["lute"]),
    ("third third third third third", ["old hammer"]),
    ("fourth", ["pear"]),
]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = make_model(str(tmp_path_factory.mktemp("tiny")), layers=1, hidden_size=16, heads=2)
    return PretrainedEncoder(path=folder)


@pytest.fixture(scope="module")
def tokenizer(encoder):
    return encoder.tokenizer()


def squad_row(question, answers, context=CONTEXT):
    starts = [context.index(answer) for answer in answers]
    return {
        "question": question,
        "context": context,
        "answers": {"text": answers, "answer_start": starts},
    }


def make_task(folder, rows=None, kind=None, **settings):
    folder.mkdir(exist_ok=True)
    rows = rows or [squad_row(*given) for given in QUESTIONS]
    for split in ("train", "validation"):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(lines)
    return Task(
        **{
            "name": "squad",
            "path": str(folder),
            "text": ["question", "context"],
            "label": "answers",
            "kind": kind or QuestionAnswering(doc_stride=2, max_question_length=3, n_best=4),
            "metrics": ["exact_match", "f1"],
            "monitor": "f1",
            "max_length": 12,
            "batch_size": 3,
            "eval_batch_size": 3,
        }
        | settings
    )


@pytest.fixture
def task(tmp_path):
    return make_task(tmp_path / "data")


def test_windows_cover_the_context_and_share_the_stride(task, tokenizer, tmp_path):
    data = load_data(task, tokenizer, tmp_path / "cache")
    rows = [row for row in data.splits["validation"] if row["question"] == 1]
    assert len(rows) > 1
    assert all(len(row["input_ids"]) <= 12 for row in rows)
    words = CONTEXT.lower().split()
    parts = []
    for row in rows:
        held = [i for i, (first, _) in enumerate(row["offsets"]) if first >= 0]
        tokens = tokenizer.convert_ids_to_tokens([row["input_ids"][i] for i in held])
        texts = [row["context"][first:last] for first, last in (row["offsets"][i] for i in held)]
        assert [text.lower() for text in texts] == tokens
        parts.append(tokens)
    joined = parts[0]
    for part in parts[1:]:
        assert joined[-2:] == part[:2]
        joined += part[2:]
    assert joined == words


def test_labels_are_the_first_answer_or_the_null_position(task, tokenizer, tmp_path):
    data = load_data(task, tokenizer, tmp_path / "cache")
    answered = dict.fromkeys(range(4), 0)
    for row in data.splits["validation"]:
        first, last = row["labels"]
        if (first, last) == (0, 0):
            assert row["null_position"] == 0
            continue
        answered[row["question"]] += 1
        begin, end = row["offsets"][first][0], row["offsets"][last][1]
        assert row["context"][begin:end] == QUESTIONS[row["question"]][1][0]
    assert all(answered.values())
    train = data.splits["train"]
    assert train["labels"] == data.splits["validation"]["labels"]
    assert set(train.column_names) == {"input_ids", "token_type_ids", "attention_mask", "labels"}


def test_long_question_is_cut_off(task, tokenizer, tmp_path):
    data = load_data(task, tokenizer, tmp_path / "cache")
    third = tokenizer.convert_tokens_to_ids("third")
    rows = [row for row in data.splits["validation"] if row["question"] == 2]
    assert {row["input_ids"].count(third) for row in rows} == {3}


@pytest.mark.parametrize("side", ["right", "left"])
def test_batch_pads_offsets_and_labels_with_the_tokens(side, task, encoder, tmp_path):
    tokenizer = encoder.tokenizer()
    tokenizer.padding_side = side
    data = load_data(task, tokenizer, tmp_path / "cache")
    rows = list(data.splits["validation"])
    batch = task.kind.collator(tokenizer, 14)(rows)
    assert batch["input_ids"].shape == (len(rows), 14)
    for i, row in enumerate(rows):
        for ours, theirs in zip(batch["labels"][i], row["labels"], strict=True):
            assert batch["input_ids"][i, ours] == row["input_ids"][theirs]
        real = batch["attention_mask"][i].bool()
        assert batch["offsets"][i][real].tolist() == row["offsets"]
        assert (batch["offsets"][i][~real] == -1).all()
        assert batch["input_ids"][i, batch["null_position"][i]] == tokenizer.cls_token_id


def test_best_span_is_the_best_of_all_pairs_restated():
    torch.manual_seed(0)
    logits, offsets = torch.randn(20, 2, 9), torch.arange(18).reshape(9, 2).repeat(20, 1, 1)
    offsets[:, :3] = -1
    offsets[:10, 7:] = -1
    for n_best, longest in ((9, 9), (9, 2), (2, 9), (1, 9)):
        scores, spans = best_spans(logits, offsets, n_best=n_best, max_answer_length=longest)
        for i in range(20):
            allowed = [j for j in range(9) if offsets[i, j, 0] >= 0]
            starts, ends = (
                sorted(allowed, key=lambda j, h=head: -logits[i, h, j])[:n_best] for head in (0, 1)
            )
            pairs = [
                (float(logits[i, 0, a] + logits[i, 1, b]), a, b)
                for a in starts
                for b in ends
                if a <= b < a + longest
            ]
            if not pairs:
                assert scores[i] == -torch.inf
                assert spans[i].tolist() == [0, 0]
                continue
            best, a, b = max(pairs)
            assert scores[i].item() == pytest.approx(best)
            assert spans[i].tolist() == [int(offsets[i, a, 0]), int(offsets[i, b, 1])]


def test_logits_of_padding_have_probability_zero(task, encoder, tokenizer, tmp_path):
    data = load_data(task, tokenizer, tmp_path / "cache")
    rows = list(data.splits["validation"])
    model = encoder.load(kind=task.kind, num_outputs=2)
    found = []
    for pad_to in (None, 20):
        batch = task.kind.collator(tokenizer, pad_to)(rows)
        outputs = forward(model, batch, frozenset({"logits"}))
        assert outputs.logits.shape == (len(rows), 2, batch["input_ids"].shape[1])
        teacher = Activations(logits=outputs.logits.roll(1, 0))
        found.append(
            [
                task.kind.hard_label_loss(outputs, batch),
                soft_cross_entropy(outputs.logits, teacher.logits, 2.0),
                *task.kind.predict(outputs, batch)[0].unbind(-1),
            ]
        )
    for short, long in zip(*found, strict=True):
        torch.testing.assert_close(short, long)
        assert short.isfinite().all()


def test_loss_is_the_mean_of_start_and_end_cross_entropy():
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 2, 7), torch.tensor([[1, 2], [0, 0], [3, 6]])
    found = QuestionAnswering().hard_label_loss(Activations(logits=logits), {"labels": labels})
    halves = [F.cross_entropy(logits[:, i], labels[:, i]) for i in (0, 1)]
    torch.testing.assert_close(found, sum(halves) / 2)


def test_metrics_of_perfect_logits_are_perfect(task, tokenizer, tmp_path):
    data = load_data(task, tokenizer, tmp_path / "cache")
    metrics = task.kind.metric_collection(task.metrics, 2)
    for batch in loaders(task, data, tokenizer, seed=0)[1]["validation"]:
        logits = torch.zeros(len(batch["labels"]), 2, batch["input_ids"].shape[1])
        logits.scatter_(2, batch["labels"][:, :, None], 5.0)
        metrics.update(*task.kind.predict(Activations(logits=logits), batch))
    assert {name: float(value) for name, value in metrics.compute().items()} == {
        "exact_match": 1.0,
        "f1": 1.0,
    }


def test_question_without_an_answer_needs_a_null_threshold(tmp_path, tokenizer):
    rows = [squad_row("first", ["canoe"]), squad_row("fifth", [])]
    task = make_task(tmp_path / "data", rows)
    says = r"^label=answers: row 1 of the train split has no answer; set task.kind.null_threshold=0"
    with pytest.raises(ConfigError, match=says):
        load_data(task, tokenizer, tmp_path / "cache")
    allowed = replace(task, kind=replace(task.kind, null_threshold=0.0))
    data = load_data(allowed, tokenizer, tmp_path / "cache")
    metrics = allowed.kind.metric_collection(["f1"], 2)
    for batch in loaders(allowed, data, tokenizer, seed=0)[1]["validation"]:
        logits = torch.zeros(len(batch["labels"]), 2, batch["input_ids"].shape[1])
        logits.scatter_(2, batch["labels"][:, :, None], 5.0)
        metrics.update(*allowed.kind.predict(Activations(logits=logits), batch))
    assert metrics.compute()["f1"] == 1.0


def test_answers_in_the_form_of_the_json_files_are_read_alike(task, tokenizer, tmp_path):
    rows = [squad_row(*given) for given in QUESTIONS]
    for row in rows:
        row["answers"] = [
            {"text": text, "answer_start": start}
            for text, start in zip(*row["answers"].values(), strict=True)
        ]
    other = make_task(tmp_path / "other", rows)
    ours, theirs = (load_data(one, tokenizer, tmp_path / "cache") for one in (task, other))
    assert ours.fingerprint == theirs.fingerprint


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"label": "question"}, "label=question: row 0 of the train split has no answers as SQuAD"),
        ({"label": "gold"}, "label=gold: the train split has no such column"),
    ],
)
def test_column_without_answers_raises(settings, says, task, tokenizer, tmp_path):
    with pytest.raises(ConfigError, match=f"^{says}"):
        load_data(replace(task, **settings), tokenizer, tmp_path / "cache")


def test_wrong_starts_are_told_and_refused_if_none_is_right(tmp_path, tokenizer, caplog):
    rows = [squad_row(*given) for given in QUESTIONS]
    rows[1]["answers"]["answer_start"] = [1]
    load_data(make_task(tmp_path / "data", rows), tokenizer, tmp_path / "cache")
    assert "task.label=answers: 1 of 4 answers of the train split do not lie" in caplog.text
    for row in rows:
        row["answers"]["answer_start"] = [1] * len(row["answers"]["text"])
    with pytest.raises(ConfigError, match="no answer of the train split lies at its answer_start"):
        load_data(make_task(tmp_path / "data", rows), tokenizer, tmp_path / "cache")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"text": ["context"]}, r"text=\[context\]: expected two columns, the question and"),
        ({"max_length": 9}, "max_length=9: leaves 2 tokens of context beside a question of kind"),
        ({"metrics": ["accuracy"]}, "metrics=accuracy: does not suit a task of kind question_ans"),
    ],
)
def test_task_that_does_not_suit_raises(settings, says, tmp_path):
    with pytest.raises(ConfigError, match=f"^{says}"):
        make_task(tmp_path / "data", **settings)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"doc_stride": -1}, "doc_stride=-1: expected at least 0"),
        ({"n_best": 0}, "n_best=0: expected at least 1"),
        ({"max_answer_length": 0}, "max_answer_length=0: expected at least 1"),
    ],
)
def test_numbers_out_of_range_raise(settings, says):
    with pytest.raises(ConfigError, match=f"^{says}"):
        QuestionAnswering(**settings)


def test_tokenizer_without_offsets_is_refused(tmp_path):
    from transformers import BertweetTokenizer

    (tmp_path / "vocab.txt").write_text("fox 3\n")
    (tmp_path / "bpe.codes").write_text("f o 2\n")
    slow = BertweetTokenizer(str(tmp_path / "vocab.txt"), str(tmp_path / "bpe.codes"))
    with pytest.raises(ConfigError, match=r"kind=question_answering: BertweetTokenizer does not"):
        load_data(make_task(tmp_path / "data"), slow, tmp_path / "cache")


@pytest.mark.parametrize(
    ("changed", "same"),
    [({"n_best": 5}, True), ({"max_answer_length": 7}, True), ({"null_threshold": 0.0}, True),
     ({"doc_stride": 1}, False), ({"max_question_length": 2}, False)],
    ids=str,
)  # fmt: skip
def test_options_of_predictions_alone_leave_the_tokens_as_they_are(
    tokenizer, tmp_path, changed, same
):
    kind = QuestionAnswering(doc_stride=2, max_question_length=3, n_best=4)
    task = make_task(tmp_path / "data", kind=kind)
    before = load_data(task, tokenizer, tmp_path / "cache").fingerprint
    other = replace(task, kind=replace(kind, **changed))
    after = load_data(other, tokenizer, tmp_path / "cache").fingerprint
    assert (before == after) == same


def test_answer_with_blanks_around_it_is_found(tokenizer, tmp_path):
    """The last token ends before the blank."""
    row = squad_row("first", [" shiny pear "], context=f"{CONTEXT} ")
    kind = QuestionAnswering(doc_stride=2, max_question_length=3, n_best=4)
    task = make_task(tmp_path / "task", [row], kind, max_length=64)
    tokens = load_data(task, tokenizer, tmp_path / "cache").splits["train"]
    (first, last), ids = tokens["labels"][0], tokens["input_ids"][0]
    assert tokenizer.convert_ids_to_tokens(ids[first : last + 1]) == ["shiny", "pear"]
