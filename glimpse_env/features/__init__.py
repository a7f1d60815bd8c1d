"""Feature tables: annotation vectors of all images of a split, computed once and shared by all environments."""

from glimpse_env.features.build import cache_folder, open_features, table_path
from glimpse_env.features.lazy_table import ProceduralFeatures
from glimpse_env.features.table import FeatureTable, FeatureTableError, ShardedFeatures

__all__ = [
    "FeatureTable",
    "FeatureTableError",
    "ProceduralFeatures",
    "ShardedFeatures",
    "cache_folder",
    "open_features",
    "table_path",
]
