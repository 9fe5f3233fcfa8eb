"""Copies what a stopped server has kept to another kind of store: from a file to PostgreSQL, or back."""

from gearflow.stores.copying.copy import copy, copy_to_file, copy_to_postgres
from gearflow.stores.copying.entries import CopyProgress

__all__ = ["CopyProgress", "copy", "copy_to_file", "copy_to_postgres"]
