"""What the config of `omnichat export` may hold."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from omnichat.data.hub import check_repo
from omnichat.model.llm import DTYPES
from omnichat.utils.errors import UserError, one_of


@dataclass(kw_only=True, slots=True)
class ExportRun:
    """`omnichat export`."""

    run: str = MISSING  # run folder
    out: str = MISSING  # folder of the saved model
    checkpoint: str = "last"  # last | best (by dev loss) | step-NNNNNN
    overwrite: bool = False  # replace an older export in `out`
    merge: bool = False  # also write llm/: the LLM with LoRA merged into its weights
    merge_dtype: str = "auto"  # of llm/: auto (as the frozen weights are) | float32 | bfloat16
    llm_path: str | None = None  # where others find the LLM; null = as the run says
    expert_paths: dict[str, str] = field(default_factory=dict)  # expert -> where others find its weights
    languages: list[str] = field(default_factory=lambda: ["en"])  # of the corpora, as the hub writes them
    datasets: list[str] = field(default_factory=list)  # hub ids of the corpora, for the card
    licence: str | None = None  # hub's id of the licence that you give the trained weights
    push: str | None = None  # ORGANISATION/NAME on the hub
    private: bool = True  # push: only its owners may see it
    revision: str | None = None  # push: branch; null = main
    dry_run: bool = False  # push: say what would be uploaded, and upload nothing

    def __post_init__(self) -> None:
        if self.merge_dtype not in ("auto", *DTYPES):
            raise one_of("merge_dtype", self.merge_dtype, ("auto", *DTYPES))
        if self.merge_dtype != "auto" and not self.merge:
            raise UserError(f"merge_dtype={self.merge_dtype} belongs to merge=true")
        if self.push is not None:
            check_repo("push", self.push)
        for name, given in (("revision", self.revision is not None), ("dry_run", self.dry_run)):
            if given and self.push is None:
                raise UserError(f"{name} belongs to push: name a place, push=ORGANISATION/NAME")
