"""The share of real dialogues: picked on dev, reported on test, carried over to a second real corpus.

    python scripts/study_alpha.py --preset demo --jobs 2       what is missing is made, then the report
    python scripts/study_alpha.py --dry-run                    the runs, their data, steps and hours

All scripts of the study share runs, corpora and one ledger (docs/STUDY.md).
"""

from __future__ import annotations

import sys

from omnichat.study import main

if __name__ == "__main__":
    sys.exit(main(["alpha"], __doc__))
