"""nano-voice: the project's own small voice, from phonemes to sound."""
