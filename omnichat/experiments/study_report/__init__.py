"""The report of a whole study: plans, ledger and run folders in; one page, Markdown, LaTeX, plots and JSON out."""
