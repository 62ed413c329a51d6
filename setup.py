import re
from pathlib import Path

from setuptools import find_packages, setup

VERSION = re.search(r'__version__ = "(.+)"', Path("minifork/__init__.py").read_text(encoding="utf-8"))

setup(
    name="minifork",
    version=VERSION[1],
    description="Shows, exactly and in minutes, why fine-tuned reasoning models lose coverage",
    long_description=open("README.md", encoding="utf-8").read(),
    long_description_content_type="text/markdown",
    license="MIT",
    packages=find_packages(include=["data_gen*", "minifork*", "experiments*"]),
    package_data={
        "experiments": ["studies/*.yaml", "capitals.csv", "claims.yaml", "report.html"],
        "minifork": ["gpu/*.cu", "configs/*.yaml", "py.typed"],
    },
    python_requires=">=3.10",
    install_requires=["torch>=2.9", "numpy", "einops", "tqdm", "pyyaml", "matplotlib"],
    extras_require={
        "cluster": ["distributed"],  # Dask, which makes the runs of a study on many machines
        # xdist runs files of tests side by side, one a core; coverage is for `make coverage`, mypy for `make lint`
        "dev": ["distributed", "pytest", "pytest-xdist", "hypothesis", "ruff", "mypy", "types-PyYAML", "coverage"],
        "kernel-dev": ["nvidia-cuda-nvrtc"],  # compiles the CUDA kernel where there is no GPU, for its tests
        # Language models that were trained elsewhere; the regular expressions of accepted answers. transformers is also
        # the sampler that most people know, which `make bench` times beside ours.
        "hf": ["transformers>=5,<6", "outlines-core"],
    },
    entry_points={"console_scripts": ["minifork = experiments.cli:main"]},
    # `pip install -e .` puts the folder on the path. With setuptools' other way, a folder called minifork, such as a
    # clone seen from the folder around it, hides the package.
    options={"editable_wheel": {"mode": "compat"}},
)
