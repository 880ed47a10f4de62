"""Doubling numbers of synthetic dialogues times four inputs: T, ASR-T, S+T, S.

    python scripts/study_scale.py --preset demo --jobs 2       what is missing is made, then the report
    python scripts/study_scale.py --dry-run                    the runs, their data, steps and hours

All scripts of the study share runs, corpora and one ledger (docs/STUDY.md).
"""

from __future__ import annotations

import sys

from omnichat.study import main

if __name__ == "__main__":
    sys.exit(main(["scale"], __doc__))
