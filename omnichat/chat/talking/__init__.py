"""The page of `omnichat web` without its widgets: models on a shelf, tabs with their dialogues, pictures, markup."""
