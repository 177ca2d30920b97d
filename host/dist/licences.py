#!/usr/bin/env python3
"""Prints the licences of all crates that the program is made of, from the sources that cargo has.

A crate without a licence file is listed with the expression of its manifest.
"""
import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
NAMES = ("license", "licence", "copying", "notice", "copyright")


def used():
    """Returns the names and versions of the crates that are linked into the program and its stock plugins."""
    command = ["cargo", "tree", "--locked", "--edges", "normal", "--prefix", "none", "--format", "{p}"]
    packages = [argument for name in ("plugway", *stock()) for argument in ("--package", name)]
    lines = subprocess.run(command + packages, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    return {tuple(line.split()[:2]) for line in lines if line.strip()}


def stock():
    """Returns the packages of the stock plugins."""
    return [f"plugway-{folder.parent.name}" for folder in ROOT.glob("plugins/*/Cargo.toml")]


def texts(folder):
    """Returns the texts of the licence files of a crate."""
    files = sorted(file for file in folder.iterdir() if file.is_file() and file.name.lower().startswith(NAMES))
    return [file.read_text(errors="replace").strip() for file in files]


def main():
    metadata = ["cargo", "metadata", "--locked", "--format-version", "1"]
    metadata = json.loads(subprocess.run(metadata, cwd=ROOT, check=True, capture_output=True).stdout)
    crates, crates_of_text = used(), {}
    for package in sorted(metadata["packages"], key=lambda package: package["name"]):
        if package["source"] is None or (package["name"], f"v{package['version']}") not in crates:
            continue
        title = f"{package['name']} {package['version']} ({package['license']})"
        for text in texts(pathlib.Path(package["manifest_path"]).parent) or ["No licence file."]:
            crates_of_text.setdefault(text, []).append(title)
    for text, titles in crates_of_text.items():
        print("=" * 100, *titles, "=" * 100, "", text, "", sep="\n")


if __name__ == "__main__":
    sys.exit(main())
