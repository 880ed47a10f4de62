"""Script writers: one file a writer; word lists lie beside them as YAML."""
