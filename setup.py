"""The four folders of the project, installed below the one name that is ours: ``sum_factory``."""

from setuptools import find_packages, setup

FOLDERS = ("labelgen", "trainer", "shared", "pipelines")

setup(
    package_dir={f"sum_factory.{folder}": folder for folder in FOLDERS},
    packages=[
        f"sum_factory.{package}"
        for folder in FOLDERS
        for package in (folder, *(f"{folder}.{inner}" for inner in find_packages(folder)))
    ],
)
