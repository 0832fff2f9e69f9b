"""Step-Audio's own models in the roles: a language model that hears and speaks audio tokens, and a decoder.

- `model`     tokenizer, language model and prompts of one checkpoint, shared by the roles that use it
- `decoder`   flow, vocoder and speaker encoder of a released folder: tokens to sound, a clip to a voice
- `speaker`   say, clone and edit
- `listener`  transcribe and answer
- `voices`    clips and transcripts of a checkpoint's voices
- `upstream`  the sentences of a released checkpoint's prompts, read out of its source
"""
