"""omnichat: a research training framework for spoken-dialogue models (after arXiv 2501.01384)."""

__version__ = "0.1.0"
