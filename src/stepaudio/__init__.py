"""stepaudio: the open system that hears, understands, answers and speaks, live."""

__version__ = "0.1.0"
