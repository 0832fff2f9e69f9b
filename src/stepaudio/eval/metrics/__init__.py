"""Measures of what systems give back. Nothing here knows of systems, tasks or reports, so training may use it too."""
