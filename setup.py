from setuptools import setup

setup(
    name="minifork",
    version="0.2.0",
    description="Shows, exactly and in minutes, why fine-tuned reasoning models lose coverage",
    long_description=open("README.md", encoding="utf-8").read(),
    long_description_content_type="text/markdown",
    license="MIT",
    packages=["data_gen", "minifork", "experiments"],
    package_data={
        "experiments": ["studies/*.yaml", "claims.yaml", "report.html"],
        "minifork": ["csrc/*.cu", "configs/*.yaml"],
    },
    python_requires=">=3.10",
    install_requires=["torch>=2.9", "numpy", "einops", "tqdm", "pyyaml", "matplotlib"],
    extras_require={
        "dev": ["pytest", "pytest-xdist", "hypothesis", "ruff"],  # xdist: files of tests side by side, one a core
        "kernel-dev": ["nvidia-cuda-nvrtc"],  # compiles the CUDA kernel where there is no GPU, for its tests
        "bench": ["transformers"],  # the sampler that most people know, timed beside ours
    },
    entry_points={"console_scripts": ["minifork = minifork.cli:main"]},
)
