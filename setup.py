"""Everything about the package is read from settings.ini, so that it stands in one
place.
"""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

config = ConfigParser(delimiters=["="])
config.read(Path(__file__).parent / "settings.ini", encoding="utf-8")
s = config["DEFAULT"]
train = s["train_requirements"].split()
export = s["export_requirements"].split()
dev = s["dev_requirements"].split()

setup(
    name=s["lib_name"],
    version=s["version"],
    description=s["description"],
    author=s["author"],
    url=s["git_url"],
    project_urls={"Source": s["git_url"], "Issues": s["git_url"] + "/issues"},
    keywords=s["keywords"].split(),
    license="Apache-2.0",
    license_files=["LICENSE"],
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    packages=find_packages(include=["t2i_tutorial", "t2i_tutorial.*"]),
    include_package_data=True,
    package_data={"t2i_tutorial": ["pretrained/**/*", "results/**/*"]},
    python_requires=f">={s['min_python']}",
    install_requires=s["requirements"].split(),
    extras_require={"train": train, "export": export, "dev": train + export + dev},
    entry_points={"console_scripts": s["console_scripts"].split()},
    classifiers=[
        "Programming Language :: Python :: 3",
        "Intended Audience :: Education",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
