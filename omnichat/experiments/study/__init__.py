"""The study: which runs stand behind each table and figure, made once, recorded in a ledger, taken up after a kill."""
