"""What a run looks like: one self-contained page, a comparison of two runs, a leaderboard."""
