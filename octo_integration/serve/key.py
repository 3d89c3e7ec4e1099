"""The key that a server may ask of its clients: a file, for a command line can be read by everyone on the machine."""

from pathlib import Path


def read_key(path: Path) -> str:
    """The key in a file, blanks around it left out.

    Raises:
      FileNotFoundError, ValueError: there is no such file, or it holds none.
    """
    if not path.is_file():
        raise FileNotFoundError(f"api_key_file: no {path}.")
    key = path.read_text().strip()
    if not key or not key.isascii() or not key.isprintable():
        raise ValueError(f"api_key_file: {path} is empty, or has more than ASCII characters.")
    return key
