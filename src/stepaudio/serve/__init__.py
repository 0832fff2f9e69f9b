"""The HTTP server: OpenAI's audio and chat API over one loaded bundle."""
