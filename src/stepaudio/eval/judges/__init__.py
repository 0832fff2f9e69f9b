"""Models that judge what rules cannot: their prompts, their seeds, and how far they agree with people."""
