"""Task files: what they say, what is refused, and what their fingerprint covers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xares_store.catalog import iter_shipped
from xares_store.errors import TaskError, TaskNotFoundError
from xares_store.task import Task

SPLITS_LINE = 'splits = { train = ["train-*.tar"], valid = ["valid-*.tar"], test = ["test-*.tar"] }'


def read(text: str) -> Task:
    return Task.from_text(text, where="dir/mine.toml", base=None)


def test_defaults(task_text: str) -> None:
    task = read(task_text)
    assert task.labels == ("a", "b", "c")
    assert task.folder == "mine"
    assert task.audio.crop_s is None
    assert task.audio.tail == "keep"
    assert (task.probe.mlp.epochs, task.probe.mlp.batch_size, task.probe.mlp.learning_rates) == (10, 32, (1e-3,))
    assert (task.probe.knn.k, task.probe.knn.temperature) == (10, 0.07)
    assert list(task.split_patterns()) == ["train", "valid", "test"]


def test_split_names_of_folds_and_pools(make_task: Callable[..., Task]) -> None:
    folds = make_task('folds = { b = ["b.tar"], a = ["a.tar"] }')
    assert folds.split_patterns() == {"fold-b": ("b.tar",), "fold-a": ("a.tar",)}
    assert list(folds.split_patterns()) == ["fold-b", "fold-a"]  # declared order, not sorted
    assert make_task('pool = ["x*.tar"]').split_patterns() == {"all": ("x*.tar",)}


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('key = "label"', 'kee = "label"', ["target.kee: unknown key", 'Did you mean "key"?']),
        ("[metric]", "[metrics]", ["metrics: unknown key", 'Did you mean "metric"?']),
        ('name = "mine"', 'nmae = "mine"', ["nmae: unknown key", 'Did you mean "name"?', "name: missing"]),
        ('title = "Mine"', 'colour = "red"', ["colour: unknown key", "Known keys: format, name, title"]),
        ('kind = "single-label"', 'kind = "event"', ["target.kind:", '"event"', "events"]),
        (
            'name = "accuracy"',
            'name = "mAP"',
            ['metric.name: "mAP" does not fit target.kind "single-label"', "accuracy"],
        ),
        ('["a", "b", "c"]', '["a", "b", "a"]', ["target: duplicate label 'a': classes 0 and 2"]),
        ('["a", "b", "c"]', '["a"]', ["target: wanted a vocabulary file or at least 2 labels"]),
        ('["a", "b", "c"]', '["a", "b "]', ["target: label 1", "'b '"]),
        ('["a", "b", "c"]', '["a", ""]', ["target: label 1 is empty"]),
        ('["a", "b", "c"]', '["a", 1]', ["target.labels.1"]),
        ('labels = ["a", "b", "c"]', 'vocabulary = "x.txt"', ["target.vocabulary", "inside the file"]),
        ('labels = ["a",', 'vocabulary = "x.txt"\nlabels = ["a",', ["vocabulary and labels are both given"]),
        ('["valid-*.tar"]', '["test-*.tar"]', ["data: valid and test overlap", 'published_valid = "test"']),
        ('["valid-*.tar"]', '["t*.tar"]', ["data: train and valid overlap", "'train-*.tar'", "'t*.tar'"]),
        ('["valid-*.tar"]', "[]", ["data.splits.valid", "at least 1 item"]),
        ('["valid-*.tar"]', '"valid.tar"', ["data.splits.valid", "'valid.tar'"]),
        ('["valid-*.tar"]', '[""]', ["data.splits.valid.0", "is empty"]),
        ('["valid-*.tar"]', '["/etc/x.tar"]', ["data.splits.valid.0", "absolute path"]),
        ('["valid-*.tar"]', '["~/x.tar"]', ["data.splits.valid.0", "absolute path"]),
        ('["valid-*.tar"]', '["C:/x.tar"]', ["data.splits.valid.0", "absolute path"]),
        ('["valid-*.tar"]', '["../x.tar"]', ["data.splits.valid.0", '".."']),
        ('["valid-*.tar"]', '["{..,a}/x.tar"]', ["data.splits.valid.0", '".."']),
        ('["valid-*.tar"]', '["{.,x}{.,y}/x.tar"]', ["data.splits.valid.0", '".."']),
        ('["valid-*.tar"]', '["a\\\\x.tar"]', ["data.splits.valid.0", "backslash"]),
        ('["valid-*.tar"]', '["{0..999999999}.tar"]', ["data.splits.valid.0", "1,000,000,000 names"]),
        ('["valid-*.tar"]', '["v{0..9.tar"]', ["data.splits.valid.0", "unbalanced"]),
        ("[data]", '[data]\nfolder = "../up"', ["data.folder", '".."']),
        ("[data]", '[data]\nfolder = "/up"', ["data.folder", "absolute"]),
        (
            "[data]",
            '[data]\npool = ["p.tar"]',
            ["data: wanted exactly one of folds, splits and pool", "splits and pool"],
        ),
        ("[data]", "[data]\npool_folds = 4", ["data: pool_folds belongs to pool"]),
        ("[data]", '[data]\nzenodo = "x1"', ["data.zenodo", "'x1'"]),
        (SPLITS_LINE, "", ["data: wanted exactly one of folds, splits and pool, found none"]),
        (SPLITS_LINE, 'folds = { 1 = ["a.tar"] }', ["data.folds", "at least 2 items"]),
        (SPLITS_LINE, 'folds = { 1 = ["a.tar"], "a/b" = ["b.tar"] }', ["data.folds.a/b", "pattern"]),
        (SPLITS_LINE, 'folds = { 1 = ["a.tar"], 2 = ["b.tar", "a.tar"] }', ["data: fold-1 and fold-2 overlap"]),
        (SPLITS_LINE, 'folds = { 1 = ["a.tar"], 2 = ["b.tar"] }\npublished_valid = "test"', ["belongs to splits"]),
        (
            SPLITS_LINE,
            'published_valid = "valid"\nsplits = { train = ["a.tar"], test = ["b.tar"] }',
            ['published_valid is "valid"', "no such split"],
        ),
        ("format = 1", "format = 2", ["format: this version reads task files of format 1, found 2"]),
        ("format = 1", 'format = "1"', ["format:", "'1'"]),
        ("format = 1\n", "", ["format: missing"]),
        ('name = "mine"', 'name = "My Task"', ["name:", "'My Task'"]),
        ('name = "mine"', 'name = "a/b"', ["name:", "'a/b'"]),
        ('domain = "other"', 'domain = "noise"', ["domain:", "'noise'"]),
        ("[metric]", "[audio]\ncrop_s = 0\n[metric]", ["audio.crop_s", "greater than 0"]),
        ("[metric]", "[audio]\ncrop_s = nan\n[metric]", ["audio.crop_s"]),
        ("[metric]", '[audio]\ncrop_s = "5"\n[metric]', ["audio.crop_s", "'5'"]),
        ("[metric]", '[audio]\ntail = "pad"\n[metric]', ["audio.tail", "'pad'"]),
        ("[metric]", "[probe.mlp]\nlearning_rates = []\n[metric]", ["probe.mlp.learning_rates", "at least 1 item"]),
        ("[metric]", "[probe.mlp]\nlearning_rates = [1e-3, -1]\n[metric]", ["probe.mlp.learning_rates.1"]),
        ("[metric]", "[probe.mlp]\nepochs = true\n[metric]", ["probe.mlp.epochs", "True"]),
        ("[metric]", "[probe.mlp]\nlr = 1e-3\n[metric]", ["probe.mlp.lr: unknown key", "learning_rates"]),
        ("[metric]", "[probe.knn]\nk = 0\n[metric]", ["probe.knn.k"]),
        ("[metric]", "[published]\nweight = -1\n[metric]", ["published.weight"]),
        ("[metric]", "[metric", ["not valid TOML", "line 11"]),
    ],
)
def test_refused_with_file_and_key(task_text: str, old: str, new: str, expected: list[str]) -> None:
    assert old in task_text
    with pytest.raises(TaskError) as caught:
        read(task_text.replace(old, new, 1))
    for part in ["dir/mine.toml: ", *expected]:
        assert part in str(caught.value)
    assert caught.value.hint


def test_all_problems_are_listed(task_text: str) -> None:
    text = task_text.replace('"other"', '"x"').replace("key =", "kee =")
    with pytest.raises(TaskError) as caught:
        read(text)
    assert caught.value.message.count("dir/mine.toml: ") == 3  # domain, the missing key and the unknown one


def test_a_pattern_that_is_wrong_is_reported_once(task_text: str) -> None:
    with pytest.raises(TaskError) as caught:
        read(task_text.replace("valid-*.tar", "/x.tar"))
    assert len(caught.value.message.splitlines()) == 1


def test_vocabulary_is_found_beside_or_in_vocabularies(tmp_path: Path, task_text: str) -> None:
    text = task_text.replace('labels = ["a", "b", "c"]', 'vocabulary = "mine.txt"')
    folder = tmp_path / "tasks" / "group"
    folder.mkdir(parents=True)
    (folder / "mine.toml").write_text(text, encoding="utf-8")
    with pytest.raises(TaskError, match=r'target.vocabulary: no file "mine.txt"'):
        Task.from_toml(folder / "mine.toml")
    (tmp_path / "tasks" / "vocabularies").mkdir()
    shared = tmp_path / "tasks" / "vocabularies" / "mine.txt"
    shared.write_text("Don’t\nb\u2028c\n", encoding="utf-8")
    assert Task.from_toml(folder / "mine.toml").labels == ("Don’t", "b\u2028c")
    (folder / "mine.txt").write_bytes(b"\xef\xbb\xbfx\r\ny\r\n")
    assert Task.from_toml(folder / "mine.toml").labels == ("x", "y")


@pytest.mark.parametrize("name", ["../secret.txt", "/etc/passwd", "a/b.txt", ""])
def test_vocabulary_cannot_leave_the_folder(tmp_path: Path, task_text: str, name: str) -> None:
    text = task_text.replace('labels = ["a", "b", "c"]', f'vocabulary = "{name}"')
    with pytest.raises(TaskError, match=r"target\.vocabulary"):
        Task.from_text(text, where="x.toml", base=tmp_path)


def test_blank_line_in_a_vocabulary(tmp_path: Path, task_text: str) -> None:
    (tmp_path / "v.txt").write_text("a\n\nb\n")
    text = task_text.replace('labels = ["a", "b", "c"]', 'vocabulary = "v.txt"')
    with pytest.raises(TaskError, match="label 1 is empty"):
        Task.from_text(text, where="x.toml", base=tmp_path)


def test_name_must_be_the_file_name(tmp_path: Path, task_text: str) -> None:
    path = tmp_path / "other.toml"
    path.write_text(task_text)
    with pytest.raises(TaskError, match=r'other.toml: name: wanted "other".*found "mine"'):
        Task.from_toml(path)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(TaskNotFoundError, match="no such file"):
        Task.from_toml(tmp_path / "none.toml")
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TaskError, match="not UTF-8"):
        Task.from_toml(binary)
    with pytest.raises(TaskError, match="cannot be read"):
        Task.from_toml(tmp_path)
    huge = tmp_path / "huge.toml"
    with huge.open("wb") as stream:
        stream.truncate(17 << 20)
    with pytest.raises(TaskError, match="larger than 16 MiB"):
        Task.from_toml(huge)


def test_deep_nesting_is_an_error_not_a_crash(task_text: str) -> None:
    with pytest.raises(TaskError):
        read(task_text + "x = " + "[" * 100_000)


@pytest.mark.parametrize("task", list(iter_shipped()), ids=lambda task: task.name)
def test_self_contained_text_has_the_same_fingerprint(task: Task) -> None:
    again = Task.from_text(task.to_toml(), where=task.name, base=None)
    assert again == task
    assert again.fingerprint == task.fingerprint
    assert again.to_toml() == task.to_toml()
    assert list(again.split_patterns()) == list(task.split_patterns())


@given(
    labels=st.lists(
        st.text(min_size=1).filter(lambda s: s == s.strip() and min(map(ord, s)) >= 32), min_size=2, unique=True
    )
)
def test_any_labels_survive_the_round_trip(labels: list[str]) -> None:
    import tomli_w

    raw = {
        "format": 1,
        "name": "mine",
        "title": "Mine",
        "domain": "other",
        "data": {"pool": ["a.tar"]},
        "target": {"kind": "single-label", "key": "label", "labels": labels},
        "metric": {"name": "accuracy"},
    }
    task = read(tomli_w.dumps(raw))
    assert list(task.labels) == labels
    assert read(task.to_toml()).fingerprint == task.fingerprint


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('["a", "b", "c"]', '["a", "c", "b"]'),
        ('title = "Mine"', 'title = "Ours"'),
        ('key = "label"', 'key = "other"'),
        ("test-*.tar", "tests-*.tar"),
        ("[metric]", "[probe.mlp]\nepochs = 11\n[metric]"),
        ("[metric]", "[audio]\ncrop_s = 1\n[metric]"),
        ("[metric]", "[published]\nweight = 3\n[metric]"),
        ('key = "label"', 'key = "label"\ngroup_key = "g"'),
    ],
)
def test_any_change_changes_the_fingerprint(task_text: str, old: str, new: str) -> None:
    assert read(task_text).fingerprint != read(task_text.replace(old, new)).fingerprint


def test_stating_a_default_or_rearranging_changes_nothing(task_text: str) -> None:
    stated = task_text + '[probe.knn]\nk = 10\n[audio]\ntail = "keep"\n# a comment\n'
    assert read(stated).fingerprint == read(task_text).fingerprint
    assert hash(read(stated)) == hash(read(task_text))


def test_the_order_of_folds_is_part_of_the_fingerprint(make_task: Callable[..., Task]) -> None:
    one = make_task('folds = { a = ["a.tar"], b = ["b.tar"], c = ["c.tar"] }')
    other = make_task('folds = { a = ["a.tar"], c = ["c.tar"], b = ["b.tar"] }')
    assert one.fingerprint != other.fingerprint


def test_only_what_decides_the_frames_is_in_the_audio_fingerprint(task_text: str) -> None:
    def audio(lines: str, text: str = task_text) -> str:
        return read(f"{text}[audio]\n{lines}").audio_fingerprint

    plain = read(task_text).audio_fingerprint
    assert audio("", task_text.replace('"a"', '"z"').replace('key = "label"', 'key = "other"')) == plain
    assert audio('tail = "drop"') == plain  # nothing is cropped
    assert audio("min_tail_s = 2.0") == plain
    assert audio("crop_s = 5") == audio("crop_s = 5.0") != plain
    assert audio("crop_s = 5") != audio('crop_s = 5\ntail = "drop"')
    assert audio("crop_s = 5") != audio("crop_s = 5\nmin_tail_s = 1.0")
    assert audio('crop_s = 5\ntail = "drop"') == audio('crop_s = 5\ntail = "drop"\nmin_tail_s = 1.0')


def test_a_task_over_the_same_audio_shares_its_address(task_text: str) -> None:
    other = read(task_text.replace('name = "mine"', 'name = "theirs"\naudio_of = "mine"'))
    assert other.audio_address == read(task_text).audio_address
    assert other.address.startswith("theirs@")


def test_a_task_cannot_be_changed(task_text: str) -> None:
    from pydantic import ValidationError

    with pytest.raises(ValidationError, match="frozen"):
        read(task_text).name = "x"  # type: ignore[misc]
