"""What the end of a session prints besides failures. A part of the suite notes it while it is collected; with `pytest -n`
each process collects all, and the one that prints gets it from the others.
"""

from __future__ import annotations

sections: dict[str, list[str]] = {}
"""Lines by heading."""
