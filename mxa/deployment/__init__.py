"""Models where they are used."""
