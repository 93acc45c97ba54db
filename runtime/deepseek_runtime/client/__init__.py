"""The other side of the API: a chat in the terminal and a load generator, for any OpenAI-compatible endpoint."""
