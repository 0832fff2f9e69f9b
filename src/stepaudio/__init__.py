"""stepaudio: the open system that hears, understands, answers and speaks, live."""

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["__version__", "load"]

if TYPE_CHECKING:
    from stepaudio.speech.bundle import load


def __getattr__(name: str) -> object:
    # Loaded on first use: importing the package stays cheap, and imports nothing heavy.
    if name == "load":
        from stepaudio.speech.bundle import load

        return load
    raise AttributeError(f"module 'stepaudio' has no attribute '{name}'")
