"""The model card: what a saved model was trained on, what was measured of it, under which licences its parts are."""
