"""The Step-1 speech-text language model: tokens in, tokens out.

- `step1`       configuration, network, sizes
- `checkpoint`  released safetensors in and out; `quantize` int8 and int4 weights
- `attention`   sqrt-ALiBi; `cache` keys and values in slots
- `runner`      one step over many sequences, in torch; `native` the same in C++ for a CPU
- `engine`      continuous batching for many callers; `remote` the same over an OpenAI-compatible server
- `generate`    sampling; `grammar` which tokens may come next
- `text`        the tokenizer; `prompts` the prompt of every task; `toolcalls` the tool-call format
"""
