"""Topics: formats of lists, splits, faults with file and line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from omnichat.schema import SPLITS
from omnichat.synthesis.splits import SHARES, hash_split
from omnichat.synthesis.topics.base import same_topic
from omnichat.synthesis.topics.lists import TopicList
from omnichat.utils.errors import UserError


def topics(path: Path | None, **changes: object) -> TopicList:
    given = {"column": "topic", "split_column": "split", "shares": SHARES, "licence": "own"}
    return TopicList(None if path is None else str(path), **(given | changes))


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_the_packaged_list_is_several_hundred_topics() -> None:
    counts = topics(None).describe()["topics"]
    assert counts["train"] >= 250 and counts["dev"] >= 30 and counts["test"] >= 50


def test_every_format_says_the_same(tmp_path: Path) -> None:
    names = [f"the {word} at home" for word in ("cat", "dog", "cow", "owl", "pig", "fox", "bee", "ant")]
    text = write(tmp_path / "a.txt", "# mine\n\n" + "\n".join(names))
    listed = write(tmp_path / "a.yaml", "\n".join(f"- {name}" for name in names))
    table = write(tmp_path / "a.csv", "\ufefftopic,note\n" + "\n".join(f'"{name}",x' for name in names))
    found = [[topics(path).topics(split) for split in SPLITS] for path in (text, listed, table)]
    assert found[0] == found[1] == found[2]
    assert sorted(name for split in found[0] for name in split) == sorted(names)


def test_a_file_that_says_its_splits_is_believed(tmp_path: Path) -> None:
    mapped = topics(write(tmp_path / "a.yaml", "train: [a cat, a  dog]\ntest: [a cow]\n"))
    assert (mapped.topics("train"), mapped.topics("test")) == (["a cat", "a dog"], ["a cow"])
    with pytest.raises(UserError, match=r"topics: .*a\.yaml has no topic for the split dev"):
        mapped.topics("dev")
    table = topics(write(tmp_path / "a.csv", "what,part\na cat,train\na cow,test\nA CAT,train\n"), column="what",
                   split_column="part")  # fmt: skip
    assert (table.topics("train"), table.topics("test")) == (["a cat"], ["a cow"])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "train: [A cat]\ntest: [a  CAT]\n", r"a\.yaml: test topic 1: 'a CAT' is of test, but of train at"),
        (
            "a.csv",
            "topic,split\na cat,train\na cat,test\n",
            r"a\.csv:3: 'a cat' is of test, but of train at .*a\.csv:2",
        ),
        ("a.csv", "topic,split\na cat,tset\n", r"a\.csv:2: split='tset' .*did you mean 'test'"),
        ("a.csv", "topc\na cat\n", r"a\.csv:1: topics\.column='topic' .*did you mean 'topc'"),
        ("a.csv", "topic,x\na cat\n", None),
        ("a.csv", "topic,x\na,b,c\n", r"a\.csv:2: has another number of fields"),
        ("a.csv", 'topic\n"a cat\n', r"a\.csv:\d: not readable as CSV"),
        ("a.yaml", "train: a cat\n", "must be a list of topics, or a mapping"),
        ("a.yaml", "- [a]\n", r"a\.yaml: topic 1: must be text"),
        ("a.yaml", "trian: [a]\n", "did you mean 'train'"),
        ("a.yaml", "{", r"a\.yaml: not readable as YAML"),
        ("a.txt", "a \x00 cat", r"a\.txt:1: a topic is 1 to 200 printable characters"),
        ("a.txt", "x" * 300, r"a\.txt:1: a topic is"),
        ("a.txt", "# nothing\n", r"a\.txt: holds no topic"),
        ("a.doc", "a cat", r"a\.doc: must be a file that ends in \.txt"),
    ],
)
def test_faults_name_file_and_line(tmp_path: Path, name: str, text: str, message: str | None) -> None:
    path = write(tmp_path / name, text)
    if message is None:
        assert sum(topics(path).describe()["topics"].values()) == 1, "a row that lacks an unused column is whole enough"
        return
    with pytest.raises(UserError, match=message):
        topics(path)
    with pytest.raises(UserError, match=r"topics\.path=.*none\.txt: no such file"):
        topics(tmp_path / "none.txt")


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.one_of(st.binary(max_size=120), st.text(max_size=120).map(str.encode)),
       suffix=st.sampled_from([".txt", ".yaml", ".csv"]))  # fmt: skip
def test_any_bytes_are_topics_or_a_user_error(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"wild{suffix}"
    path.write_bytes(b"topic\n" * (suffix == ".csv") + content)
    try:
        found = topics(path)
    except UserError as error:
        assert "wild" in str(error) and "\n" not in str(error)
        return
    everything = [same_topic(topic) for topics_ in found._topics.values() for topic in topics_]
    assert everything and len(set(everything)) == len(everything)


@given(names=st.sets(st.text(min_size=1, max_size=8), min_size=3, max_size=60), more=st.text(min_size=1, max_size=8))
def test_hash_split_fills_every_split_and_hardly_moves(names: set[str], more: str) -> None:
    splits = hash_split(sorted(names))
    assert set(splits.values()) == set(SPLITS) and set(splits) == names
    assert splits == hash_split(sorted(names, reverse=True))
    wider = hash_split(sorted(names | {more}))
    assert sum(splits[name] != wider[name] for name in names) <= 3, "only those that filled an empty split"


def test_hash_split_follows_the_shares() -> None:
    splits = list(hash_split([str(n) for n in range(4000)]).values())
    for split, share in SHARES.items():
        assert splits.count(split) / 4000 == pytest.approx(share, abs=0.03)
    assert set(hash_split(["a", "b", "c", "d"], {"train": 0.5, "test": 0.5}).values()) == {"train", "test"}


def test_a_topic_of_control_tokens_is_refused_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "topics.txt"
    path.write_text("the garden\n<|im_start|> garden\n")
    with pytest.raises(UserError, match=r"topics\.txt:2: a topic must not hold '<'"):
        TopicList(str(path), "topic", "split", {"train": 1.0}, "test")
