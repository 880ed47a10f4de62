"""What every source of topics keeps, over every YAML."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from omnichat.schema import SPLITS
from omnichat.synthesis.topics.base import TopicSource, same_topic
from omnichat.utils.errors import UserError

FILES = {path.stem: path for path in sorted((Path(__file__).parents[2] / "configs" / "topics").glob("*.yaml"))}


@pytest.fixture(scope="module", params=FILES)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TopicSource:
    node = OmegaConf.load(FILES[request.param])
    if OmegaConf.is_missing(node, "path"):
        node.path = str(tmp_path_factory.mktemp("topics") / "mine.txt")
        Path(node.path).write_text("".join(f"a talk about number {n}\n" for n in range(60)), encoding="utf-8")
    return instantiate(node, _convert_="all")


def test_no_topic_is_of_two_splits(source: TopicSource) -> None:
    topics = [same_topic(topic) for split in SPLITS for topic in source.topics(split)]
    assert len(set(topics)) == len(topics)
    for split in SPLITS:
        assert source.topics(split) and all(topic == " ".join(topic.split()) for topic in source.topics(split))
    assert len(source.topics("train")) > 4 * len(source.topics("test"))


def test_repeatable_picklable_and_fit_for_a_card(source: TopicSource) -> None:
    copy = pickle.loads(pickle.dumps(source))
    assert [copy.topics(split) for split in SPLITS] == [source.topics(split) for split in SPLITS]
    facts = json.loads(json.dumps(source.describe()))
    assert {"name", "licence", "topics", "split_rule", "sha256"} <= set(facts)
    with pytest.raises(UserError, match="did you mean 'train'"):
        source.topics("trian")
