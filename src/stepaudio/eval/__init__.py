"""The judge: one harness for hearing, speaking and conversing, for our models and anyone else's.

A *task* asks a *system* for outputs and scores them by stated rules; a *run* is the tasks of one system with its
report. Whatever failed, is empty or is missing counts as wrong and is listed. docs/eval.md tells it all.
"""
