"""OpenAI's Realtime protocol: a live conversation over a WebSocket."""
