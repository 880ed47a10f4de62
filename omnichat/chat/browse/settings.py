"""Settings of `omnichat browse`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from omnichat.chat.web.config import PageConfig
from omnichat.data.corpus import Verify
from omnichat.utils.errors import UserError, one_of


@dataclass(kw_only=True, slots=True)
class BrowseConfig(PageConfig):
    """`omnichat browse`. Raises UserError for a value that is out of its range."""

    data: str = ""  # corpus folder or Parquet export
    verify: str = "exists"  # exists | fast | full: how the recordings are looked at before the page opens
    page_size: int = 20  # dialogues in the list at once
    follow_links: bool = False  # let recordings be heard that are links out of the corpus folder

    def __post_init__(self) -> None:
        PageConfig.__post_init__(self)  # no super(): a dataclass with slots is made twice, and super() knows the first
        if self.verify not in get_args(Verify):
            raise one_of("verify", self.verify, get_args(Verify))
        if isinstance(self.page_size, bool) or not 1 <= self.page_size <= 200:
            raise UserError(f"page_size must be 1 to 200, got {self.page_size}")
