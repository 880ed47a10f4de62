"""Web pages: the only place where gradio may be imported."""
