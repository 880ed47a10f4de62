"""The whole study: every table and figure from one command.

python scripts/study.py --preset demo --jobs 2      what is missing is made, then the report
python scripts/study.py --preset smoke              the same way in miniature, for CI
python scripts/study.py --preset paper --dry-run    the runs of the paper's sizes, their data, steps and hours
"""

from __future__ import annotations

import sys

from omnichat.study import main

if __name__ == "__main__":
    sys.exit(main([], __doc__))
