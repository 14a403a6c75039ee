"""A job on questions: its metrics are those of plain post-processing of the saved student."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from squad_official import official
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

from kd_prune.hf import QuestionAnswering, Task
from kd_prune.hf.tiny import sentences
from kd_prune.pipeline import run

LENGTH, STRIDE = 16, 4


def write_questions(folder):
    """Of what is listed, which thing is at that position? Its name is the answer."""
    folder.mkdir()
    for split, count in (("train", 64), ("validation", 24)):
        lines = []
        for row in sentences(count, seed=len(split)):
            things = row["things"].replace(" and ", " , ").split(" , ")
            place = ["first", "second", "third", "fourth", "fifth"].index(row["which"])
            start = len(" , ".join(things[: place + 1])) - len(noun := things[place].split()[-1])
            context = row["things"].replace(" and ", " , ")
            assert context[start : start + len(noun)] == noun
            answers = {"text": [noun], "answer_start": [start]}
            row = {"question": row["which"], "context": context, "answers": answers}
            lines.append(json.dumps(row) + "\n")
        (folder / f"{split}.jsonl").write_text("".join(lines))


def answers_of(folder, rows):
    """The best span over windows that are cut by hand, all pairs compared."""
    model = AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for row in rows:
        question, words = tokenizer.tokenize(row["question"]), row["context"].split()
        room = LENGTH - len(question) - 3
        best, start = (-torch.inf, ""), 0
        while True:
            part = words[start : start + room]
            tokens = ["[CLS]", *question, "[SEP]", *map(str.lower, part), "[SEP]"]
            ids = torch.tensor([tokenizer.convert_tokens_to_ids(tokens)])
            first = len(question) + 2
            segments = (torch.arange(len(tokens)) >= first).long()[None]
            with torch.no_grad():
                out = model(input_ids=ids, token_type_ids=segments)
            for i in range(len(part)):
                for j in range(i, min(i + 3, len(part))):
                    score = float(out.start_logits[0, first + i] + out.end_logits[0, first + j])
                    best = max(best, (score, " ".join(part[i : j + 1])))
            if start + room >= len(words):
                break
            start += room - STRIDE
        yield best[1]


def test_job_on_questions_reports_the_official_metrics(make_job, tmp_path):
    write_questions(tmp_path / "data")
    kind = QuestionAnswering(
        doc_stride=STRIDE, max_question_length=2, max_answer_length=3, n_best=LENGTH
    )
    task = Task(
        name="squad",
        path=str(tmp_path / "data"),
        text=["question", "context"],
        label="answers",
        kind=kind,
        metrics=["exact_match", "f1"],
        monitor="f1",
        max_length=LENGTH,
    )
    job = replace(make_job(tmp_path / "run"), task=task)
    result = run(job)
    assert result.student.sparsity == pytest.approx(0.9, abs=1e-3)
    with (tmp_path / "data" / "validation.jsonl").open() as lines:
        rows = [json.loads(line) for line in lines]
    answers = answers_of(tmp_path / "run" / "student", rows)
    scores = [
        official(answer, row["answers"]["text"], False)
        for answer, row in zip(answers, rows, strict=True)
    ]
    expected = torch.tensor(scores).mean(0).tolist()
    found = result.student.metrics
    assert [found["exact_match"], found["f1"]] == pytest.approx(expected)
    assert found["f1"] > 0
