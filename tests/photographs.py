"""A few photographs, made of scenes of Shapes, in the layout of every id whose images are not part of this package."""

from __future__ import annotations

from pathlib import Path

from glimpse_env.datasets import Shapes
from tests.glimpse_env.datasets.test_karpathy import entry
from tests.glimpse_env.datasets.test_karpathy import write as write_karpathy
from tests.glimpse_env.datasets.test_webdataset import sample
from tests.glimpse_env.datasets.test_webdataset import write as write_tar

PHOTOS = 3  # of val


def write_photographs(root: Path) -> Path:
    """Write ``flickr8k/``, ``flickr30k/``, ``coco/`` and ``webdataset/`` under ``root``, to be given as ``data_root``.

    Their captions are in words of Shapes, so that a captioner of Shapes may speak of them.
    """
    scenes, told = Shapes("val"), {}
    for row in range(PHOTOS):
        told[row] = [" ".join(words) for words in scenes.references(row)]
    for name, folder in (("flickr8k", "Images"), ("flickr30k", "flickr30k-images"), ("coco", "val2014")):
        more = {"filepath": folder} if name == "coco" else {}
        captions = [[{"raw": caption} for caption in told[row]] for row in range(PHOTOS)]
        images = [entry(f"{row}.jpg", "val", sentences=captions[row], **more) for row in range(PHOTOS)]
        write_karpathy(root / name, name, folder, images, scenes.image)
    members = [each for row in range(PHOTOS) for each in sample(f"{row}", row, "\n".join(told[row]).encode())]
    write_tar(root / "webdataset" / "val.tar", members)
    return root
