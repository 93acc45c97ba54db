"""Other APIs over the same core: each turns its body into a chat request, and pieces into its own answer and events."""
