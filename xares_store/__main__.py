"""``python -m xares_store`` is the ``xares`` command."""

from xares_store.cli import entry

if __name__ == "__main__":
    entry()
