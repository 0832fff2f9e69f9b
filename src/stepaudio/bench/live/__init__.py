"""Conversations against a live server, measured from what was recorded."""
