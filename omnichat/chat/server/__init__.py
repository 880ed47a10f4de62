"""A small HTTP API of a trained model, in the shapes of OpenAI's chat completions."""
