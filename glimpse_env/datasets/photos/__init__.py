"""Datasets of photographs: Flickr8k, Flickr30k, COCO and tar shards."""

from glimpse_env.datasets.photos.files import read_photograph
from glimpse_env.datasets.photos.flickr8k import Flickr8k
from glimpse_env.datasets.photos.karpathy import Karpathy
from glimpse_env.datasets.photos.webdataset import WebDataset

__all__ = ["Flickr8k", "Karpathy", "WebDataset", "read_photograph"]
