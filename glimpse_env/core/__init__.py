"""What all subpackages may use: vocabulary, location grid, checks of arguments, atomic writes and weights files."""

from glimpse_env.core.atomic_files import atomic_path
from glimpse_env.core.checks import check_count, check_number
from glimpse_env.core.location_grid import LocationGrid
from glimpse_env.core.safetensors_files import FileFormatError
from glimpse_env.core.vocabulary import Vocabulary, tokenize

__all__ = ["FileFormatError", "LocationGrid", "Vocabulary", "atomic_path", "check_count", "check_number", "tokenize"]
