"""Every loader on a small file in exactly the form that the authors publish."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import ConfigError
from pipeline.config.evaluation import BENCHMARK_NAMES
from pipeline.evaluation.benchmarks.load import BENCHMARKS, load_benchmark
from pipeline.evaluation.metrics.registry import find_metrics
from pipeline.evaluation.questions import EvaluationSample
from pipeline.evaluation.results import check_metrics, prepare_questions
from tests.jobs.conftest import png

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
FIRST, SECOND = png(3, 40, 20), png(5, 30, 50)
PEOPLE = [
    {"answer": text, "answer_confidence": "yes", "answer_id": idx + 1} for idx, text in enumerate(["2"] * 9 + ["3"])
]


def put(path: Path, tree: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(tree if isinstance(tree, str) else json.dumps(tree))
    return path


def pictures(folder: Path, *names: str) -> Path:
    for name, content in zip(names, (FIRST, SECOND), strict=False):
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "images" / name).write_bytes(content)
    return folder / "images"


def table(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


Written = tuple[Path, Path | None]


def vqav2(folder: Path) -> Written:
    asked = [{"image_id": 9, "question": "How many?", "question_id": 9001}]
    told = {"question_type": "how many", "multiple_choice_answer": "2", "answers": PEOPLE, "image_id": 9,
            "answer_type": "number", "question_id": 9001}  # fmt: skip
    put(folder / "v2_mscoco_val2014_annotations.json", {"annotations": [told], "data_subtype": "val2014"})
    file = put(folder / "v2_OpenEnded_mscoco_val2014_questions.json", {"questions": asked, "data_subtype": "val2014"})
    return file, pictures(folder, "COCO_val2014_000000000009.jpg")


def gqa(folder: Path) -> Written:
    row = {"imageId": "n161313", "question": "Is it red?", "answer": "no", "fullAnswer": "No, it is blue.",
           "types": {"structural": "verify", "semantic": "attr", "detailed": "verifyAttr"}}  # fmt: skip
    return put(folder / "testdev_balanced_questions.json", {"201307251": row}), pictures(folder, "n161313.jpg")


def textvqa(folder: Path) -> Written:
    row = {"question": "what brand?", "image_id": "003a8ae2ef43b901", "question_id": 34602, "set_name": "val",
           "image_width": 40, "image_height": 20, "answers": ["nokia"] * 8 + ["the nokia", "phone"]}  # fmt: skip
    file = put(folder / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "dataset_version": "0.5.1", "data": [row]})
    return file, pictures(folder, "003a8ae2ef43b901.jpg")


def docvqa(folder: Path) -> Written:
    row = {"questionId": 49153, "question": "What is the date?", "question_types": ["form"], "docId": 14465,
           "image": "documents/pybv0228_81.png", "ucsf_document_id": "pybv0228", "answers": ["1/8/93", "1/8/1993"],
           "data_split": "val"}  # fmt: skip
    file = put(folder / "val_v1.0_withQT.json", {"dataset_name": "SP-DocVQA", "data": [row]})
    return file, pictures(folder, "documents/pybv0228_81.png")


def chartqa(folder: Path) -> Written:
    row = {"imgname": "41699051005347.png", "query": "How many bars?", "label": "14"}
    return put(folder / "test_human.json", [row]), pictures(folder, "41699051005347.png")


def ai2d(folder: Path) -> Written:
    asked = {"What is A?": {"abcLabel": False, "answerTexts": ["sun", "moon", "star", "sky"], "correctAnswer": 2,
                            "questionId": "0.png-0"}}  # fmt: skip
    put(folder / "questions" / "0.png.json", {"imageName": "0.png", "questions": asked})
    return folder / "questions", pictures(folder, "0.png")


def pope(folder: Path) -> Written:
    row = {"question_id": 1, "image": "COCO_val2014_000000310196.jpg", "text": "Is there a snowboard in the image?",
           "label": "yes"}  # fmt: skip
    lines = "\n".join(map(json.dumps, [row, {**row, "question_id": 2, "label": "no"}]))
    return put(folder / "coco_pope_popular.json", lines), pictures(folder, "COCO_val2014_000000310196.jpg")


def mme(folder: Path) -> Written:
    lines = ("0006.jpg\tIs there a dog? Please answer yes or no.\tYes", "0006.jpg\tA cat? Please answer yes or no.\tNo")
    return put(folder / "existence.txt", "\n".join(lines)), pictures(folder, "existence/0006.jpg")


def mmbench(folder: Path) -> Written:
    head = "index\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory\timage\tsource\tl2-category\tcomment\tsplit"
    row = ["241", "Which one?", "Look.", "cat", "dog", "bird", "", "B", "identity", base64.b64encode(FIRST).decode()]
    file = put(folder / "mmbench_dev_20230712.tsv", "\n".join([head, "\t".join([*row, "s", "l", "", "dev"])]) + "\n")
    return file, None


def scienceqa(folder: Path) -> Written:
    row = {"question": "Which state?", "choices": ["Utah", "Ohio"], "answer": 1, "hint": "", "image": "image.png",
           "task": "closed choice", "grade": "grade2", "subject": "social science", "split": "test"}  # fmt: skip
    tree = {"5": row, "6": {**row, "image": None}, "7": {**row, "split": "train"}}
    return put(folder / "problems.json", tree), pictures(folder, "test/5/image.png")


def mmmu(folder: Path) -> Written:
    row: dict[str, Any] = {
        "id": "validation_Art_Theory_1", "question": "Compare <image 1> and <image 2>.", "options": "['same', 'other']",
        "image_1": {"bytes": FIRST, "path": "1.png"}, "image_2": {"bytes": SECOND, "path": "2.png"}, "image_3": None,
        "answer": "A", "question_type": "multiple-choice", "subfield": "Art", "topic_difficulty": "Easy",
    }  # fmt: skip
    opened = {**row, "id": "validation_Art_Theory_2", "question_type": "open", "options": "[]", "answer": "7"}
    return table(folder / "validation-00000-of-00001.parquet", [row, opened]), None


def seed(folder: Path) -> Written:
    row = {"answer": "C", "choice_a": "One", "choice_b": "Two", "choice_c": "Three", "choice_d": "Four",
           "data_id": "1454426_2591111986", "data_type": "image", "question": "How many?", "question_id": "101669",
           "question_type_id": 5}  # fmt: skip
    rows = [row, {**row, "data_type": "video", "question_id": "2"}]
    file = put(folder / "SEED-Bench.json", {"question_type": {"Instances Counting": 5}, "questions": rows})
    return file, pictures(folder, "1454426_2591111986")


def refcoco(folder: Path) -> Written:
    row = {"image": "coco/train2014/COCO_train2014_000000000072.jpg", "sent": "left dog", "height": 20, "width": 40,
           "bbox": [10, 5, 30, 15]}  # fmt: skip
    return put(folder / "refcoco_val.jsonl", json.dumps(row)), pictures(folder, "COCO_train2014_000000000072.jpg")


def captions(folder: Path, **more: object) -> Written:
    told = [{"image_id": 42, "id": idx, "caption": f"A dog {idx}. "} for idx in range(5)]
    tree = {"info": {}, "images": [{"id": 42, "file_name": "0042.jpg", **more}], "annotations": told, "licenses": []}
    return put(folder / "captions_val2014.json", tree), pictures(folder, "0042.jpg")


def nocaps(folder: Path) -> Written:
    return captions(folder, domain="near-domain", open_images_id="0042")


CASES: dict[str, tuple[Callable[[Path], Written], tuple[Any, ...]]] = {
    "vqav2": (vqav2, ("9001", "number", "How many?" + SHORT, "2", tuple("2222222223"), ())),
    "gqa": (gqa, ("201307251", "verify", "Is it red?" + SHORT, "no", (), ())),
    "textvqa": (
        textvqa, ("34602", "all", "what brand?" + SHORT, "nokia", ("nokia",) * 8 + ("the nokia", "phone"), ()),
    ),
    "docvqa": (docvqa, ("49153", "form", "What is the date?" + SHORT, "1/8/93", ("1/8/93", "1/8/1993"), ())),
    "chartqa": (chartqa, ("test_human-0", "human", "How many bars?" + SHORT, "14", (), ())),
    "ai2d": (
        ai2d,
        ("0.png-0", "words", "What is A?\nA. sun\nB. moon\nC. star\nD. sky" + LETTER, "C", (),
         ("sun", "moon", "star", "sky")),
    ),
    "pope": (pope, ("1", "popular", "Is there a snowboard in the image?" + SHORT, "yes", (), ())),
    "mme": (
        mme, ("existence-0006.jpg-0", "existence", "Is there a dog? Please answer yes or no.", "Yes", (), ()),
    ),
    "mmbench": (
        mmbench,
        ("241", "identity", "Look.\nWhich one?\nA. cat\nB. dog\nC. bird" + LETTER, "B", (), ("cat", "dog", "bird")),
    ),
    "scienceqa": (
        scienceqa, ("5", "social science", "Which state?\nA. Utah\nB. Ohio" + LETTER, "B", (), ("Utah", "Ohio")),
    ),
    "mmmu": (
        mmmu,
        ("validation_Art_Theory_1", "Art_Theory", "Compare  and .\nA. same\nB. other" + LETTER, "A", (),
         ("same", "other")),
    ),
    "seed": (
        seed,
        ("101669", "Instances Counting", "How many?\nA. One\nB. Two\nC. Three\nD. Four" + LETTER, "C", (),
         ("One", "Two", "Three", "Four")),
    ),
    "refcoco": (
        refcoco,
        ("0-0", "all", "Please provide the bounding box coordinate of the region this sentence describes: left dog. "
         "Answer with [x1, y1, x2, y2] from 0 to 1.", "[0.2500, 0.2500, 0.7500, 0.7500]", (), ()),
    ),
    "coco_captions": (
        captions,
        ("42", "all", "Provide a one-sentence caption for the provided image.", "A dog 0.",
         tuple(f"A dog {idx}." for idx in range(5)), ()),
    ),
    "nocaps": (
        nocaps,
        ("42", "near-domain", "Provide a one-sentence caption for the provided image.", "A dog 0.",
         tuple(f"A dog {idx}." for idx in range(5)), ()),
    ),
}  # fmt: skip


def described(entry: EvaluationSample) -> tuple[Any, ...]:
    (question, answer), (category,) = entry.asked[0], entry.kinds
    return entry.sample.key, category, question.removeprefix("\n"), answer, entry.references, entry.options


@pytest.mark.parametrize("kind", BENCHMARK_NAMES)
def test_published_file_is_read_and_can_be_measured(kind: str, tmp_path: Path) -> None:
    write, wanted = CASES[kind]
    file, images = write(tmp_path)
    samples = load_benchmark(kind, file, images, None)
    assert described(samples[0]) == wanted
    assert samples[0].sample.images == ((FIRST, SECOND) if kind == "mmmu" else (FIRST,))
    assert len(samples) == (2 if kind in ("pope", "mme") else 1)
    assert len(load_benchmark(kind, file, images, 1)) == 1
    metrics = find_metrics(BENCHMARKS[kind].metrics)
    check_metrics(samples, metrics)
    if kind == "mmbench":
        assert len(prepare_questions(samples, metrics)) == 3


def test_mme_pairs_share_their_picture_in_both_forms(tmp_path: Path) -> None:
    file, images = mme(tmp_path / "table")
    assert [one.group for one in load_benchmark("mme", file, images, None)] == ["0006.jpg", "0006.jpg"]
    release = tmp_path / "release" / "code_reasoning"
    put(release / "0020.txt", "Is it 0? Please answer yes or no.\tYes\nIs it 1? Please answer yes or no.\tNo\n")
    (release / "0020.png").write_bytes(SECOND)
    found = load_benchmark("mme", tmp_path / "release", tmp_path / "release", None)
    assert [(one.kinds, one.group, one.sample.images) for one in found] == [
        (("code_reasoning",), "0020", (SECOND,))
    ] * 2


def test_places_of_pictures_in_a_question_are_kept(tmp_path: Path) -> None:
    file, _ = mmmu(tmp_path)
    parts = load_benchmark("mmmu", file, None, None)[0].sample.conversation.turns[0].parts
    assert [part if isinstance(part, str) else "IMAGE" for part in parts][:4] == ["Compare ", "IMAGE", " and ", "IMAGE"]


@pytest.mark.parametrize(
    ("kind", "tree", "message"),
    [
        ("gqa", {"1": {"question": "?"}}, "is not a file of gqa as published: field 'imageId'"),
        ("pope", "{broken", "line 1: not a JSON object"),
        ("gqa", "{broken", "not a JSON file"),
        ("chartqa", [], "has no question that chartqa asks"),
        ("chartqa", [{"imgname": "gone.png", "query": "?", "label": 3}], "question file-0: no picture gone.png"),
        ("vqav2", {"questions": []}, r"VQAv2 comes as two files.*put file"),
    ],
)
def test_other_files_are_refused_by_name(kind: str, tree: object, message: str, tmp_path: Path) -> None:
    file = put(tmp_path / "file.json", tree)
    (tmp_path / "images").mkdir()
    with pytest.raises(ConfigError, match=message):
        load_benchmark(kind, file, tmp_path / "images", None)
    with pytest.raises(ConfigError, match="no such file or folder"):
        load_benchmark(kind, tmp_path / "absent.json", None, None)
