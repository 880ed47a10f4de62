"""The corpora: dialogues, turns, hours and label balance of each subset.

    python scripts/study_corpora.py --preset demo --jobs 2       what is missing is made, then the report
    python scripts/study_corpora.py --dry-run                    the runs, their data, steps and hours

All scripts of the study share runs, corpora and one ledger (docs/STUDY.md).
"""

from __future__ import annotations

import sys

from omnichat.study import main

if __name__ == "__main__":
    sys.exit(main(["corpora"], __doc__))
