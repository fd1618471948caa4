"""Access: who sends a request, and how much work the client may ask for."""
