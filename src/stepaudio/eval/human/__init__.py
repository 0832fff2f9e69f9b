"""Listening tests with people: a blind page, ratings in SQLite, and what they say."""
