"""Adds to the site the pages that are not files under docs/: README, CONTRIBUTING, CHANGELOG and the API reference.

The reference has one page per package. mkdocstrings fills it from the docstrings, which griffe reads without importing.
"""

import ast
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_ROOT = Path(__file__).parents[2]
_PACKAGES = ("jobs", "pipeline", "model")
_ROOT_PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the benchmark pages to the navigation, and the API reference, one section per top-level package."""
    assert config.nav is not None
    for entry in config.nav:
        if "Benchmarks" in entry:
            dated = sorted((Path(config.docs_dir) / "benchmarks").glob("2*.md"), reverse=True)
            entry["Benchmarks"] = ["benchmarks/README.md", *(f"benchmarks/{page.name}" for page in dated)]
    sections = []
    for top in _PACKAGES:
        pages = [package for package in _package_modules() if package.split(".")[0] == top]
        sections.append({top: [{page: f"api/{page}.md"} for page in pages]})
    config.nav.append({"API reference": sections})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    for name, page in _ROOT_PAGES.items():
        files.append(File.generated(config, page, content=_with_site_links((_ROOT / name).read_text("utf-8"))))
    for package, modules in _package_modules().items():
        files.append(File.generated(config, f"api/{package}.md", content=_reference_page(package, modules)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links from docs/ to files in the repository root at the pages generated from them."""
    for name, target in _ROOT_PAGES.items():
        markdown = markdown.replace(f"](../{name}", f"]({target}")
    return markdown


def _with_site_links(text: str) -> str:
    """Rewrite links of a page in the repository root to the places that the site has."""
    text = re.sub(r"\]\(docs/", "](", text)
    text = text.replace("](benchmarks)", "](benchmarks/README.md)")
    for name, page in _ROOT_PAGES.items():
        text = text.replace(f"]({name}", f"]({page}")
    return text


def _package_modules() -> dict[str, list[str]]:
    """Return the modules with a public name of each package, by package."""
    packages: dict[str, list[str]] = {}
    for top in _PACKAGES:
        for path in sorted((_ROOT / top).rglob("*.py")):
            package = ".".join(path.relative_to(_ROOT).parent.parts)
            if path.stem != "__init__" and not path.stem.startswith("_") and _has_docstring(path):
                packages.setdefault(package, []).append(f"{package}.{path.stem}")
    return packages


def _has_docstring(path: Path) -> bool:
    return ast.get_docstring(ast.parse(path.read_text("utf-8"))) is not None


def _reference_page(package: str, modules: list[str]) -> str:
    init = ast.get_docstring(ast.parse((_ROOT / Path(*package.split(".")) / "__init__.py").read_text("utf-8")))
    return "\n\n".join([f"# {package}", init or "", *(f"::: {module}" for module in modules)]) + "\n"
